"""Families against high-precision arithmetic, automatic differentiation and scipy's distributions."""

import functools
import math

import family_truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxglmm.errors import DataError
from jaxglmm.model.families import (
    Bernoulli,
    Beta,
    Binomial,
    Gamma,
    Gaussian,
    NegativeBinomial,
    Poisson,
    family_from_json,
    get_family,
)


FAMILIES = [
    Gaussian(),
    Gaussian("log"),
    *[Binomial(link) for link in Binomial.links],
    Poisson(),
    Poisson("sqrt"),
    NegativeBinomial(),
    Gamma(),
    Gamma("inverse"),
    Beta(),
]
EVERY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.name}-{f.link}")
RESPONSES = {
    "gaussian": (-0.5, 1.5),
    "binomial": (0.0, 1.0, 0.3),
    "poisson": (0.0, 3.0),
    "negativebinomial": (0.0, 1.0, 9.0),
    "gamma": (0.1, 2.0),
    "beta": (0.01, 0.9),
}
derivatives = jax.jit(lambda family, *args: family.derivatives(*args), static_argnums=0)
dispersion_derivatives = jax.jit(lambda family, *args: family.dispersion_derivatives(*args), static_argnums=0)


def grid(family, ends=(30.0, 100.0, 700.0)):
    if family.positive_eta:
        return np.array([1e-3, 0.3, 1.0, 2.5, 12.0, *ends])
    far = np.array([5.0, 12.0, *ends])
    return np.concatenate([-far[::-1], [-1.0, -0.4, -0.3, -1e-3, 0.0, 0.1, 0.9, 2.0], far])


def log_dispersions(family, values=(-2.0, 0.3, 2.4, 18.4)):
    return values if family.dispersion_name else (0.0,)


def close(found, truth, slope, eta, rtol, eps=2.3e-16):
    """Within ``rtol``, or as near as rounding eta would leave it (which matters beside a root)."""
    rounding = 16 * eps * max(1.0, abs(eta)) * abs(slope)
    return abs(found - truth) <= rtol * abs(truth) + rounding + 1e-307


@EVERY
def test_derivatives_agree_with_high_precision(family, x64):
    """l, s, w to 1e-12 and a, c to 1e-10 relative, from -700 to 700."""
    # mpmath's log-gamma takes minutes at |eta| = 700.
    eta = grid(family, ends=(30.0,) if family.name == "beta" else (30.0, 700.0))
    for y in RESPONSES[family.name]:
        for log_phi in log_dispersions(family):
            rows = derivatives(family, eta, np.full_like(eta, y), np.ones_like(eta), np.float64(log_phi))
            for i, at in enumerate(eta):
                if (family.name, family.link) in (("gamma", "log"), ("gaussian", "log")) and abs(at) == 700.0:
                    continue  # e^700, times the shape or squared, is held back from overflow: see the next test
                truth = [float(value) for value in family_truth.derivatives(family, at, y, log_phi)]
                slopes = [*truth[1:], truth[4]]
                for name, row, value, slope in zip("lswac", rows, truth, slopes, strict=True):
                    if family == Gaussian() and name in "ac":
                        assert float(row[i]) == 0.0
                        continue
                    rtol = 1e-12 if name in "lsw" else 1e-10
                    assert close(float(row[i]), value, slope, at, rtol), (name, at, y, log_phi, float(row[i]), value)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.dispersion_name], ids=lambda f: f"{f.name}-{f.link}")
def test_dispersion_derivatives_agree_with_high_precision(family, x64):
    """Relative accuracy holds at theta = 1e8 too, where the negative binomial is Poisson but for terms of 1e-8."""
    eta = np.array([0.2, 1.3, 4.0]) if family.positive_eta else np.array([-5.0, -0.7, 0.4, 3.0])
    for y in RESPONSES[family.name]:
        for log_phi in log_dispersions(family):
            args = (eta, np.full_like(eta, y), np.ones_like(eta), np.float64(log_phi))
            rows, values = dispersion_derivatives(family, *args), derivatives(family, *args)
            for i, at in enumerate(eta):
                truth = family_truth.dispersion_derivatives(family, at, y, log_phi)
                for name, row, value, size in zip("lsw", rows, truth, values, strict=False):
                    error = abs(float(row[i]) - float(value))
                    bound = 1e-10 * abs(float(value)) + 1e-14 * abs(float(size[i]))
                    assert error <= bound, (name, at, y, log_phi, float(row[i]), float(value))


