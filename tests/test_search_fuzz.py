"""A slice of the search fuzz (`bench.search_fuzz`): nothing but answers and the package's own errors."""

import pytest

from bench.search_fuzz import run


# Of two thousand, the seeds whose offsets once ended in errors from linear algebra, and some others.
SEEDS = (837, 940, 991, 1328, *range(4))


def test_extreme_models_end_in_answers_or_errors_of_their_own():
    counts = run(SEEDS, tell=lambda text: None)
    assert counts["fault"] == 0 and sum(counts.values()) == len(SEEDS)


@pytest.mark.parametrize("seed", [0, 10])
def test_converged_fits_are_not_beaten_by_a_dense_optimiser(seed):
    told = []
    counts = run([seed], check=1, tell=told.append)
    assert counts["compared"] == 1 and not told


@pytest.mark.slow
def test_two_thousand_models():
    assert run(range(2000), tell=print)["fault"] == 0
