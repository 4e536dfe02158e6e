"""Coverage of intervals by simulation: `python -m bench.coverage`.

Logistic regression with a random intercept, intercept -0.5, in three settings: "mixed", groups of 1 to 8 rows; "three",
groups of 3 rows; "clusters", of Ten Have & Localio's (1999) kind, clusters of 4 to 10 rows with a covariate of the
cluster and one of the row. Of each replicate, the shares of nominal 95 % intervals that cover:

    with        effects of the groups, `fit.ranef(interval=0.95)`
    given       the same with the parameters taken as known
    known       linear predictors of one row of each group, `fit.predict(..., kind="link", interval=0.95)`
    new         linear predictors of one row of each of 200 new groups

The mean over replicates has its standard error beside it; replicates whose estimated standard deviation is zero count.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import jaxglmm as jg


LEVEL = 0.95
NEW = 200
KINDS = ("with", "given", "known", "new")


@dataclass(frozen=True)
class Setting:
    """A model to draw from: sizes of groups, which are repeated, and coefficients."""

    sizes: tuple[int, ...]
    intercept: float = -0.5
    by_group: float = 0.0
    by_row: float = 0.0

    @property
    def formula(self) -> str:
        """Of the fit."""
        return "y ~ 1 + (1 | g)" if self.by_group == self.by_row == 0 else "y ~ arm + x + (1 | g)"

    def eta(self, table, b) -> np.ndarray:
        """The linear predictor."""
        return self.intercept + self.by_group * table["arm"] + self.by_row * table["x"] + b

    def rows(self, rng, groups: int, sizes) -> pd.DataFrame:
        """Columns but the response, groups counted from 0."""
        g = np.repeat(np.arange(groups), sizes)
        return pd.DataFrame({"g": g, "arm": g % 2 * 1.0, "x": rng.standard_normal(len(g))})


SETTINGS = {
    "mixed": Setting(tuple(range(1, 9))),
    "three": Setting((3,)),
    "clusters": Setting(tuple(range(4, 11)), by_group=0.5, by_row=0.5),
}


def replicate(setting: Setting, groups: int, tau: float, seed: int) -> dict[str, float]:
    """Shares covered, and whether the standard deviation was estimated as zero."""
    rng = np.random.default_rng([seed, groups, round(100 * tau), *setting.sizes])
    data = setting.rows(rng, groups, rng.permutation(np.resize(setting.sizes, groups)))
    b = tau * rng.standard_normal(groups)
    data["y"] = (rng.random(len(data)) < 1 / (1 + np.exp(-setting.eta(data, b[data["g"]])))) * 1.0
    fit = jg.fit(setting.formula, data, family="binomial", method="agq", n_agq=15)
    known = data.drop_duplicates("g")
    new = setting.rows(rng, NEW, 1).assign(g=lambda d: d["g"] + groups)
    drawn = tau * rng.standard_normal(NEW)
    inside = lambda table, truth: float(np.mean((table["lower"] <= truth) & (truth <= table["upper"])))
    predicted = lambda rows, b: inside(fit.predict(rows, kind="link", interval=LEVEL), np.asarray(setting.eta(rows, b)))
    return {
        "with": inside(fit.ranef(interval=LEVEL), b),
        "given": inside(fit.ranef(interval=LEVEL, uncertainty=False), b),
        "known": predicted(known, b),
        "new": predicted(new, drawn),
        "zero": float(fit.varcorr[0]["sd"] == 0),
    }


def simulate(groups: int, tau: float, replicates: int, log: Path | None = None, *, setting: str = "mixed") -> dict:
    """Means over replicates with their standard errors; replicate i is drawn from seed i.

    Each is a line of the file `log`, and one that is there already is not run again.
    """
    found = []
    if log is not None and log.exists():
        found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()][:replicates]
    while len(found) < replicates:
        found.append(replicate(SETTINGS[setting], groups, tau, len(found)))
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
    out = {"setting": setting, "groups": groups, "tau": tau, "replicates": replicates}
    for kind in found[0]:
        values = np.array([f[kind] for f in found])
        out[kind], out[f"{kind}_se"] = float(values.mean()), float(values.std(ddof=1) / np.sqrt(replicates))
    return out


def table(results: list[dict]) -> str:
    """A Markdown table of coverages in per cent."""
    lines = ["| setting | sd | groups | replicates | " + " | ".join(KINDS) + " |", "| --- " * (4 + len(KINDS)) + "|"]
    for r in results:
        cells = [f"{100 * r[kind]:.1f} ({100 * r[f'{kind}_se']:.1f})" for kind in KINDS]
        lines.append(
            f"| {r['setting']} | {r['tau']:g} | {r['groups']:,} | {r['replicates']:,} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def draw(results: list[dict], path: Path) -> None:
    """Coverage as dots with two standard errors, a line for the nominal level."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 0.9 + 0.42 * len(results)), layout="constrained")
    ax = fig.add_subplot()
    names = [f"{r['setting']}, sd {r['tau']:g}, {r['groups']:,} groups" for r in results]
    for shift, kind, color, label in (
        (0.2, "known", "#20639b", "rows of known groups"),
        (0.0, "new", "#3b8d4f", "rows of new groups"),
        (-0.2, "given", "#c8553d", "effects, parameters taken as known"),
    ):
        at = [i + shift for i in range(len(results))]
        values, errors = [100 * r[kind] for r in results], [200 * r[f"{kind}_se"] for r in results]
        ax.errorbar(values, at, xerr=errors, fmt="o", ms=5, lw=1.3, color=color, label=label)
    ax.axvline(100 * LEVEL, color="#8a8f98", lw=0.9, ls=(0, (4, 3)))
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="within their 95 % interval, % (+- 2 standard errors)")
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    ax.grid(axis="x", color="#d9dde3", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=144)


def main():
    """Run the simulation and write its results."""
    parser = argparse.ArgumentParser(description="Coverage of intervals of group effects and predictions.")
    parser.add_argument(
        "--settings", default="three:0.5,clusters:1", help=f"{', '.join(SETTINGS)}: with sds, as three:0.5"
    )
    parser.add_argument("--groups", default="15,30,99,101,200")
    parser.add_argument("--replicates", type=int, default=2000, help="of each case")
    parser.add_argument("--out", type=Path, default=Path("bench-results/coverage"), help="folder; a run goes on there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for case in options.settings.split(","):
        name, tau = case.split(":")
        for groups in map(int, options.groups.split(",")):
            began = time.process_time()
            log = options.out / f"{name}-{tau}-{groups}.jsonl"
            results.append(found := simulate(groups, float(tau), options.replicates, log, setting=name))
            print(
                f"{name}, sd {tau}, {groups} groups: "
                + ", ".join(f"{kind} {found[kind]:.4f} +- {found[f'{kind}_se']:.4f}" for kind in KINDS)
                + f"; sd^ = 0 in {found['zero']:.0%} of {options.replicates} ({time.process_time() - began:.0f} CPU s)",
                flush=True,
            )
    (options.out / "coverage.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (options.out / "coverage.md").write_text(table(results), encoding="utf-8")
    draw(results, options.out / "coverage.png")


if __name__ == "__main__":
    main()