@EVERY
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_no_nan_and_no_change_of_dtype(family, dtype):
    """Everywhere up to |eta| = 700 (80 in float32) and beyond, boundaries of the support included."""
    with jax.enable_x64(True):  # so that a promotion to float64 would show
        ends = (30.0, 80.0, 87.0, 700.0, 2000.0)
        eta = np.asarray(np.concatenate([grid(family, ends), -np.array(ends)]), dtype)
        for y in RESPONSES[family.name]:
            for log_phi in log_dispersions(family):
                args = (eta, np.full_like(eta, y), np.full_like(eta, 2.0), dtype(log_phi))
                rows = derivatives(family, *args)
                assert all(row.dtype == dtype and row.shape == eta.shape for row in rows)
                assert not any(np.isnan(row).any() for row in rows), (y, log_phi)
                if family.positive_eta:
                    outside = eta <= 0
                    assert np.all(np.asarray(rows.l)[outside] == -np.inf)
                    assert all(np.all(np.asarray(row)[outside] == 0) for row in rows[1:])
                elif log_phi < 10:
                    within = np.abs(eta) <= (700 if dtype is np.float64 else 80)
                    assert all(np.isfinite(np.asarray(row)[within]).all() for row in rows), (y, log_phi)
                expected = family.expected(eta, args[2], args[3])
                assert expected.dtype == dtype and np.all(expected >= 0)
                if family.log_concave:
                    assert np.all(np.asarray(rows.w) >= 0)
                assert family.mean(eta).dtype == dtype


@EVERY
def test_float32_is_the_rounded_float64(family, x64):
    eta = grid(family, ends=(30.0,) if family.positive_eta or family.link == "log" else (30.0, 70.0)).astype(np.float32)
    for y in RESPONSES[family.name]:
        for log_phi in log_dispersions(family, (-1.0, 0.3, 2.4, 9.0)):
            args = [eta, np.full_like(eta, np.float32(y)), np.ones_like(eta), np.float32(log_phi)]
            low = derivatives(family, *args)
            high = derivatives(family, *[np.asarray(arg, np.float64) for arg in args])
            slopes = [*high[1:], high.c]
            phi = max(1.0, math.exp(log_phi)) if family.dispersion_name else 1.0
            for name, found, value, slope in zip("lswac", low, high, slopes, strict=True):
                error = np.abs(np.asarray(found, np.float64) - value)
                # Rounding y and eta moves a row of precision phi by phi times the rounding.
                rounding = 2e-6 * phi * np.maximum(1, np.abs(eta)) * np.minimum(1, np.abs(slope))
                bound = 3e-5 * np.abs(value) + rounding + 6e-6 * np.maximum(1, np.abs(eta)) * np.abs(slope) + 1e-37
                bound = bound + 1e-6 * np.abs(high.w)  # c has roots that its slope does not tell of
                assert np.all(error <= bound), (name, y, log_phi, eta[error > bound], error[error > bound])


@EVERY
def test_rows_of_weight_zero_give_exactly_zero_with_clean_gradients(family, x64):
    eta = np.concatenate([grid(family), -grid(family), [1e4, -1e4, np.inf, -np.inf]])
    y = np.full_like(eta, RESPONSES[family.name][0])
    args = (eta, y, np.zeros_like(eta), np.float64(0.3))
    assert all(np.all(np.asarray(row) == 0) for row in derivatives(family, *args))
    assert np.all(family.expected(eta, args[2], args[3]) == 0)
    gradient = jax.jit(jax.grad(lambda *a: family.loglik(*a).sum(), argnums=(0, 1, 2, 3)))(*args)
    assert all(np.all(np.asarray(part) == 0) for part in gradient)
    raw = jax.jit(jax.grad(lambda *a: sum(row.sum() for row in family.derivatives(*a)), argnums=(0, 1, 2, 3)))(*args)
    assert all(np.all(np.asarray(part) == 0) for part in raw)


