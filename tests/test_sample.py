"""Starting a fit of many groups from a fit of some of them."""

import jax
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.design import make_design
from jaxglmm.optimise import sample


def members(groups, seed=0):
    rng = np.random.default_rng(seed)
    counts = 1 + rng.negative_binomial(2, 0.5, groups)
    codes = np.repeat(np.arange(groups), counts)
    x = rng.standard_normal(len(codes))
    eta = -0.5 + 0.6 * x + 0.9 * rng.standard_normal(groups)[codes]
    return {"y": (rng.random(len(codes)) < 1 / (1 + np.exp(-eta))) * 1.0, "x": x, "g": codes}


def test_a_sample_is_whole_groups_of_every_common_size():
    table = members(60_000)
    X = np.column_stack([np.ones(len(table["x"])), table["x"]])
    design, _ = make_design(table["y"], X, codes=table["g"], constant=3.0)
    with jax.enable_x64(True):
        part = sample.sample_groups(design)
    assert part is not None
    part = jax.tree.map(np.asarray, part)
    assert part.X.shape == (len(part.y), 2) and len(part.y) == part.index.n_slots == part.terms[0].z.shape[1]
    assert 0.02 <= len(part.y) / len(design.y) < 0.15
    assert part.constant == 0 and part.terms[0].index.n_slots == part.index.n_slots
    assert set(part.index.kind) >= set(range(7))
    known = {row.tobytes() for row in np.column_stack([design.X, design.y, design.weights])}
    assert all(row.tobytes() in known for row in np.column_stack([part.X, part.y, part.weights]))
    # As many groups as heads, each with all of its rows: the mean size is that of the whole.
    assert part.weights.sum() / part.index.head.sum() == pytest.approx(3.0, rel=0.1)


def test_a_small_design_has_no_sample():
    table = members(500)
    assert sample.sample_groups(make_design(table["y"], np.ones((len(table["y"]), 1)), codes=table["g"])[0]) is None


def both_ways(monkeypatch, formula, method, groups=40_000):
    """The same fit without a sample to start from, and with one."""
    table, fits = members(groups), []
    for slots in (1 << 60, 40_000):
        monkeypatch.setattr(sample, "_MANY_SLOTS", slots)
        fits.append(jg.fit(formula, table, family="binomial", method=method))
    return fits


@pytest.mark.native
@pytest.mark.parametrize("method", ["laplace", "auto"])
def test_the_start_changes_the_way_and_not_the_answer(monkeypatch, method):
    plain, sampled = both_ways(monkeypatch, "y ~ x + (1 | g)", method)
    assert sampled.convergence.passes != round(sampled.convergence.passes)
    assert sampled.convergence.passes < plain.convergence.passes
    assert sampled.convergence.n_agq == plain.convergence.n_agq
    assert sampled.convergence.kernels == "native"
    assert sampled.loglik == pytest.approx(plain.loglik, rel=1e-12)
    np.testing.assert_allclose(sampled.vcov(), plain.vcov(), rtol=1e-6)


@pytest.mark.native
def test_two_passes_over_all_rows_do(monkeypatch):
    plain, sampled = both_ways(monkeypatch, "y ~ x + (1 | g)", "laplace", groups=200_000)
    assert sampled.convergence.iterations == 2 and sampled.convergence.passes < 3
    assert sampled.convergence.decrement <= 1e-12
    assert sampled.loglik == pytest.approx(plain.loglik, rel=1e-13)
    errors = np.array([list(fit.fixef_se.values()) for fit in (plain, sampled)])
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-7)
    beta = np.array([list(fit.fixef.values()) for fit in (plain, sampled)])
    np.testing.assert_allclose((beta[1] - beta[0]) / errors[0], 0, atol=1e-6)
    assert sampled.varcorr[0]["sd"] == pytest.approx(plain.varcorr[0]["sd"], rel=1e-8)


@pytest.mark.native
def test_a_variance_of_zero_in_the_sample_is_no_long_way(monkeypatch):
    """The slope does not vary, so that the sample's fit has a correlation of one."""
    plain, sampled = both_ways(monkeypatch, "y ~ x + (1 + x | g)", "laplace")
    assert plain.convergence.singular and sampled.convergence.singular
    assert sampled.convergence.passes < 10 < plain.convergence.passes
    assert sampled.loglik == pytest.approx(plain.loglik, rel=1e-12)
    assert sampled.loglik >= jg.fit("y ~ x + (1 | g)", members(40_000), family="binomial", method="laplace").loglik
