"""`jaxglmm demo`: several visits per patient, from the raw table to ranked patients and a report."""

import json
from pathlib import Path

from jaxglmm.report import Picture, Section, Table, show, write_page


FORMULA = "outcome ~ treatment * time + (1 | patientID)"
EVENT = "moderate or severe"
TITLE = "Toenail infection: which patients stay ill?"
_Z95 = 1.959963984540054
_SHOWN = 8  # patients at each end of the ranking


def toenail():
    """The bundled data: one row a visit, with patientID, outcome, treatment, time (months) and visit (1 to 7).

    Returns
    -------
    pandas.DataFrame
        (1908, 5), of 294 patients.

    References
    ----------
    De Backer et al. (1998), J. Am. Acad. Dermatol. 38, S57. Lesaffre & Spiessens (2001), Appl. Statist. 50, 325.
    """
    import pandas as pd

    return pd.read_csv(Path(__file__).parent / "data" / "toenail.csv")


def run(out="jaxglmm-demo", console=None) -> Path:
    """Fit the bundled toenail trial, explain it on the console, and write the report.

    Parameters
    ----------
    out : str or path
        Folder of the report; files of an earlier one are replaced.
    console : rich.console.Console, optional

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    DataError
        When the folder cannot be written.
    """
    from rich.console import Console

    import jaxglmm as jg

    if console is None:
        console = Console()
        console.width = console.width if console.is_terminal else 100
    folder = _folder(out)
    data = toenail()
    sections = [_the_data(data)]
    show(sections[0], console)
    # The second level is the one that is modelled; in alphabetical order that would be the healthy one.
    levels = {"outcome": ["none or mild", EVENT]}
    quadrature = jg.fit(FORMULA, data, family="binomial", levels=levels)
    laplace = jg.fit(FORMULA, data, family="binomial", levels=levels, method="laplace")
    sections.append(_the_fits(quadrature, laplace))
    show(sections[1], console)
    patients = _patients(data, quadrature)
    sections.append(_the_patients(patients, quadrature))
    show(sections[2], console)
    sections.append(_the_reading(quadrature, laplace, patients))
    show(sections[3], console)

    pictures = _draw(folder, data, quadrature)
    sections.append(Section("Pictures", pictures))
    write_page(folder / "report.html", TITLE, sections, quadrature.summary().text)
    patients.to_csv(folder / "patients.csv", index=False)
    (folder / "fit.json").write_text(json.dumps(quadrature.to_dict(), indent=2, ensure_ascii=False) + "\n")
    console.print(f"The report: {folder / 'report.html'}", soft_wrap=True, highlight=False)
    console.print(f"Beside it: patients.csv, fit.json, {', '.join(p.file for p in pictures)}", highlight=False)
    return folder


def _folder(out) -> Path:
    from jaxglmm.errors import DataError

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").touch()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"--out {str(out)!r} cannot be written ({reason}); name another folder") from None
    return folder


def _the_data(data) -> Section:
    ill = data["outcome"] == EVENT
    visits = data.groupby("patientID").size()
    counts = visits.value_counts().sort_index()
    share = ill.groupby([data["visit"], data["treatment"]]).mean().unstack()
    arms = list(share.columns)
    head = data.head(5).itertuples(index=False)
    return Section(
        "The data",
        [
            f"{len(data):,} visits of {len(visits)} patients, who took one of two drugs for 12 weeks and were seen up "
            f"to {visits.max()} times in about a year. At each visit the nail was judged: {EVENT}, or none or mild.",
            Table("First rows", tuple(data.columns), [tuple(map(_cell, row)) for row in head], labels=3),
            Table("Visits per patient", ("visits", *map(str, counts.index)), [("patients", *map(str, counts))]),
            Table(
                f"Share of patients {EVENT}, at each visit",
                ("drug", *(str(v) for v in share.index)),
                [(arm, *(f"{v:.0%}" for v in share[arm])) for arm in arms],
            ),
        ],
    )


def _the_fits(quadrature, laplace) -> Section:
    pair = (quadrature, laplace)
    row = lambda name, of: (name, *(of(fit) for fit in pair))
    rows = [
        row(name, lambda fit, name=name: f"{fit.fixef[name]:+.4f} ({fit.fixef_se[name]:.4f})")
        for name in quadrature.names
    ]
    rows += [
        row("sd between patients", lambda fit: f"{fit.varcorr[0]['sd']:.4f}"),
        row("log-likelihood", lambda fit: f"{fit.loglik:.4f}"),
        row("nodes per patient", lambda fit: str(fit.n_agq)),
        row("Newton decrement", lambda fit: f"{fit.convergence.decrement:.0e}"),
        row("seconds, compiling included", lambda fit: f"{sum(fit.convergence.timings.values()):.1f}"),
    ]
    return Section(
        "The model",
        [
            f"{FORMULA}, which models {quadrature.modelled}. The logit of that probability has a level of its own for "
            "each patient, drawn from a normal distribution whose standard deviation is estimated. Its likelihood "
            "needs an integral for each patient: by adaptive quadrature it is exact to the digits shown; Laplace's "
            "approximation replaces it by a formula.",
            Table("Estimates on the logit scale (standard errors)", ("", "quadrature", "Laplace"), rows),
        ],
    )