@EVERY
def test_loglik_differentiates_like_the_plain_formula(family, x64):
    """Orders in eta, all mixed second partials, forward and reverse; at eta = 0 = log phi (a start) too."""
    eta = np.array([0.2, 1.0, 2.5]) if family.positive_eta else np.array([-2.5, -0.3, 0.0, 0.7, 2.0])
    y = np.resize(RESPONSES[family.name][-2:], eta.shape)
    weight, log_phi = np.full_like(eta, 2.0), np.float64(0.0)
    rows = derivatives(family, eta, y, weight, log_phi)

    def plain(*args):
        return family.derivatives(*args).l

    def tower(function, highest):
        """The derivatives of orders 0 to `highest` in eta, row by row, in one program."""
        orders = lambda x: (function(x, y, weight, log_phi),)
        for _ in range(highest):
            orders = functools.partial(one_more, orders)
        return jax.jit(orders)(eta)

    def one_more(orders, x):
        values, slopes = jax.jvp(orders, (x,), (jnp.ones_like(x),))
        return (*values, slopes[-1])

    chained = tower(family.loglik, 5)
    np.testing.assert_allclose(chained[0], rows.l, rtol=1e-14)
    for found, row, sign in zip(chained, rows, (1, 1, -1, -1, -1), strict=False):
        np.testing.assert_allclose(sign * found, row, rtol=1e-12)
    for found, wanted in zip(tower(plain, 2), chained, strict=False):  # beyond, the plain formulas lose digits
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    h = 1e-5
    ahead, behind = (derivatives(family, eta + step, y, weight, log_phi).c for step in (h, -h))
    np.testing.assert_allclose(chained[5], (behind - ahead) / (2 * h), rtol=1e-6, atol=1e-7)

    def hessian(function):
        second = jax.jacfwd(jax.jacrev(function, argnums=(0, 1, 2, 3)), argnums=(0, 1, 2, 3))
        return jnp.array(jax.jit(jax.vmap(second, (0, 0, 0, None)))(eta, y, weight, log_phi))

    np.testing.assert_allclose(hessian(family.loglik), hessian(plain), rtol=1e-8, atol=1e-8)


@EVERY
def test_loglik_gradient_is_stable_in_the_far_tails(family, x64):
    eta = grid(family)
    y = np.full_like(eta, RESPONSES[family.name][1])
    args = (y, np.ones_like(eta), np.float64(0.3))
    _, tangents = jax.jit(lambda e: jax.jvp(lambda x: family.loglik(x, *args), (e,), (jnp.ones_like(e),)))(eta)
    np.testing.assert_allclose(tangents, derivatives(family, eta, *args).s, rtol=1e-13)
    hessian = jax.jit(jax.grad(lambda e: jax.grad(lambda x: family.loglik(x, *args).sum())(e).sum()))(eta)
    np.testing.assert_allclose(-np.asarray(hessian), derivatives(family, eta, *args).w, rtol=1e-13)


def test_loglik_broadcasts_and_takes_whole_numbers(x64):
    eta = np.linspace(-1, 1, 12).reshape(3, 4)
    value = Binomial().loglik(eta, np.array([0, 1, 1, 0]), 2, 0)
    assert value.shape == (3, 4) and value.dtype == np.float64
    rows = Gaussian().derivatives(eta, np.zeros(4), 1.0, 0.0)
    assert all(row.shape == (3, 4) for row in rows)


def sampled(family, n=40, seed=1):
    """Means inside of the family's range with responses and weights drawn for them."""
    rng = np.random.default_rng(seed)
    eta = rng.uniform(0.4, 1.6, n)
    mu = np.asarray(family.mean(eta), np.float64)
    weight = rng.integers(1, 6, n).astype(float) if family.name in ("gaussian", "binomial") else np.ones(n)
    return eta, mu, family.sample(rng, mu, weight, 0.7), weight


