"""Coverage of the intervals of group effects by simulation: `python -m bench.coverage`.

Logistic regression with a random intercept: intercept -0.5, groups of 1 to 8 rows. Of each replicate the share of
groups whose effect lies within its nominal 95 % interval, with the parameters' uncertainty
(`fit.ranef(interval=0.95)`) and without; replicates whose estimated standard deviation is zero count. The mean over
replicates has the standard error printed beside it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

import jaxglmm as jg


LEVEL = 0.95


def replicate(groups: int, tau: float, seed: int) -> dict[str, float]:
    """Shares of groups covered by the two kinds of interval, and whether tau was estimated as zero."""
    rng = np.random.default_rng([seed, groups, round(100 * tau)])
    sizes = rng.permutation(np.resize(np.arange(1, 9), groups))
    g = np.repeat(np.arange(groups), sizes)
    b = tau * rng.standard_normal(groups)
    y = (rng.random(len(g)) < 1 / (1 + np.exp(0.5 - b[g]))) * 1.0
    data = pd.DataFrame({"y": y, "g": g})
    fit = jg.fit("y ~ 1 + (1 | g)", data, family="binomial", method="agq", n_agq=15)
    inside = lambda table: float(np.mean((table["lower"] <= b) & (b <= table["upper"])))
    return {
        "with": inside(fit.ranef(interval=LEVEL)),
        "given": inside(fit.ranef(interval=LEVEL, uncertainty=False)),
        "zero": float(fit.varcorr[0]["sd"] == 0),
    }


def simulate(groups: int, tau: float, replicates: int, log: Path | None = None) -> dict:
    """Means over replicates with their standard errors; replicate i is drawn from seed i.

    Each is a line of the file `log`, and one that is there already is not run again.
    """
    found = []
    if log is not None and log.exists():
        found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()][:replicates]
    while len(found) < replicates:
        found.append(replicate(groups, tau, len(found)))
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
    out = {"groups": groups, "tau": tau, "replicates": replicates}
    for name in found[0]:
        values = np.array([f[name] for f in found])
        out[name], out[f"{name}_se"] = float(values.mean()), float(values.std(ddof=1) / np.sqrt(replicates))
    return out


def draw(results: list[dict], path: Path) -> None:
    """Coverage of both kinds of interval as dots with two standard errors, a line for the nominal level."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 2.6), layout="constrained")
    ax = fig.add_subplot()
    names = [f"{r['groups']:,} groups, sd {r['tau']:g}" for r in results]
    for shift, kind, color, label in (
        (0.12, "with", "#20639b", "with the parameters' uncertainty"),
        (-0.12, "given", "#c8553d", "parameters taken as known"),
    ):
        at = [i + shift for i in range(len(results))]
        values, errors = [100 * r[kind] for r in results], [200 * r[f"{kind}_se"] for r in results]
        ax.errorbar(values, at, xerr=errors, fmt="o", ms=5, lw=1.3, color=color, label=label)
    ax.axvline(100 * LEVEL, color="#8a8f98", lw=0.9, ls=(0, (4, 3)))
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="groups within their 95 % interval, % (+- 2 standard errors)")
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    ax.grid(axis="x", color="#d9dde3", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=144)


def main():
    """Run the simulation and write its results."""
    parser = argparse.ArgumentParser(description="Coverage of the intervals of group effects.")
    parser.add_argument("--groups", default="30,3000")
    parser.add_argument("--taus", default="0.5,1")
    parser.add_argument("--replicates", type=int, default=2000, help="of each case")
    parser.add_argument("--out", type=Path, default=Path("bench-results/coverage"), help="folder; a run goes on there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for groups in map(int, options.groups.split(",")):
        for tau in map(float, options.taus.split(",")):
            began = time.process_time()
            found = simulate(groups, tau, options.replicates, options.out / f"{groups}-{tau:g}.jsonl")
            print(
                f"{groups} groups, tau {tau}: {found['with']:.4f} +- {found['with_se']:.4f} with the parameters' "
                f"uncertainty, {found['given']:.4f} +- {found['given_se']:.4f} without; tau^ = 0 in "
                f"{found['zero']:.0%} of {options.replicates} replicates ({time.process_time() - began:.0f} CPU s)",
                flush=True,
            )
            results.append(found)
    (options.out / "coverage.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, options.out / "coverage.png")


if __name__ == "__main__":
    main()