def _patients(data, fit):
    """One row a patient: visits, raw and shrunken shares, posterior of the effect, rank."""
    ill = (data["outcome"] == EVENT).rename("ill")
    rows = data[["patientID", "treatment"]].assign(ill=ill, shrunken=fit.predict(data))
    table = rows.groupby("patientID", as_index=False).agg(
        treatment=("treatment", "first"), visits=("ill", "size"), ill=("ill", "sum"), shrunken=("shrunken", "mean")
    )
    effects = fit.ranef("patientID", interval=0.95)
    effects = effects.rename(columns={"level": "patientID", "lower": "low", "upper": "high"})
    table = table.merge(effects[["patientID", "mean", "sd_mean", "low", "high", "reliability"]], on="patientID")
    table = table.sort_values(["mean", "patientID"], ascending=[False, True], ignore_index=True)
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def _the_patients(patients, fit) -> Section:
    header = ("rank", "patient", "drug", "ill at", "shrunken", "effect", "from", "to", "rel.")
    line = lambda p: (
        str(p.rank), str(p.patientID), p.treatment, f"{p.ill} of {p.visits}", f"{p.shrunken:.0%}",
        f"{p.mean:+.2f}", f"{p.low:+.2f}", f"{p.high:+.2f}", f"{p.reliability:.2f}",
    )  # fmt: skip
    ends = patients.head(_SHOWN), patients.tail(_SHOWN)
    top, bottom = (list(map(line, part.itertuples(index=False))) for part in ends)
    gap = ("", "...", *[""] * (len(header) - 2))
    return Section(
        "The patients",
        [
            f"All {len(patients)} patients ranked by the posterior mean of their effect: how far each is from a "
            "typical patient with the same drug at the same time, on the logit scale, with its 95 % interval. "
            "'ill at' counts the patient's own visits, 'shrunken' is the model's mean probability for them; "
            "'rel.' is the reliability, the share of the variance between patients that a patient's visits explain.",
            Table("Ranked patients", header, [*top, gap, *bottom], labels=3),
        ],
    )


def _the_reading(quadrature, laplace, patients) -> Section:
    import math

    tau, approximate = (fit.varcorr[0]["sd"] for fit in (quadrature, laplace))
    fixef, se = quadrature.fixef, quadrature.fixef_se
    slope = "treatment[T.terbinafine]:time"
    one, both = (1 - math.exp(fixef["time"] + extra) for extra in (0.0, fixef[slope]))
    z = fixef[slope] / se[slope]
    alike = int(((patients["ill"] == 0) | (patients["ill"] == patients["visits"])).sum())
    return Section(
        "What it means",
        [
            f"Patients differ greatly: the standard deviation of {tau:.2f} between them is much more than any effect "
            f"of the drugs. For {alike} of {len(patients)} all visits have the same outcome; how far out they are is "
            "decided by the normal distribution, their drug and their visits' times: the wide intervals say so.",
            f"A given patient's odds of being ill fall by {one:.0%} a month with itraconazole and by {both:.0%} with "
            f"terbinafine; the drugs {'differ' if abs(z) > _Z95 else 'do not differ'} at the 5 % level (z = {z:.2f}).",
            f"Laplace's approximation puts the standard deviation at {approximate:.2f}, {approximate / tau - 1:.0%} "
            "too high: with at most seven yes-or-no visits a patient, the posterior is far from normal. method='auto' "
            "uses quadrature here, and reports how far Laplace's log-likelihood would have been off.",
        ],
    )


def _draw(folder: Path, data, fit) -> list[Picture]:
    from jaxglmm import plots

    plots.caterpillar(fit, "patientID", path=folder / "patients.png")
    plots.shrinkage(fit, "patientID", path=folder / "shrinkage.png")
    plots.calibration(fit, path=folder / "calibration.png")
    _course(folder / "course.png", data, fit)
    return [
        Picture(
            "course.png",
            "Observed shares at each visit, the model's average over patients (lines), and a patient with effect 0 "
            "(dashed): with patients this different, the two are not the same curve.",
        ),
        Picture("patients.png", "Posterior mean of each patient's effect in order, with 95 % intervals."),
        Picture("shrinkage.png", "What each patient's own visits say against what the model makes of it."),
        Picture(
            "calibration.png",
            "Shares predicted from drug and time alone against observed ones, by tenths of the visits.",
        ),
    ]


def _course(path: Path, data, fit) -> None:
    """Share of ill patients over time, observed and by the model."""
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from jaxglmm.plots import BLUE, GREY, PALE, RED

    fig = Figure(figsize=(6.8, 4.2), layout="constrained")
    ax = fig.add_subplot()
    time = np.linspace(0, data["time"].quantile(0.99), 80)
    for arm, color in zip(sorted(data["treatment"].unique()), (BLUE, RED), strict=True):
        seen = data[data["treatment"] == arm].assign(ill=lambda d: d["outcome"] == EVENT).groupby("visit")
        x, y, n = seen["time"].mean(), seen["ill"].mean(), seen.size()
        ax.errorbar(x, y, yerr=2 * np.sqrt(y * (1 - y) / n), fmt="o", ms=4, lw=1, color=color)
        grid = pd.DataFrame({"time": time, "treatment": arm, "patientID": -1})
        ax.plot(time, fit.predict(grid, effects="marginal"), color=color, label=arm)
        ax.plot(time, fit.predict(grid, effects="population"), color=color, lw=1, ls=(0, (4, 3)))
    ax.set(xlabel="months", ylabel=f"share {EVENT}", ylim=(0, None))
    ax.set_title("Course of the infection", loc="left")
    ax.grid(color=PALE, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.plot([], [], color=GREY, lw=1, ls=(0, (4, 3)), label="patient with effect 0")
    ax.legend(frameon=False)
    from jaxglmm.ops.files import replacing_file

    with replacing_file(path) as fresh:
        fig.savefig(fresh, dpi=144)


def _cell(value) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