def scipy_log_density(family, y, mu, weight, phi):
    match family.name:
        case "gaussian":
            return scipy.stats.norm.logpdf(y, mu, phi / np.sqrt(weight))
        case "binomial":
            return scipy.stats.binom.logpmf(np.round(weight * y), weight, mu)
        case "poisson":
            return scipy.stats.poisson.logpmf(y, mu)
        case "negativebinomial":
            return scipy.stats.nbinom.logpmf(y, phi, phi / (phi + mu))
        case "gamma":
            return scipy.stats.gamma.logpdf(y, phi, scale=mu / phi)
        case _:
            return scipy.stats.beta.logpdf(y, mu * phi, (1 - mu) * phi)


@EVERY
def test_with_its_constant_it_is_the_density_of_scipy(family, x64):
    eta, mu, y, weight = sampled(family)
    family.check_response(y, weight, "y")
    total = float(np.sum(derivatives(family, eta, y, weight, 0.7).l)) + family.constant(y, weight)
    truth = scipy_log_density(family, y, mu, weight, math.exp(0.7)).sum()
    assert total == pytest.approx(truth, rel=1e-11)
    padded = family.constant(np.append(y, y[0]), np.append(weight, 0.0))
    assert padded == pytest.approx(family.constant(y, weight), rel=1e-13)


@EVERY
def test_moments_and_distribution_function_match_the_samples(family, x64):
    n = 20_000
    mu = np.full(n, float(family.mean(0.8)))
    weight = np.full(n, 3.0 if family.name in ("gaussian", "binomial") else 1.0)
    rng = np.random.default_rng(3)
    y = family.sample(rng, mu, weight, 0.7)
    variance = float(family.variance(mu[0], 0.7)) / weight[0]
    assert abs(y.mean() - mu[0]) < 4.5 * math.sqrt(variance / n)
    assert y.var() == pytest.approx(variance, rel=0.08)
    low, high = family.cdf_below(y, mu, weight, 0.7), family.cdf(y, mu, weight, 0.7)
    assert np.all(low <= high) and (np.any(low < high) == family.discrete)
    uniform = low + rng.uniform(size=n) * (high - low)
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3


@EVERY
def test_expected_information_is_the_variance_of_the_score(family, x64):
    eta, phi = np.array([0.5, 1.2]), math.exp(0.7)
    mu = np.asarray(family.mean(eta))
    if family.discrete:
        y = np.arange(2.0) if family.name == "binomial" else np.arange(400.0)
        measure = np.exp(scipy_log_density(family, y[:, None], mu, np.ones(2), phi))
        nodes = np.broadcast_to(y[:, None], measure.shape)
    else:
        u, mass = np.polynomial.legendre.leggauss(400)
        p = ((u + 1) / 2)[:, None] ** np.ones(2)
        quantile = {
            "gaussian": lambda: scipy.stats.norm.ppf(p, mu, phi),
            "gamma": lambda: scipy.stats.gamma.ppf(p, phi, scale=mu / phi),
            "beta": lambda: scipy.stats.beta.ppf(p, mu * phi, (1 - mu) * phi),
        }[family.name]
        nodes, measure = quantile(), (mass / 2)[:, None] * np.ones(2)
    score = np.asarray(derivatives(family, np.broadcast_to(eta, nodes.shape), nodes, np.ones(nodes.shape), 0.7).s)
    np.testing.assert_allclose((measure * score).sum(0), 0, atol=2e-4)
    np.testing.assert_allclose(family.expected(eta, np.ones(2), 0.7), (measure * score**2).sum(0), rtol=3e-3)


@EVERY
def test_link_and_mean_are_inverse(family, x64):
    eta = np.array([0.1, 0.5, 1.0, 1.8]) if family.positive_eta else np.array([-6.0, -1.0, -0.1, 0.0, 0.4, 1.2])
    np.testing.assert_allclose(family.link_function(family.mean(eta)), eta, rtol=1e-10, atol=1e-14)


@EVERY
def test_deviance_residuals_come_from_the_saturated_likelihood(family, x64):
    _, mu, y, weight = sampled(family)
    residual = np.asarray(family.deviance_residual(y, mu, weight, 0.7))
    assert np.all(np.sign(residual) == np.sign(y - mu))
    if family.name == "gaussian":
        np.testing.assert_allclose(residual**2, weight * (y - mu) ** 2)
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        phi, at = math.exp(0.7), np.where(y == 0, 1e-300, y) if family.name != "binomial" else y
        gap = scipy_log_density(family, y, at, weight, phi) - scipy_log_density(family, y, mu, weight, phi)
    scale = phi if family.name == "gamma" else 1.0  # unscaled, as in R
    np.testing.assert_allclose(residual**2, 2 * np.abs(gap) / scale, rtol=1e-8, atol=1e-12)


