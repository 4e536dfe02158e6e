"""A line that tells how a long fit is going."""

import math
import sys
import time


class Progress:
    """Rewrites one line on standard error, after two seconds, on a terminal; keeps the steps in any case.

    Parameters
    ----------
    show : bool, optional
        True shows it from the start and anywhere; False never; by default as described.
    """

    def __init__(self, show: bool | None = None):
        self.show, self.began, self.written, self.steps = show, time.perf_counter(), False, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.written:
            print(file=sys.stderr)

    def update(self, iteration, value, decrement, x):
        """Callback of the optimiser; `steps` keeps [value, decrement] of each, None where that is infinite."""
        self.steps.append([float(value), float(decrement) if math.isfinite(decrement) else None])
        seconds = time.perf_counter() - self.began
        wanted = self.show if self.show is not None else sys.stderr.isatty() and seconds > 2
        if wanted:
            text = f"step {iteration}: log-likelihood {value:.6f}, decrement {decrement:.1e}, {seconds:.1f} s"
            print(f"\r{text:<78}", end="", file=sys.stderr, flush=True)
            self.written = True


class Tally:
    """Rewrites one line on standard error: how many of many fits are done, how fast, and the time left.

    Parameters
    ----------
    total : int
    show : bool, optional
        As in `Progress`.
    """

    def __init__(self, total: int, show: bool | None = None):
        self.total, self.show, self.began, self.done, self.written = total, show, time.perf_counter(), 0, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.written:
            print(file=sys.stderr)

    def add(self, count: int, *, skipped: bool = False):
        """So many more are done; `skipped` ones took no time and say nothing about the rate."""
        self.done += count
        if skipped:
            self.total, self.done = self.total - count, self.done - count
        seconds = time.perf_counter() - self.began
        wanted = self.show if self.show is not None else sys.stderr.isatty() and seconds > 2
        if wanted and self.done:
            rate = self.done / max(seconds, 1e-9)
            left = (self.total - self.done) / rate
            text = f"{self.done:,} of {self.total:,} fits, {rate:,.0f} a second, {left:,.0f} s left"
            print(f"\r{text:<78}", end="", file=sys.stderr, flush=True)
            self.written = True
