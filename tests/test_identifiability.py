"""What a design identifies is fitted, however few the rows of a level; what it does not is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

import jaxglmm as jg


def pairs(G: int = 300) -> pd.DataFrame:
    """Two rows a level at continuous z: each level has other contrasts, which tell Sigma from sigma^2."""
    rng = np.random.default_rng(4)
    g, z = np.repeat(np.arange(G), 2), rng.normal(size=2 * G)
    b = rng.normal(size=(G, 2)) @ np.array([[1.0, 0.4], [0.0, 0.9]])
    y = 1 + 0.5 * z + b[g, 0] + b[g, 1] * z + 0.5 * rng.normal(size=2 * G)
    return pd.DataFrame({"y": y, "z": z, "g": g, "after": np.tile([0, 1], G), "half": g % 2})


def dense_maximum(data: pd.DataFrame, reml: bool) -> tuple[float, np.ndarray]:
    """Largest log-likelihood and (sd, sd, corr, sigma), level by level, over factor and sigma by BFGS."""
    X = np.column_stack([np.ones(len(data)), data["z"]]).reshape(-1, 2, 2)
    y = data["y"].to_numpy().reshape(-1, 2)

    def negative(par):
        L = np.array([[par[0], 0.0], [par[1], par[2]]])
        V = X @ L @ L.T @ X.swapaxes(1, 2) + np.exp(2 * par[3]) * np.eye(2)
        W = np.linalg.solve(V, X)
        A = np.einsum("gij,gik->jk", X, W)
        r = y - X @ np.linalg.solve(A, np.einsum("gij,gi->j", W, y))
        value = np.linalg.slogdet(V)[1].sum() + np.einsum("gi,gi->", r, np.linalg.solve(V, r[..., None])[..., 0])
        value += y.size * np.log(2 * np.pi)
        return 0.5 * (value + (np.linalg.slogdet(A)[1] - 2 * np.log(2 * np.pi) if reml else 0.0))

    starts = ([1.0, 0.3, 1.0, -0.7], [0.3, -0.5, 0.5, -0.2], [1.0, 1.0, 0.2, -1.0])
    best = min(
        (minimize(negative, start, method="BFGS", options={"gtol": 1e-7}) for start in starts), key=lambda r: r.fun
    )
    L = np.array([[best.x[0], 0.0], [best.x[1], best.x[2]]])
    sd = np.sqrt(np.diag(L @ L.T))
    return -best.fun, np.array([*sd, (L @ L.T)[0, 1] / sd.prod(), np.exp(best.x[3])])


@pytest.mark.parametrize("reml", [False, True])
def test_two_rows_a_level_at_values_of_their_own(reml):
    data = pairs()
    fit = jg.fit("y ~ z + (z | g)", data, reml=reml)
    value, expected = dense_maximum(data, reml)
    assert fit.dispersion is not None
    found = [*(v["sd"] for v in fit.varcorr), fit.varcorr[0]["corr"]["z"], fit.dispersion["value"]]
    assert fit.loglik == pytest.approx(value, abs=1e-7)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_many_fits_of_few_rows_a_level():
    data = pairs()
    fits = jg.fit_each("y ~ z + (z | g)", data, by="half")
    assert not fits.failed
    assert fits.loglik[0] == pytest.approx(jg.fit("y ~ z + (z | g)", data[data["half"] == 0]).loglik, abs=1e-8)
    refused = jg.fit_each("y ~ z + (after | g)", data, by="half").failed
    assert len(refused) == 2 and "the rows cannot tell apart" in refused[0]


def test_equal_designs_of_two_rows_are_refused_with_names():
    with pytest.raises(jg.DataError, match=r"variance of 'Intercept' of 'g'.*the residual variance"):
        jg.fit("y ~ z + (after | g)", pairs())
    jg.fit("y ~ z + (after || g)", pairs())


def test_a_single_row_a_level_with_weights():
    """Var(y_i) = tau^2 + sigma^2 / w_i: a regression of variances on 1 / w."""
    rng = np.random.default_rng(2)
    w = np.repeat([0.2, 1.0, 5.0], 200)
    y = 2 + 0.7 * rng.normal(size=600) + rng.normal(size=600) / np.sqrt(w)
    data = pd.DataFrame({"y": y, "w": w, "g": np.arange(600)})
    fit = jg.fit("y ~ 1 + (1 | g)", data, weights="w")

    def negative(par):
        v = par[0] ** 2 + par[1] ** 2 / w
        r = y - np.average(y, weights=1 / v)
        return 0.5 * np.sum(np.log(2 * np.pi * v) + r**2 / v)

    best = minimize(negative, [0.5, 1.0], method="BFGS", options={"gtol": 1e-9})
    assert fit.loglik == pytest.approx(-best.fun, abs=1e-8)
    assert fit.varcorr[0]["sd"] == pytest.approx(abs(best.x[0]), rel=1e-5)


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_random_effects_in_the_span_of_the_fixed_ones(family):
    rng = np.random.default_rng(1)
    habitat = np.repeat(list("abcdef"), 20)
    data = pd.DataFrame({"y": rng.poisson(5, 120).astype(float), "habitat": habitat, "x": rng.normal(size=120)})
    data["site"] = habitat + (np.arange(120) % 4).astype(str)
    for formula in (
        "y ~ 0 + habitat + (1 | habitat)", "y ~ habitat + x + (1 | habitat)", "y ~ habitat + (1 | habitat/site)",
        "y ~ habitat * x + (x | habitat)", "y ~ habitat + (1 | habitat) + (1 | site)",
    ):  # fmt: skip
        for options in [{}, {"reml": True}] if family == "gaussian" else [{}]:
            with pytest.raises(jg.DataError, match=r"the fixed effects tell the levels of 'habitat' apart already"):
                jg.fit(formula, data, family=family, **options)
    jg.fit("y ~ habitat + (1 | site)", data, family=family)
    jg.fit("y ~ habitat + (1 | habitat)", data, family=family, theta={"habitat": 1.0})


HALF_T = jg.HalfStudentPrior(3, 1.0)


def habitats() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    habitat = np.repeat(list("abcdef"), 20)
    eta = rng.normal(size=6)[np.arange(120) // 20]
    data = pd.DataFrame({"habitat": habitat, "x": rng.normal(size=120), "row": np.arange(120), "one": "same"})
    data["site"] = habitat + (np.arange(120) % 4).astype(str)
    data["two"] = 1.0 * (np.arange(120) >= 60)  # constant within sites
    return data.assign(y=eta + rng.normal(size=120), c=rng.poisson(np.exp(eta)), b=1.0 * (rng.random(120) < 0.5))


@pytest.mark.parametrize("response, family", [("y", "gaussian"), ("c", "poisson"), ("b", "binomial")])
def test_what_a_prior_a_penalty_or_the_caller_tells_is_fitted(response, family):
    """A factor in the span of the fixed effects, rows as levels, a single level: rows alone tell nothing of them."""
    data = habitats()
    fit = lambda formula, **options: jg.fit(f"{response} ~ {formula}", data, family=family, **options)
    told = [{"prior": {"habitat": HALF_T}}, {"prior": {"sd": HALF_T}}, {"theta": {"habitat": 0.7}}]
    for options in (*told, {"penalty": jg.Ridge(0.05)}, {"prior": {"habitat": jg.NormalPrior(1.0)}}):
        assert fit("habitat + x + (1 | habitat)", **options).convergence.converged
    for group in ("row", "one"):
        for options in ({"prior": {group: HALF_T}}, {"theta": {group: 0.5}}):
            assert fit(f"x + (1 | {group})", **options).convergence.converged
    # A prior of something else tells nothing of it.
    with pytest.raises(jg.DataError, match="tell the levels of 'habitat' apart already"):
        fit("habitat + (1 | habitat) + (1 | site)", prior={"site": HALF_T})
    with pytest.raises(jg.DataError, match="are the same groups of rows"):
        jg.fit(f"{response} ~ x + (1 | site) + (1 | twin)", data.assign(twin=data["site"]), family=family,
               prior={"twin": HALF_T})  # fmt: skip
    if family == "gaussian":
        with pytest.raises(jg.DataError, match="tell the levels of 'habitat' apart already"):
            fit("habitat + x + (1 | habitat)", reml=True)
        # y ~ N(X beta, sigma^2 + theta^2): least squares, whatever theta is.
        held, plain = fit("x + (1 | row)", theta={"row": 0.5}), fit("x")
        assert held.dispersion is not None and plain.dispersion is not None
        assert held.loglik == pytest.approx(plain.loglik, abs=1e-9)
        assert held.dispersion["value"] ** 2 + 0.25 == pytest.approx(plain.dispersion["value"] ** 2, rel=1e-9)


@pytest.mark.parametrize("response, family", [("y", "gaussian"), ("c", "poisson"), ("b", "binomial")])
def test_effects_of_a_column_that_varies_between_levels_alone(response, family):
    """Var(b0 + b1 z) at two values of z: two numbers for three parameters, however the model is fitted."""
    data, said = habitats(), "the rows cannot tell apart the covariance of 'two' and 'Intercept' of 'site'"
    for run in (
        lambda: jg.fit(f"{response} ~ x + (two | site)", data, family=family),
        lambda: jg.fit_many("~ x + (two | site)", data, responses=[response], family=family),
        lambda: jg.fit_path(f"{response} ~ x + (two | site)", data, family=family),
    ):
        with pytest.raises(jg.DataError, match=said):
            run()
    strata = pd.concat([data.assign(s="first"), data.assign(s="second", two=np.arange(120) % 7)])
    failed = jg.fit_each(f"{response} ~ x + (two | site)", strata, by="s", family=family).failed
    assert list(failed) == ["first"] and said in failed["first"]
