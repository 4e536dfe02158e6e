"""The native posterior of groups against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxglmm.design.design import make_design
from jaxglmm.model.families import Gamma, get_family
from jaxglmm.objectives.evaluate import evaluate, posterior_moments
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.ops import moments


@pytest.mark.native
@pytest.mark.parametrize("name", ["binomial", "negativebinomial", "gamma"])
def test_native_moments_are_those_of_the_plain_pass(name):
    """Groups of one row to hundreds, a level without rows, weights of zero, effects on an uneven column."""
    rng = np.random.default_rng(5)
    family = Gamma(link="log") if name == "gamma" else get_family(name)
    counts = np.append(1 + rng.negative_binomial(2, 0.3, 60), [0, 31, 33, 200])
    codes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(codes)
    X = np.column_stack([np.ones(n), rng.standard_normal((n, 8))])
    y = {"binomial": rng.random(n) < 0.4, "negativebinomial": rng.poisson(2.0, n), "gamma": rng.gamma(2.0, 1.0, n)}
    psi = np.append(0.1 * rng.standard_normal(9), [0.7, 0.4])
    with jax.enable_x64(True):
        design, layout = make_design(
            y[name] * 1.0, X, codes=codes, n_groups=len(counts), z=0.5 + rng.random((1, n)), offset=0.2 * X[:, 1],
            weights=np.where(rng.random(n) < 0.1, 0.0, 1.0 + rng.random(n)),
        )  # fmt: skip
        nodes = gauss_hermite(15, 1)
        start = jnp.zeros_like(jnp.asarray(design.terms[0].z))
        plain = posterior_moments(family, design, nodes, jnp.asarray(psi), start)
        modes = evaluate(family, design, gauss_hermite(1, 1), jnp.asarray(psi), start, second=False).modes
        found, weights = moments.group_moments(family, design, nodes, psi, modes, layout.first)
        first = layout.first
        occurs = counts > 0
        for mine, theirs in zip(found.T, (plain.root[0, 0], plain.mean[0], plain.covariance[0, 0]), strict=True):
            np.testing.assert_allclose(
                np.asarray(mine)[occurs], np.asarray(theirs)[first][occurs], rtol=1e-9, atol=1e-11
            )
        np.testing.assert_allclose(
            np.asarray(weights)[occurs], np.asarray(plain.weights)[:, first].T[occurs], rtol=1e-8, atol=1e-12
        )
        np.testing.assert_allclose(np.asarray(weights).sum(1), 1.0)
        # A level without rows has its prior.
        np.testing.assert_allclose(np.asarray(found)[~occurs], [[1.0, 0.0, 1.0]], atol=1e-12)
