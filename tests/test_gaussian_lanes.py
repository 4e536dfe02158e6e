"""Gaussian likelihoods of many models: the native form against NumPy's, and their ways to the optimum."""

import numpy as np
import pytest

from jaxglmm.model.covariance import Covariance
from jaxglmm.objectives.gaussian_lanes import LaneProducts, _profile, profile
from jaxglmm.optimise.batch_gaussian import fit_gaussian_lanes


pytestmark = pytest.mark.native  # without the library, plain JAX would be compared with itself

B, G, N = 12, 9, 8


def products_of(blocks, shared, seed=0):
    """Of simulated responses; random effects of some lanes are nothing."""
    rng = np.random.default_rng(seed)
    S, lanes = sum(map(len, blocks)), 1 if shared else B
    X = np.stack([np.ones((lanes, G, N)), *rng.normal(size=(2, lanes, G, N))])
    Z = X[:S]
    size = np.where(np.arange(B) % 2, rng.uniform(0.3, 1.5, B), 0.0)
    effects = rng.normal(size=(S, B, G)) * size[:, None] * (1 - 0.9 * (np.arange(S)[:, None, None] > 0))
    y = np.einsum("sbg,sbgn->bgn", effects, np.broadcast_to(Z, (S, B, G, N))) + rng.normal(size=(B, G, N))
    xx = np.einsum("ilgn,jlgn->ijl", X, X)
    xy = np.einsum("ilgn,lgn->il" if not shared else "ign,bgn->ib", X if not shared else X[:, 0], y)
    origin = np.stack([np.linalg.solve(xx[:, :, b % lanes], xy[:, b]) for b in range(B)], 1)
    r = y - np.einsum("ib,ibgn->bgn", origin, np.broadcast_to(X, (3, B, G, N)))
    return LaneProducts(
        ztz=np.einsum("algn,blgn->abgl", Z, Z), ztx=np.einsum("ilgn,algn->iagl", X, Z),
        ztr=np.einsum("abgn,bgn->agb", np.broadcast_to(Z, (S, B, G, N)), r), xx=xx,
        xr=np.einsum("ibgn,bgn->ib", np.broadcast_to(X, (3, B, G, N)), r), rr=np.einsum("bgn,bgn->b", r, r),
        origin=origin, n=np.full(B, float(G * N)), log_weights=rng.normal(size=B), covariance=Covariance(blocks),
    )  # fmt: skip


BLOCKS = [((0,),), ((0, 1),), ((0,), (1,)), ((0, 1, 2),), ((0, 2), (1,))]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("reml", [False, True])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_the_profile_is_numpys(blocks, reml, shared):
    a = products_of(blocks, shared)
    q = len(a.covariance.diagonal)
    raw = np.random.default_rng(1).normal(size=(q, B))
    found, wanted = profile(raw, a, reml=reml), _profile(raw, a, reml)
    for name, value in vars(wanted).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("blocks", BLOCKS[:3])
def test_the_native_loop_finds_what_the_maximiser_does(blocks, monkeypatch):
    a = products_of(blocks, True, seed=2)
    options = {"reml": True, "tol": 1e-12, "max_iterations": 100}
    found = fit_gaussian_lanes(a, **options)
    monkeypatch.setattr("jaxglmm.ops.gaussian_lanes.covers", lambda _: False)
    wanted = fit_gaussian_lanes(a, **options)
    assert found.reasons == wanted.reasons == [None] * B and 0 < found.singular.sum() < B
    np.testing.assert_array_equal(found.singular, wanted.singular)
    for name in ("loglik", "beta", "sigma"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-9, err_msg=name)
    square = lambda fit: fit.factor @ np.swapaxes(fit.factor, 1, 2)
    np.testing.assert_allclose(square(found), square(wanted), atol=1e-6)
    inside = ~found.singular
    np.testing.assert_allclose(found.covariance[inside], wanted.covariance[inside], rtol=1e-4, atol=1e-8)


def test_a_singular_matrix_leaves_the_others_alone():
    a = products_of(((0, 1),), False)
    wanted = profile(np.full((3, B), 0.4), a, reml=False)
    a.xx[:, :, 3] = 1.0
    found = profile(np.full((3, B), 0.4), a, reml=False)
    assert np.isnan(found.value[3]) and np.isnan(found.hessian[..., 3]).all()
    np.testing.assert_array_equal(np.delete(found.value, 3), np.delete(wanted.value, 3))