@EVERY
def test_start_is_inside_of_the_domain(family, x64):
    eta, _, y, weight = sampled(family, n=400)
    eta0, log_phi0 = family.start(y, weight)
    assert np.isfinite(eta0) and np.isfinite(log_phi0) and (eta0 > 0 or not family.positive_eta)
    assert abs(eta0 - eta.mean()) < 0.6
    if family.dispersion_name:
        assert abs(log_phi0 - 0.7) < 0.8
    for value in RESPONSES[family.name]:
        same = np.full(5, abs(value))
        assert np.all(np.isfinite(family.start(same, np.ones(5))))


@pytest.mark.parametrize(
    ("family", "y", "weight", "words"),
    [
        (Binomial(), [0, 1, 0.37], [1, 1, 1], ["'dose'", "row 2", "0.37", "weights=", "cbind(successes, failures)"]),
        (Binomial(), [0, 2, 3], [1, 1, 1], ["row 1", "2 such rows", "found 2", "between"]),
        (Binomial(), [0.5, 0.5], [4, 5], ["row 1", "2.5", "whole"]),
        (Binomial(), [1.0, 0.0], [1, 2.5], ["row 1", "2.5", "whole"]),
        (Poisson(), [1, -1], [1, 1], ["row 1", "found -1", "count", "0 or more"]),
        (Poisson(), [1, 1.5], [1, 1], ["row 1", "found 1.5", "whole number", "offset"]),
        (NegativeBinomial(), [1, 2.5], [1, 1], ["negative binomial", "whole"]),
        (Gamma(), [1, 0.0], [1, 1], ["row 1", "greater than 0"]),
        (Beta(), [0.5, 1.0], [1, 1], ["row 1", "strictly between 0 and 1"]),
        (Gaussian(), [0.5, np.inf], [1, 1], ["row 1", "inf", "finite"]),
        (Poisson(), [1, np.nan], [1, 1], ["row 1", "nan"]),
    ],
)
def test_responses_outside_of_the_support_are_named(family, y, weight, words):
    with pytest.raises(DataError) as caught:
        family.check_response(np.array(y, float), np.array(weight, float), "dose")
    for word in words:
        assert word in str(caught.value)
    family.check_response(np.array(y, float)[:1], np.array(weight, float)[:1], "dose")


def test_names_aliases_and_misspellings():
    assert get_family("Bernoulli") == Binomial() == Bernoulli() == get_family(Binomial)
    for name in ("negative_binomial", "nbinom2", "NegativeBinomial", "negative-binomial"):
        assert get_family(name) == NegativeBinomial()
    assert get_family("Gamma") == Gamma() and get_family("GAUSSIAN") == Gaussian()
    given = Binomial("probit")
    assert get_family(given) is given
    with pytest.raises(DataError, match="did you mean 'poisson'"):
        get_family("poison")
    with pytest.raises(DataError, match="expected one of gaussian, binomial"):
        get_family(3)
    with pytest.raises(DataError, match="'cauchit'"):
        Binomial("log")


@EVERY
def test_families_are_static_keys_and_json(family):
    twin = family_from_json(family.to_json())
    assert twin == family and hash(twin) == hash(family) and twin is not family
    assert len({*FAMILIES, twin}) == len(FAMILIES)
    assert not jax.tree.leaves(family)
    traces = []

    @jax.jit
    def mean(family, eta):
        traces.append(1)
        return family.mean(eta)

    mean(family, jnp.ones(2))
    mean(twin, jnp.ones(2))
    assert len(traces) == 1


def test_importing_families_is_light(run_python):
    heavy = "[m for m in ('scipy.stats', 'scipy.special', 'pandas', 'matplotlib', 'optax') if m in sys.modules]"
    assert "[]" in run_python(f"import sys; import jaxglmm.model.families; print({heavy})")
