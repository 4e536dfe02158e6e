"""A fuzz of the public face: every call is answered rightly, or refused by an error of the package's own.

A seed is a call: a table (`public_tables`), a formula with options, and verbs asked of the fit (`public_calls`). What
is no refusal is judged (`public_judge`, `public_truth`): by densities, by the same rows in another order and after
saving, by bounds. A raw exception, a warning of another library and text on the terminal are faults.
"""

from pathlib import Path

import pytest
from public_calls import call_of
from public_judge import Judge


def judged(seeds, folder: Path, quick: bool = False):
    """The faults of the calls of some seeds, and how many public functions were called."""
    judge, faults = Judge(folder), []
    for seed in seeds:
        faults += [f"seed {seed}: {fault}" for fault in judge.judge(call_of(seed, quick))]
    return faults, sum(judge.counts.values())


def test_a_slice(tmp_path):
    faults, calls = judged(range(40), tmp_path, quick=True)
    assert not faults, "\n".join(faults)
    assert calls >= 80


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1500, 100))
def test_calls_about_gaussian_responses(first, tmp_path):
    faults, _ = judged(range(first, first + 100), tmp_path, quick=True)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("first", [*range(0, 300, 50), *range(1000, 1300, 50)])
def test_calls_of_all_kinds(first, tmp_path):
    faults, _ = judged(range(first, first + 50), tmp_path)
    assert not faults, "\n".join(faults)
