"""One case, several contenders: each in a process of its own, on the same arrays, taking turns."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import CONTENDERS, Contender
from bench.suites import Case


HERE = Path(__file__).resolve().parent
BUSY = 0.3  # cores that others may use before a run
_LOOK = 0.5  # seconds over which that is measured


@dataclass(frozen=True)
class Settings:
    """How runs are made.

    Attributes
    ----------
    runs : int
        Measured runs of each contender.
    threads : int
        For BLAS, OpenMP, XLA and polars alike; on Linux also the number of processors that a contender may use.
    peers_python, rscript : str or None
        Interpreters of the peers.
    patience : float
        Seconds to wait for a quiet machine before a run is made all the same, and marked.
    limit : float
        Seconds after which a contender is given up.
    reach : float
        Seconds: a contender whose run took longer is left out at larger sizes.
    plain : bool
        Whether ours may be measured in plain JAX.
    """

    runs: int = 3
    threads: int = 2
    peers_python: str | None = None
    rscript: str | None = None
    patience: float = 60.0
    limit: float = 900.0
    reach: float = 60.0
    plain: bool = False


@dataclass
class Entry:
    """What was measured of one contender in one case.

    Attributes
    ----------
    status : str
        "done", or why there is nothing: "missing", "not covered", "failed: ..."
    first : float or None
        Seconds of the first run where it compiles.
    seconds, cpu, loads, peaks : list of float
        Of each measured run: wall time, that of all processors together, cores that others used just before, peak
        resident MB.
    result : dict
        What the task returned last; `objective` among it.
    describe : dict
    """

    contender: str
    status: str
    first: float | None = None
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    describe: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float | None:
        return float(np.median(self.seconds)) if self.seconds else None


def environment(threads: int) -> dict[str, str]:
    """Variables that give every library the same number of threads."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "RAYON", "VECLIB_MAXIMUM")
    return {f"{name}_NUM_THREADS": str(threads) for name in names} | {
        "POLARS_MAX_THREADS": str(threads),
        "NPROC": str(threads),
    }


def busy_cores() -> float:
    """Cores in use over the next half second; 0 where the system does not say."""
    try:
        (idle, total), began = _ticks(), time.perf_counter()
        time.sleep(_LOOK)
        (idle_now, total_now), passed = _ticks(), time.perf_counter() - began
    except OSError:
        return 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    return max(0.0, (total_now - total) - (idle_now - idle)) / ticks / passed


def _ticks() -> tuple[int, int]:
    fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender, task: str, folder: str, settings: Settings):
        self.limit = settings.limit
        if contender.runs_in == "R":
            command = [settings.rscript, str(HERE / "worker.R"), contender.module, folder]
        else:
            python = sys.executable if contender.runs_in == "ours" else settings.peers_python
            command = [python, str(HERE / "worker.py"), contender.module, task, folder]
        variables = os.environ | environment(settings.threads) | contender.environment
        self.errors = tempfile.TemporaryFile("w+")
        with _processors(settings.threads):
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=variables,
                cwd=folder,
            )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.orders, self.answers = self.process.stdin, self.process.stdout

    def answer(self) -> dict[str, Any]:
        """The next line of the protocol; {"status": "failed: ..."} when there is none."""
        import selectors

        with selectors.DefaultSelector() as selector:
            selector.register(self.answers, selectors.EVENT_READ)
            if not selector.select(self.limit):
                return {"status": f"failed: longer than {self.limit:g} s"}
        line = self.answers.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().strip().splitlines()[-2:] or [f"exit status {self.process.returncode}"]
        return {"status": f"failed: {' '.join(last)}"}

    def run(self) -> dict[str, Any]:
        """Do the task once."""
        try:
            self.orders.write("run\n")
            self.orders.flush()
        except OSError:
            return {"status": "failed: the process ended"}
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


