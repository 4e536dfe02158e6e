"""The native evaluation of many fits at once against that of each design alone."""

import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.batching.rows import group_begins, lane_rows
from jaxglmm.model.covariance import Covariance
from jaxglmm.objectives.evaluate import evaluate
from jaxglmm.objectives.glm import glm_evaluate
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.ops import lane_pass
from jaxglmm.optimise.batch_lanes import RowLanes
from jaxglmm.optimise.batch_newton import maximise_many


pytestmark = pytest.mark.native  # there is no plain form of the lanes


FAMILIES = {
    "logit": jg.Binomial(), "probit": jg.Binomial("probit"), "cloglog": jg.Binomial("cloglog"), "poisson": jg.Poisson(),
}  # fmt: skip
B, P = 19, 3


def lanes_of(family, blocks, shared, seed=0):
    """Fits of 1 to 6 groups of 1 to 9 rows, or all of one design."""
    rng = np.random.default_rng(seed)
    counts = np.sort(rng.integers(1, 10, (1 if shared else B, 6)), axis=1)[:, ::-1]
    if not shared:
        counts = np.where(np.arange(6) <= np.arange(B)[:, None] % 6, counts, 0)
    n = counts.sum(1)
    rows, S = int(n.sum()), sum(map(len, blocks))
    N = B * rows if shared else rows
    y = rng.integers(0, 3, N) * 1.0 if family.name == "poisson" else rng.integers(0, 2, N) * 1.0
    first = np.zeros(B, int) if shared else np.cumsum(n) - n
    rows = lane_rows(
        y, rng.normal(size=(rows, P)), rng.integers(1, 4, rows) * 1.0, 0.3 * rng.normal(size=rows),
        rng.normal(size=(S, rows)), design_row=first, response_row=np.arange(B) * rows if shared else first,
        begin=group_begins(counts), shared=shared, threads=2,
    )  # fmt: skip
    return RowLanes(family, rows, Covariance(blocks), rng.normal(size=B)), rng


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("link", FAMILIES)
def test_each_lane_is_the_evaluation_of_its_design(x64, link, shared):
    family = FAMILIES[link]
    for blocks, K in ((((0,),), 1), (((0,),), 5), (((0, 1),), 1), (((0,), (1,)), 3)):
        lanes, rng = lanes_of(family, blocks, shared)
        m = P + len(lanes.covariance.diagonal) + 1
        psi = 0.4 * rng.normal(size=(B, m))
        psi[:, -1] = 0.0
        which = np.array([0, 3, 4, 5, 7, 8, 11, 12, 13, 17, 18])
        nodes = gauss_hermite(K, lanes.S)
        value, gradient, hessian = lanes(which, psi[which], nodes)
        again = lanes(which, psi[which], nodes)  # from the modes that were found
        for k, i in list(enumerate(which))[:: 3 if K == 1 else 5]:
            design = lanes.design(i)
            one = evaluate(family, design, nodes, psi[i], np.zeros_like(design.terms[0].z))
            for found in ((value, gradient, hessian), again):
                for mine, theirs in zip(found, one[:3], strict=True):
                    np.testing.assert_allclose(mine[k], theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_without_random_effects(x64, shared):
    family = FAMILIES["logit"]
    lanes, rng = lanes_of(family, ((0, 1),), shared)
    psi = np.append(0.4 * rng.normal(size=(B, P)), np.zeros((B, 1)), 1)
    value, gradient, hessian = lanes.glm(np.arange(B), psi)
    spread = lanes.spread(psi)
    for i in (0, 7, 18):
        design = lanes.design(i)
        v, g, H, groups = glm_evaluate(family, design, psi[i, :-1], psi[i, -1])
        np.testing.assert_allclose(value[i], v + design.constant, rtol=1e-12)
        np.testing.assert_allclose(gradient[i], g, atol=1e-11)
        np.testing.assert_allclose(hessian[i], H, atol=1e-11)
        for mine, theirs in zip(spread[:3], groups, strict=True):
            np.testing.assert_allclose(mine[i], theirs, rtol=1e-10)
        live = design.weights > 0
        eta = (design.offset + design.X @ psi[i, :-1])[live]
        np.testing.assert_allclose([spread.rows[i], spread.largest[i]], [live.sum(), np.abs(eta).max()])


def test_a_lane_of_nan_leaves_the_others_alone(x64):
    lanes, rng = lanes_of(FAMILIES["logit"], ((0,),), False)
    psi = np.append(0.4 * rng.normal(size=(B, P + 1)), np.zeros((B, 1)), 1)
    wanted = lanes(np.arange(B), psi, gauss_hermite(1, 1))
    psi[4] = np.nan
    found = lanes(np.arange(B), psi, gauss_hermite(1, 1))
    others = np.arange(B) != 4
    assert np.isnan(found[0][4])
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine[others], theirs[others], rtol=1e-12, atol=1e-11)
    again = lanes(np.arange(B)[4:5], np.full((1, P + 2), 0.1), gauss_hermite(1, 1))
    assert np.isfinite(again[0]).all()


