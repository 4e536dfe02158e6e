"""Whole fits where fits go wrong: boundaries, separation, growth, badly scaled columns, new data of like size."""

import jax
import numpy as np
import pytest

import jaxglmm as jg


def binary(rng, groups=80, rows=6, tau=1.0, slope=0.0):
    g = np.repeat(np.arange(groups), rows)
    x = rng.standard_normal(len(g))
    u = rng.standard_normal((groups, 2)) * [tau, slope]
    eta = 0.2 + 0.5 * x + u[g, 0] + u[g, 1] * x
    return {"y": (rng.random(len(g)) < 1 / (1 + np.exp(-eta))) * 1.0, "x": x, "g": g}


def loglik_without_effects(data, formula, **options):
    return jg.fit(formula, data, **options).loglik


@pytest.mark.parametrize("method", ["laplace", "auto"])
def test_no_variance_is_an_answer(method):
    """Independent rows: the score decides, the fit is that without effects, flagged and not failed."""
    for seed in range(20):
        data = binary(np.random.default_rng(seed), tau=0.0)
        fit = jg.fit("y ~ x + (1 | g)", data, family="binomial", method=method)
        assert fit.convergence.converged
        plain = jg.fit("y ~ x", data, family="binomial")
        score = fit.convergence.score_at_zero
        assert score is not None
        if fit.convergence.singular:
            assert score <= 0
            assert fit.varcorr[0]["sd"] == 0
            assert fit.loglik == pytest.approx(plain.loglik, abs=1e-9)
            np.testing.assert_allclose(list(fit.fixef.values()), list(plain.fixef.values()), atol=1e-7)
            np.testing.assert_allclose(list(fit.fixef_se.values()), list(plain.fixef_se.values()), rtol=1e-6)
            assert (fit.ranef()["estimate"] == 0).all() and (fit.ranef()["reliability"] == 0).all()
            break
        assert score > 0 and fit.loglik > plain.loglik
    else:
        pytest.fail("no data set had a variance of zero")


def test_a_correlation_of_one_is_found():
    """Effects that are one effect: no grid of correlations does better."""
    rng = np.random.default_rng(4)
    data = binary(rng, tau=0.0)
    fit = jg.fit("y ~ x + (1 + x | g)", data, family="binomial", method="laplace")
    assert fit.convergence.converged and fit.convergence.singular
    sds = [v["sd"] for v in fit.varcorr]
    for a in (sds[0] + 0.05, max(sds[0] - 0.05, 0.01)):
        for b in (sds[1] + 0.05, max(sds[1] - 0.05, 0.01)):
            for rho in (-0.9, 0.0, 0.9):
                held = {"g": [[a * a, rho * a * b], [rho * a * b, b * b]]}
                other = jg.fit("y ~ x + (1 + x | g)", data, family="binomial", method="laplace", theta=held)
                assert other.loglik <= fit.loglik + 1e-9


def test_columns_need_no_scaling():
    """Shifted and stretched columns, slopes included, give the same fit, transformed."""
    rng = np.random.default_rng(0)
    data = binary(rng, groups=150, rows=8, slope=0.6)
    plain = jg.fit("y ~ x + (1 + x | g)", data, family="binomial", method="laplace")
    data["year"] = 2010 + 5 * data["x"]
    moved = jg.fit("y ~ year + (1 + year | g)", data, family="binomial", method="laplace")
    assert moved.loglik == pytest.approx(plain.loglik, abs=1e-9)
    slope, slope_se = plain.fixef["x"] / 5, plain.fixef_se["x"] / 5
    assert moved.fixef["year"] == pytest.approx(slope, abs=1e-4 * slope_se)
    assert moved.fixef_se["year"] == pytest.approx(slope_se, rel=1e-5)
    assert moved.fixef["Intercept"] == pytest.approx(
        plain.fixef["Intercept"] - 2010 * slope, abs=1e-3 * 2010 * slope_se
    )
    assert moved.varcorr[1]["sd"] == pytest.approx(plain.varcorr[1]["sd"] / 5, rel=1e-5)
    np.testing.assert_allclose(moved.predict(None, kind="link"), plain.predict(None, kind="link"), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda d: d | {"y": (d["x"] > 0) * 1.0}, "'x'"),
        (lambda d: d | {"y": np.where(d["lev"] == "c", 0.0, d["y"])}, r"'lev\[T.c\]'"),
    ],
)
def test_separation_is_named(change, culprit):
    rng = np.random.default_rng(2)
    data = binary(rng)
    data["lev"] = np.array(["a", "b", "c"])[rng.integers(0, 3, len(data["y"]))]
    with pytest.raises(jg.SeparationError, match=rf"complete separation: {culprit} predicts .* drop or merge"):
        jg.fit("y ~ x + lev + (1 | g)", change(data), family="binomial")


