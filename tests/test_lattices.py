"""Native sums over lattices against numpy, and quantiles against normal ones."""

import numpy as np
import pytest
from scipy.stats import norm

from jaxglmm.fitted.lattice import kernel, quantiles
from jaxglmm.fitted.ranking import normal_pieces
from jaxglmm.ops import lattices, native


pytestmark = pytest.mark.native


@pytest.fixture
def piece():
    """Normal densities of three spacings."""
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(0, 2, 300), rng.uniform(0.2, 1.5, 300)
    return next(iter(normal_pieces(mean, sd)))


def both(monkeypatch, work):
    found = work()
    monkeypatch.setattr(native, "use_native", lambda *_: False)
    return found, work()


def test_sums_are_those_of_numpy(piece, monkeypatch):
    levels, level = np.unique(piece.step, return_inverse=True)
    K, first = len(piece.weights), piece.first.astype(np.int64)
    assert len(levels) > 2
    low = np.array([first[level == v].min() for v in range(len(levels))])
    length = np.array([first[level == v].max() + K for v in range(len(levels))]) - low
    at = np.cumsum(length) - length

    def mass():
        out = np.zeros(length.sum())
        lattices.add(piece.weights.T, first, level, low, at, out)
        return out

    found, expected = both(monkeypatch, mass)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-300)
    assert found.sum() == pytest.approx(300)


def test_expectations_are_those_of_numpy(piece, monkeypatch):
    """Two functions, the second on a part of the lattice only: beyond it the outermost window serves."""
    levels, level = np.unique(piece.step, return_inverse=True)
    K, first, rng = len(piece.weights), piece.first.astype(np.int64), np.random.default_rng(1)
    low, length = int(first.min()), int(np.ptp(first)) + K
    origin = np.tile([low, low + 20], (len(levels), 1))
    lengths = np.tile([length, K + 9], (len(levels), 1))
    at = np.cumsum(lengths).reshape(lengths.shape) - lengths
    tables = lattices.Tables(origin, at, lengths, rng.normal(size=lengths.sum()))
    found, expected = both(monkeypatch, lambda: lattices.expect(piece.weights.T, first, level, tables))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    g, v = 17, level[17]
    direct = [
        piece.weights[:, g] @ tables.flat[at[v, t] + (np.clip(first[g] - origin[v, t], 0, lengths[v, t] - K)) :][:K]
        for t in (0, 1)
    ]
    np.testing.assert_allclose(found[:, g], direct, rtol=1e-12)


def test_quantiles_of_normal_densities(piece, monkeypatch):
    p = np.array([1e-6, 0.025, 0.5, 0.9, 1 - 1e-6])
    found, plain = both(monkeypatch, lambda: quantiles(piece.first, piece.step, piece.weights, p))
    exact = norm.ppf(p, piece.mean[:, None], piece.sd[:, None])
    np.testing.assert_allclose(found[:, 1:4], exact[:, 1:4], atol=1e-8)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    np.testing.assert_allclose(plain, exact, atol=1e-6)


def test_the_kernel_of_quantiles():
    K = 5
    table = lattices.fine_kernel(kernel, K)
    assert table.shape == (16, 9)
    assert table[8, 3] == kernel(0.5 + K - 1 - 3)