@contextmanager
def _processors(threads):
    """Processes started within may use so many processors: what XLA and others count threads by."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def missing(name: str, settings: Settings) -> str:
    """Why a contender cannot run here; empty where it can."""
    contender = CONTENDERS[name]
    if contender.runs_in == "R":
        if settings.rscript is None:
            return "missing: no Rscript"
        test = "for (p in commandArgs(TRUE)) if (!requireNamespace(p, quietly = TRUE)) quit(status = 1)"
        command = [settings.rscript, "-e", test, *contender.needs, "jsonlite"]
    else:
        python = sys.executable if contender.runs_in == "ours" else settings.peers_python
        if python is None:
            return "missing: no --peers-python"
        test = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))"
        command = [python, "-P", "-c", test, *contender.needs]
    done = subprocess.run(command, capture_output=True, cwd=HERE)
    return f"missing: {', '.join(contender.needs)} not installed there" if done.returncode else ""


class NotNative(Exception):
    """Ours computes in plain JAX."""


def refuse_plain(name: str, describe: dict[str, Any], settings: Settings) -> None:
    """Raise NotNative where a contender computes in plain JAX, and neither its name nor the settings ask for that."""
    asked = settings.plain or CONTENDERS[name].environment.get("JAXGLMM_KERNELS") == "plain"
    if (why := describe.get("plain")) and not asked:
        raise NotNative(f"{name} computes in plain JAX: {why}")


def out_of_reach(name: str, case: Case, measured: list[tuple[Case, list[Entry]]], settings: Settings) -> str:
    """Why a contender is not run at this size, given what was measured at smaller ones; empty where it is."""
    for smaller, entries in measured:
        for entry in entries:
            if entry.contender != name or (smaller.task, smaller.series) != (case.task, case.series):
                continue
            if smaller.size < case.size and (entry.median or 0.0) > settings.reach:
                return f"left out: {entry.median:.0f} s at {smaller.name}"
            if smaller.size < case.size and entry.status.startswith("failed"):
                return f"left out: failed at {smaller.name}"
    return ""


def contest(case: Case, names, settings: Settings, note=lambda text: None, measured=()) -> list[Entry]:
    """Measure a case.

    Parameters
    ----------
    case : Case
    names : iterable of str
        Contenders, in the order of the table.
    settings : Settings
    note : callable
        Told what happens.
    measured : sequence of (Case, list of Entry)
        What was measured before.

    Raises
    ------
    NotNative
        When ours computes in plain JAX, unasked: without its library or by JAXGLMM_KERNELS, and `settings.plain` is not
        set.
    """
    entries, workers = [], {}
    with tempfile.TemporaryDirectory(prefix="jaxglmm-bench-") as folder:
        _write(case, folder)
        try:
            for name in names:
                entry = Entry(name, out_of_reach(name, case, measured, settings) or missing(name, settings))
                entries.append(entry)
                if entry.status:
                    continue
                worker = workers[name] = Worker(CONTENDERS[name], case.task, folder, settings)
                ready = worker.answer()
                entry.status, entry.describe = ready["status"], ready.get("describe", {})
                refuse_plain(name, entry.describe, settings)
            running = [entry for entry in entries if entry.status == "ready"]
            for entry in running:
                if CONTENDERS[entry.contender].compiles:
                    note(f"{case.name}: {entry.contender}, first run")
                    entry.first = _run(workers[entry.contender], entry, settings, measured=False)
            for turn in range(settings.runs):
                for entry in running:
                    if entry.status in ("ready", "done"):
                        note(f"{case.name}: {entry.contender}, run {turn + 1} of {settings.runs}")
                        _run(workers[entry.contender], entry, settings)
        finally:
            for worker in workers.values():
                worker.close()
    return entries


def _write(case: Case, folder: str) -> None:
    for name, values in case.arrays.items():
        np.save(Path(folder) / f"{name}.npy", values)
    for name, path in case.files.items():
        _link(path, Path(folder) / name)
    (Path(folder) / "spec.json").write_text(json.dumps(case.spec))


def _link(path, to) -> None:
    """A file that the contenders only read, without a second copy where that is possible."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copy(path, to)


def _run(worker, entry, settings, measured=True):
    """One run, on a quiet machine where that can be had; returns its seconds."""
    load, waited = busy_cores(), 0.0
    while measured and load > BUSY and waited < settings.patience:
        time.sleep(1.0)
        waited += 1.0 + _LOOK
        load = busy_cores()
    answer = worker.run()
    error = answer.get("result", {}).get("error")
    if answer["status"] != "done" or error:
        entry.status = f"failed: {error}" if error else answer["status"]
        return None
    entry.status, entry.result = "done", answer["result"]
    if measured:
        entry.seconds.append(answer["seconds"])
        entry.cpu.append(answer["cpu"])
        entry.loads.append(load)
        if answer.get("peak_mb"):
            entry.peaks.append(answer["peak_mb"])
    return answer["seconds"]
