"""Pairs of levels and nesting against direct enumeration."""

import numpy as np
import pytest

from jaxglmm.design.pairs import find_pairs, level_order, nesting_chain


@pytest.fixture(scope="module")
def crossed():
    rng = np.random.default_rng(5)
    return rng.integers(0, 40, 500).astype(np.int32), rng.integers(0, 9, 500).astype(np.int32)


def test_an_order_is_a_stable_sort(crossed):
    codes, _ = crossed
    order = level_order(codes, 45)
    assert (order.rows == np.argsort(codes, kind="stable")).all()
    assert (np.diff(order.start) == np.bincount(codes, minlength=45)).all()


def test_pairs_are_the_distinct_combinations(crossed):
    a, b = crossed
    pairs = find_pairs(a, 41, b, 10)
    distinct, row = np.unique(np.stack([a, b]), axis=1, return_inverse=True)
    assert (pairs.first == distinct[0]).all() and (pairs.second == distinct[1]).all()
    assert (pairs.row == row.ravel()).all() and len(pairs) == distinct.shape[1]
    assert (np.diff(pairs.start) == np.bincount(distinct[0], minlength=41)).all()
    assert not pairs.nested


def test_nesting_is_found_in_the_data():
    rng = np.random.default_rng(6)
    hospital_of, region_of = rng.integers(0, 12, 60), rng.integers(0, 3, 12)
    member = np.append(np.arange(60), rng.integers(0, 60, 200))
    hospital = hospital_of[member]
    codes, levels = [hospital, member, region_of[hospital]], [12, 60, 3]
    assert nesting_chain(codes, levels) == (1, 0, 2)
    assert find_pairs(member, 60, hospital, 12).nested
    codes[2] = rng.integers(0, 3, 260)
    assert nesting_chain(codes, levels) is None


def test_one_factor_twice_is_a_chain_and_ties_in_size_are_seen():
    a = np.array([0, 0, 1, 1])
    assert nesting_chain([a, 1 - a], [2, 2]) == (0, 1)
    assert nesting_chain([a, np.array([0, 1, 0, 1])], [2, 2]) is None
