"""What was measured, as a table, as JSON and as a picture."""

import json
import math
import os
import platform
import textwrap
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench.contest import BUSY, Entry, Settings, environment
from bench.suites import Case


WORSE = 1e-3  # by which an objective may lie behind the best before that is told


def facts(settings: Settings) -> dict:
    """Where and how it was measured."""
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": environment(settings.threads),
        "runs": settings.runs,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def table(case: Case, entries: list[Entry]):
    """A case as a table of rich; ratios are to the first contender that has a time."""
    from rich.box import SIMPLE
    from rich.table import Table

    view = Table(title=case.name, title_justify="left", box=SIMPLE)
    for heading in ("contender", "median s", "ratio", "runs s", "CPU s", "first s", "peak MB", "objective"):
        view.add_column(heading, justify="left" if heading == "contender" else "right", no_wrap=True)
    view.add_column("remarks")
    ours = next((entry.median for entry in entries if entry.median), None)
    for entry in entries:
        if entry.median is None:
            view.add_row(entry.contender, "", "", "", "", "", "", "", entry.status)
            continue
        objective = entry.result.get("objective")
        view.add_row(
            entry.contender,
            f"{entry.median:.3f}",
            "" if ours is None else f"{entry.median / ours:.2f}",
            " ".join(f"{s:.3f}" for s in entry.seconds),
            f"{np.median(entry.cpu):.3f}" if entry.cpu else "",
            "" if entry.first is None else f"{entry.first:.2f}",
            f"{max(entry.peaks):.0f}" if entry.peaks else "",
            f"{objective:.4f}" if isinstance(objective, float) else "",
            ", ".join(remarks(case, entry, entries)),
        )
    return view


def _best(case, entries):
    """The best objective among contenders of the same model."""
    found = [e.result["objective"] for e in entries if e.result.get("objective") is not None and _same_model(e)]
    found = [v for v in found if math.isfinite(v)]
    return None if case.better is None or not found else max(found) if case.better == "higher" else min(found)


def _same_model(entry):
    return "model" not in entry.result


def remarks(case: Case, entry: Entry, entries: list[Entry]) -> list[str]:
    """What must be known of a time: an objective worse than another's, a busy machine, passes over the data."""
    found, best = [], _best(case, entries)
    if not _same_model(entry):
        found.append(entry.result["model"])
    elif best is not None and entry.result.get("objective") is not None:
        gap = (best - entry.result["objective"]) * (1 if case.better == "higher" else -1)
        if not gap <= WORSE:
            found.append(f"objective worse by {gap:.3g}")
    if max(entry.loads) > BUSY:
        found.append(f"busy machine: {max(entry.loads):.1f} cores")
    if "ingest" in entry.result:
        found.append(f"{entry.result['ingest']:.3f} s without the fit")
    if "passes" in entry.result:
        found.append(f"{entry.result['passes']:.1f} passes")
    return found


def write_json(path: Path, suite: str, settings: Settings, measured: list[tuple[Case, list[Entry]]]) -> None:
    """Everything that was measured."""
    found = {
        "suite": suite,
        "facts": facts(settings),
        "cases": [
            {"name": case.name, "size": case.size, "task": case.task, "spec": case.spec}
            | {"contenders": [asdict(entry) | {"median": entry.median} for entry in entries]}
            for case, entries in measured
        ],
    }
    path.write_text(json.dumps(found, indent=2) + "\n")


def draw(path: Path, title: str, measured: list[tuple[Case, list[Entry]]]) -> None:
    """Time and memory against size on logarithmic axes where sizes differ; else bars of the time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    done = [(case, entry) for case, entries in measured for entry in entries if entry.median]
    title = textwrap.fill(title, 90)  # constrained layout does not wrap it
    curves = len({case.size for case, _ in measured}) > 1  # the names of bars tell their cases apart
    label = lambda case, entry: f"{entry.contender}, {case.series}" if curves and case.series else entry.contender
    names = list(dict.fromkeys(label(*one) for one in done))
    colours = {name: f"C{k}" for k, name in enumerate(names)}
    if curves:
        figure, panels = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
        values = (lambda e: e.median, lambda e: max(e.peaks, default=None))
        for axes, value, unit in zip(panels, values, ("seconds, median", "peak resident memory, MB"), strict=True):
            for name in names:
                points = [(c.size, value(e)) for c, e in done if label(c, e) == name and value(e)]
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", color=colours[name], label=name)
            axes.set(xscale="log", yscale="log", xlabel="size (groups)", ylabel=unit)
            axes.grid(True, which="both", alpha=0.3)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    else:
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        axes.barh(
            [f"{case.name} · {e.contender}" for case, e in done],
            [e.median for _, e in done],
            color=[colours[label(*one)] for one in done],
        )
        axes.invert_yaxis()
        shortest = min((e.median for _, e in done), default=1.0)
        axes.set(xscale="log", xlabel="seconds, median", xlim=(shortest / 2, None))  # it has a bar too
        handles = [Line2D([], [], color=colours[name], marker="o", label=name) for name in names]
        axes.legend(handles=handles, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)
