"""A contender in a process of its own: `python worker.py MODULE TASK FOLDER`.

Reads the arrays in FOLDER (NAME.npy, spec.json), says {"status": "ready"}, and then does the task once for each line
"run" on standard input, answering with a line of JSON: seconds, those of all
processors together, peak resident memory, and what the task returned.
It is run by the peers' interpreter, so that it uses NumPy and the standard library only.
"""

import importlib
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np


def main(module: str, task: str, folder: str) -> None:
    # What libraries print must not get between the lines of the protocol.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    warnings.simplefilter("ignore")
    spec = json.loads((Path(folder) / "spec.json").read_text())
    arrays = {path.stem: np.load(path) for path in sorted(Path(folder).glob("*.npy"))}
    peer = importlib.import_module(f"peers.{module}")
    make = getattr(peer, task, None)
    run = make(arrays, spec) if make else None
    if run is None:
        say(status="not covered")
        return
    say(status="ready", describe=peer.describe())
    for line in sys.stdin:
        if line.strip() != "run":
            break
        before = _reset_peak()
        began, processor = time.perf_counter(), time.process_time()
        try:
            result = run()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        seconds = time.perf_counter() - began
        processor = time.process_time() - processor
        say(status="done", seconds=seconds, cpu=processor, before_mb=before, peak_mb=_memory("VmHWM"), result=result)


def _memory(field: str) -> float | None:
    """MB of a line of /proc/self/status; None where there is no such file."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def _reset_peak() -> float | None:
    """Let the peak start anew; returns what is resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _memory("VmRSS")


if __name__ == "__main__":
    main(*sys.argv[1:])