def test_growth_without_bound_is_told():
    """Groups all 0 or all 1: the variance has no finite estimate."""
    data = binary(np.random.default_rng(3))
    data["y"] = (data["g"] % 2) * 1.0
    with pytest.raises(jg.DataError, match=r"within every level of 'g' the responses are all alike.*hold it by theta="):
        jg.fit("y ~ x + (1 | g)", data, family="binomial")
    # One group that is not all alike, of little weight, leaves a likelihood that grows and grows.
    data["w"] = np.where(data["g"] == 0, 1.0, 1e6)
    data["y"] = np.where((data["g"] == 0) & (data["x"] > 0), 1.0, data["y"])
    fit = jg.fit("y ~ x + (1 | g)", data, family="binomial", weights="w", method="laplace", throw=False)
    assert not fit.convergence.converged and "grows without bound" in fit.convergence.reason


def test_known_parameters_are_found():
    """Simulated members: estimates lie within their own intervals of the truth."""
    rng = np.random.default_rng(11)
    counts = 1 + rng.negative_binomial(2, 0.5, size=3000)
    g = np.repeat(np.arange(3000), counts)
    x = rng.standard_normal(len(g))
    eta = -0.5 + 0.7 * x + 0.8 * rng.standard_normal(3000)[g]
    data = {"y": (rng.random(len(g)) < 1 / (1 + np.exp(-eta))) * 1.0, "x": x, "g": g}
    fit = jg.fit("y ~ x + (1 | g)", data, family="binomial")
    estimate = np.array([*fit.fixef.values(), np.log(fit.varcorr[0]["sd"])])
    se = np.append(list(fit.fixef_se.values()), np.sqrt(fit.state.estimate.covariance[2, 2]))
    assert (np.abs(estimate - [-0.5, 0.7, np.log(0.8)]) < 3.5 * se).all()
    laplace = jg.fit("y ~ x + (1 | g)", data, family="binomial", method="laplace")
    assert laplace.varcorr[0]["sd"] < fit.varcorr[0]["sd"]  # known bias with few rows a group


def test_data_of_like_size_share_programs():
    """20 data sets of 9,000 to 9,900 rows: at most 3 compilations; a second fit of the same shapes traces nothing."""
    from jaxglmm.design.design import make_design
    from jaxglmm.objectives.evaluate import _evaluate, evaluate
    from jaxglmm.optimise.node_ladder import padded_nodes

    rng = np.random.default_rng(0)
    before = _evaluate.jitted._cache_size()
    family = jg.Poisson()
    with jax.enable_x64(True):
        for k in range(20):
            n = int(rng.integers(9000, 9900))
            codes = rng.integers(0, n // (3 + k % 2), n)
            design, _ = make_design(rng.poisson(2.0, n) * 1.0, np.ones((n, 1)), codes=codes)
            psi = np.array([0.5, 0.3, 0.0])
            evaluate(family, jax.device_put(design), padded_nodes(1 + 8 * (k % 2), 1), jax.numpy.asarray(psi),
                     jax.numpy.zeros_like(design.terms[0].z))  # fmt: skip
    assert _evaluate.jitted._cache_size() - before <= 3


def test_a_second_fit_traces_nothing():
    data = binary(np.random.default_rng(5))
    first = jg.fit("y ~ x + (1 | g)", data, family="binomial")
    with jax.log_compiles(True), pytest.MonkeyPatch.context() as patch:
        messages = []
        import logging

        patch.setattr(logging.Logger, "handle", lambda self, record: messages.append(record.getMessage()))
        second = jg.fit("y ~ x + (1 | g)", data, family="binomial")
    assert second.loglik == first.loglik
    assert not [m for m in messages if "ompiling" in m or "inished tracing" in m], messages


def test_memory_is_linear():
    """No (rows x groups) and no (groups x groups) array: 10,000 groups of 30,000 rows in little memory."""
    import tracemalloc

    rng = np.random.default_rng(1)
    counts = 1 + rng.negative_binomial(2, 0.5, size=10_000)
    g = np.repeat(np.arange(10_000), counts)
    data = {"y": rng.poisson(1.0, len(g)), "x": rng.standard_normal(len(g)), "g": g}
    tracemalloc.start()
    jg.fit("y ~ x + (1 | g)", data, family="poisson", method="laplace")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * len(g)  # a matrix of groups by groups would be 800 MB


def test_the_global_configuration_is_left_alone():
    was = jax.config.read("jax_enable_x64")
    jg.fit("y ~ x + (1 | g)", binary(np.random.default_rng(5)), family="binomial")
    assert jax.config.read("jax_enable_x64") == was