def test_what_the_library_covers():
    covers = lane_pass.covers
    assert covers(jg.Binomial(), 0, 10, 1000) and covers(jg.Poisson(), 1, 10, 64)
    assert not covers(jg.Binomial(), 1, 10, 65) and not covers(jg.Binomial(), 3, 10, 5)
    assert not covers(jg.NegativeBinomial(), 1, 3, 5) and not covers(jg.Binomial("cauchit"), 1, 3, 5)


@pytest.mark.parametrize("blocks", [((0,),), ((0, 1),), ((0,), (1,))])
def test_the_native_loop_goes_the_way_of_the_maximiser(x64, blocks):
    """Where it says that it has converged; what it leaves open is gone on with, to the same end."""
    rng, S = np.random.default_rng(3), sum(map(len, blocks))
    X, g = np.column_stack([np.ones(200), rng.normal(size=(200, P - 1))]), np.repeat(np.arange(25), 8)
    z = X[:, :S].T.copy()
    eta = 0.3 * X[:, 1] + np.einsum("bsn,sn->bn", rng.normal(size=(B, S, 25))[:, :, g], z)
    y = (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))) * 1.0
    rows = lane_rows(
        y.ravel(), X, np.ones(200), np.zeros(200), z, design_row=np.zeros(B, int), response_row=200 * np.arange(B),
        begin=group_begins(np.full((1, 25), 8)), shared=True, threads=2,
    )  # fmt: skip
    lanes = RowLanes(FAMILIES["logit"], rows, Covariance(blocks), np.zeros(B))
    covariance, which = lanes.covariance, np.arange(B)
    diagonal = covariance.diagonal
    m, q = P + len(diagonal) + 1, len(diagonal)
    even = np.concatenate([np.zeros(P, bool), diagonal, [False]])
    J = np.tile(np.eye(m), (B, 1, 1))
    J[:, P : P + q, P : P + q] = np.diag(np.where(diagonal, 0.8, 1.0)) + 0.1 * np.tril(rng.normal(size=(B, q, q)), -1)
    nodes = gauss_hermite(3, lanes.S)
    x = np.concatenate([np.zeros((B, P)), np.tile(np.append(diagonal * 0.7, 0.0), (B, 1))], 1)

    def at(k, x):
        value, gradient, hessian = lanes(k, np.einsum("bij,bj->bi", J[k], x), nodes)
        turned = np.swapaxes(J[k], 1, 2)
        return value, np.einsum("bij,bj->bi", turned, gradient), turned @ hessian @ J[k]

    free, rules = np.arange(m) < m - 1, {"even": even, "tol": 1e-12, "max_iterations": 100}
    begun = lanes.climb(which, x, J, nodes, nothing=0.0, **rules)
    here = at(which, begun.x)
    for mine, theirs in zip((begun.value, begun.gradient, begun.hessian), here, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)
    done = begun.reason == 0
    assert done.sum() > B // 3 and (begun.decrement[done] <= 1e-12).all() and np.isin(begun.reason, [0, 1, 5]).all()
    found = maximise_many(at, x, free=free, begun=begun, **rules)
    lanes.modes[:] = 0.0
    wanted = maximise_many(at, x, free=free, **rules)
    assert found.converged.sum() > B // 2
    np.testing.assert_array_equal(found.converged, wanted.converged)
    both = found.converged
    np.testing.assert_allclose(found.value[both], wanted.value[both], atol=1e-8)
    np.testing.assert_allclose(found.x[both & done], wanted.x[both & done], atol=1e-5)


@pytest.mark.parametrize("blocks", [((0,),), ((0, 1),)])
def test_a_fit_does_not_depend_on_its_neighbours(blocks):
    """Threads take fits as they come: whichever share a vector, the bits are the same."""
    found = []
    for order in (np.arange(B), np.arange(B)[::-1], np.random.default_rng(3).permutation(B)):
        lanes, rng = lanes_of(FAMILIES["logit"], blocks, False)
        psi = 0.4 * rng.normal(size=(B, P + len(lanes.covariance.diagonal) + 1))
        results = lanes(order, psi[order], gauss_hermite(1, lanes.S))
        found.append([lanes.modes, *(v[np.argsort(order)] for v in results)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
