"""`python -m bench`: list the suites; `python -m bench NAME`: run one."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from bench import report, suites
from bench.contest import NotNative, Settings, busy_cores, contest
from bench.peers import CONTENDERS


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    top.add_argument("suite", nargs="?", help="the suite to run; without it, a list of them")
    top.add_argument("--sizes", type=_sizes, help="sizes to run instead of the suite's own, such as 1000,100000")
    top.add_argument("--peers", help="contenders to run instead of the suite's own, by commas")
    top.add_argument("--runs", type=int, default=3, help="measured runs of each contender (3)")
    top.add_argument("--threads", type=int, default=2, help="threads of every contender (2)")
    top.add_argument(
        "--peers-python", default=os.environ.get("JAXGLMM_PEERS_PYTHON", sys.executable),
        help="interpreter in which the Python peers are installed (JAXGLMM_PEERS_PYTHON, else this one)",
    )  # fmt: skip
    top.add_argument("--rscript", default=shutil.which("Rscript"), help="Rscript, for the peers in R")
    top.add_argument("--patience", type=float, default=60, help="seconds to wait for a quiet machine (60)")
    top.add_argument("--limit", type=float, default=900, help="seconds after which a contender is given up (900)")
    top.add_argument(
        "--reach", type=float, default=60, help="a contender that took more seconds is left out at larger sizes (60)"
    )
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--plain", action="store_true", help="measure ours even where plain JAX computes")
    top.add_argument("--out", type=Path, default=Path("bench-results"), help="folder for NAME.json and NAME.png")
    return top


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(float(part)) for part in text.split(","))


def main(arguments=None) -> int:
    """Run the command line; returns the exit status."""
    from rich.console import Console

    options, console = parser().parse_args(arguments), Console()
    console.width = max(console.width, 130)  # narrower, the numbers would be cut
    if options.suite is None:
        for name in suites.names():
            console.print(f"  {name:18} {suites.load(name).TITLE}", highlight=False)
        console.print(f"  {'device':18} every operation and a fit on this machine's accelerator against its CPU")
        return 0
    if options.suite == "device":
        from bench.device import main as device

        return device(*(options.sizes or ())[:1])
    try:
        suite = suites.load(options.suite)
    except KeyError as error:
        console.print(error.args[0])
        return 2
    names = options.peers.split(",") if options.peers else suite.PEERS
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        console.print(f"there is no contender {unknown[0]!r}; contenders: {', '.join(CONTENDERS)}")
        return 2
    settings = Settings(
        runs=options.runs, threads=options.threads, peers_python=options.peers_python, rscript=options.rscript,
        patience=options.patience, limit=options.limit, reach=options.reach,
        plain=options.plain,
    )  # fmt: skip
    console.print(f"{suite.TITLE}\nthreads of every contender: {settings.threads}; others use {busy_cores():.1f} cores")
    measured = []
    try:
        for size in options.sizes or suite.SIZES:
            for case in suite.cases(size, options.seed):
                with console.status("") as line:
                    entries = contest(case, names, settings, note=line.update, measured=measured)
                console.print(report.table(case, entries))
                case.arrays.clear()  # the next case may need the memory
                measured.append((case, entries))
    except NotNative as error:
        console.print(f"{error}\nPlain JAX is not measured in the native kernels' place unless asked for: --plain")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    report.write_json(options.out / f"{options.suite}.json", options.suite, settings, measured)
    report.draw(options.out / f"{options.suite}.png", suite.TITLE, measured)
    console.print(f"written: {options.out / options.suite}.json and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
