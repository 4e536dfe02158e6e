"""Where searches end that once raised or crept: wide ranges of means, dispersions without bound, counts of any size."""

import math

import numpy as np
import pytest

import jaxglmm as jg


def test_crossed_counts_of_very_different_means():
    """Means from 0.1 to 8,000. Value and deviations: the optimum found from dense linear algebra by another search."""
    rng = np.random.default_rng(98)
    cell, gene = np.repeat(np.arange(40), 30), np.tile(np.arange(30), 40)
    log_mean = -1 + rng.normal(0, 1.2, 40)[cell] + rng.normal(0, 3.2, 30)[gene]
    y = rng.negative_binomial(0.4, 0.4 / (0.4 + np.exp(log_mean)))
    data = {"y": y, "cell": cell, "gene": gene}
    fit = jg.fit("y ~ 1 + (1 | cell) + (1 | gene)", data, family="poisson", method="laplace")
    assert fit.loglik == pytest.approx(-25183.4711, abs=1e-4)
    assert [row["sd"] for row in fit.varcorr] == pytest.approx([1.4477, 3.2468], abs=1e-4)


@pytest.mark.parametrize("level", [6, 14])
def test_paths_of_large_counts(level):
    """The residual is relative to the gradient's own scale; a path ends at the fit without a penalty."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 3))
    data = {"y": rng.poisson(np.exp(level + X @ [1, -0.5, 0])), **dict(zip("abc", X.T, strict=True))}
    path = jg.fit_path("y ~ a + b + c", data, family="poisson", lambdas=[1.0, 1e-3, 0.0])
    plain = jg.fit("y ~ a + b + c", data, family="poisson")
    assert path.converged.all() and path.kkt.max() <= 1e-9
    assert path.coef[-1] == pytest.approx(list(plain.fixef.values()), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("noise", ["overdispersed", "poisson"])
def test_paths_of_large_negative_binomial_counts(noise):
    """Where the gradient in log theta is known up to the rounding of counts of 1e8."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 3))
    mean = np.exp(18 + X @ [1, -0.5, 0])
    y = rng.poisson(mean) if noise == "poisson" else rng.negative_binomial(2.0, 2 / (2 + mean))
    data = {"y": y * 1.0, **dict(zip("abc", X.T, strict=True))}
    path = jg.fit_path("y ~ a + b + c", data, family="negativebinomial", lambdas=[0.5, 1e-2, 1e-4, 0.0])
    plain = jg.fit("y ~ a + b + c", data, family="negativebinomial")
    assert path.converged.all() and path.kkt.max() <= 1e-6
    assert path.coef[-1] == pytest.approx(list(plain.fixef.values()), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_paths_do_not_depend_on_the_response_s_unit(scale):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    y = X @ [1, -0.5, 0] + rng.normal(size=300)
    data = dict(zip("abc", X.T, strict=True))
    one = jg.fit_path("y ~ a + b + c", data | {"y": y}, scale="rss", lambdas=[0.3, 0.01])
    other = jg.fit_path("y ~ a + b + c", data | {"y": scale * y}, scale="rss", lambdas=[0.3 * scale, 0.01 * scale])
    assert other.coef / scale == pytest.approx(one.coef, rel=1e-9, abs=1e-12)


def underdispersed(seed=0, n=400):
    """Binomial counts, whose variance is half of their mean."""
    rng = np.random.default_rng(seed)
    X, g = rng.normal(size=(n, 2)), np.arange(n) // 20
    mean = np.exp(1 + X @ [1, -0.5] + 0.3 * rng.normal(size=20)[g])
    trials = np.ceil(2 * mean).astype(int)
    return {
        "y": rng.binomial(trials, mean / trials),
        "a": X[:, 0],
        "b": X[:, 1],
        "g": g,
        "h": np.arange(n) % 15,
        "k": g // 5,
    }


@pytest.mark.parametrize("term", ["C(g)", "(1 | g)", "(1 + b | g)", "(1 | g) + (1 | h)", "(1 | k / g)"])
def test_without_overdispersion_the_negative_binomial_is_poisson(term):
    data = underdispersed()
    fit = jg.fit(f"y ~ a + b + {term}", data, family="negativebinomial")
    nodes = {"method": "agq", "n_agq": fit.n_agq} if fit.method == "agq" else {}
    poisson = jg.fit(f"y ~ a + b + {term}", data, family="poisson", **nodes)
    assert fit.loglik == pytest.approx(poisson.loglik, abs=1e-8) and fit.df == poisson.df + 1
    assert fit.dispersion == {"name": "theta", "value": math.inf} and fit.state.estimate.boundary[-1]
    assert fit.fixef == pytest.approx(poisson.fixef, abs=1e-6)
    assert fit.fixef_se == pytest.approx(poisson.fixef_se, rel=1e-5)
    assert "no overdispersion, the poisson fit is the limit" in str(fit.summary())
    assert np.isfinite(fit.residuals("quantile")).all()


def test_profiles_at_the_limit_of_a_dispersion():
    """The lower end of theta is where the likelihood, maximised over the rest, has dropped by 1.92."""
    data = underdispersed()
    fit = jg.fit("y ~ a + b + C(g)", data, family="negativebinomial")
    (lower,), (upper,) = (fit.confint("profile", parameters="theta")[name] for name in ("lower", "upper"))
    assert upper == math.inf

    def drop(theta):
        from scipy.optimize import minimize
        from scipy.stats import nbinom

        X = np.column_stack([np.ones(400), data["a"], data["b"], *(data["g"] == k for k in range(1, 20))])

        def loss(beta):
            mean = np.exp(X @ beta)
            value = -nbinom.logpmf(data["y"], theta, theta / (theta + mean)).sum()
            return value, -X.T @ ((data["y"] - mean) * theta / (theta + mean))

        return fit.loglik + minimize(loss, list(fit.fixef.values()), jac=True, method="BFGS").fun

    assert drop(lower) == pytest.approx(0.5 * 1.959964**2, abs=1e-3)


def test_overdispersed_groups_may_hide_that_rows_are_not():
    """Lanes of a batch stand at the limit where their own fits do."""
    rng = np.random.default_rng(1)
    s, g, x = np.repeat(np.arange(12), 60), np.tile(np.arange(60) // 6, 12), rng.normal(size=720)
    y = rng.poisson(np.exp(1 + 0.3 * x + 0.2 * rng.normal(size=(12, 10))[s, g]))
    data = {"y": y, "x": x, "s": s, "g": g}
    for formula in ("y ~ x", "y ~ x + (1 | g)"):
        fits = jg.fit_each(formula, data, by="s", family="negativebinomial")
        alone = [jg.fit(formula, {k: v[s == i] for k, v in data.items()}, family="negativebinomial") for i in range(12)]
        assert np.asarray(fits.loglik) == pytest.approx([fit.loglik for fit in alone], abs=1e-7)
        infinite = [fit.family.at_limit(fit.state.log_dispersion) for fit in alone]
        assert np.isinf(np.asarray(fits.estimate)[:, -1]).tolist() == infinite and 0 < sum(infinite) < 12


def test_penalised_fits_and_paths_tell_the_poisson_limit():
    """Theta is infinite, and the value that of the Poisson family, as without a penalty."""
    formula, data = "y ~ a + b + (1 | g)", underdispersed()
    plain = jg.fit(formula, data, family="negativebinomial")
    fit = jg.fit(formula, data, family="negativebinomial", penalty=jg.Ridge(1e-9))
    for told in (plain.dispersion, fit.dispersion):
        assert told is not None and told["value"] == math.inf
    assert fit.loglik == pytest.approx(plain.loglik, abs=1e-7)
    options = {"lambdas": [0.1, 1e-3]}
    path = jg.fit_path(formula, data, family="negativebinomial", **options)
    poisson = jg.fit_path(formula, data, family="poisson", **options)
    assert (path.dispersion == math.inf).all()
    assert path.loglik == pytest.approx(poisson.loglik, abs=1e-6)
    assert path.df == pytest.approx(poisson.df + 1)
