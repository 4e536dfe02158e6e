"""Penalties and priors with two crossed factors: optimality by fits with everything held, ridge as a normal prior."""

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg


@pytest.fixture(scope="module")
def table():
    """300 rows, 30 by 12 levels; `w` has no variance between the 12."""
    rng = np.random.default_rng(4)
    a, b, X = rng.integers(30, size=300), rng.permutation(np.arange(300) % 12), rng.standard_normal((300, 4))
    eta = X @ [0.8, -0.4, 0.0, 0.0] + 0.8 * rng.standard_normal(30)[a]
    draw = lambda eta: (rng.random(300) < 1 / (1 + np.exp(-eta))) * 1.0
    out = pd.DataFrame(X, columns=[f"x{j}" for j in range(4)]).assign(a=a, b=b, w=draw(eta))
    return out.assign(y=draw(eta + 0.7 * rng.standard_normal(12)[b]))


FORMULA, NAMES = "y ~ x0 + x1 + x2 + x3 + (1 | a) + (1 | b)", ["x0", "x1", "x2", "x3"]


@pytest.fixture(scope="module", params=[(jg.Lasso(0.04), None), (jg.ElasticNet(0.1, 0.5, {"x1": 0.0}), {"a": 0.7})])
def fitted(request, table):
    penalty, half = request.param
    prior = None if half is None else {"a": jg.HalfStudentPrior(3.0, half["a"])}
    return penalty, half, jg.fit(FORMULA, table, family="binomial", penalty=penalty, prior=prior)


def test_the_optimality_conditions(fitted, table):
    """Derivatives of the marginal likelihood by differences of fits with everything held."""
    penalty, half, fit = fitted
    sds = {row["group"]: row["sd"] for row in fit.varcorr}

    def loglik(shift=None, **moved):
        shift = shift or {}
        offset = fit.fixef["Intercept"] + shift.get("Intercept", 0.0)
        offset = offset + sum(table[name] * (fit.fixef[name] + shift.get(name, 0.0)) for name in NAMES)
        at = {"theta": sds | moved, "offset": offset.to_numpy()}
        return jg.fit("y ~ 0 + (1 | a) + (1 | b)", table, family="binomial", **at).loglik

    slope = lambda up, down, h: (up - down) / (2 * h)
    for name in ("Intercept", *NAMES):
        g = slope(loglik({name: 1e-4}), loglik({name: -1e-4}), 1e-4) / 300
        f = 0.0 if name == "Intercept" else (penalty.factors or {}).get(name, 1.0)
        l1, l2, value = penalty.lam * penalty.alpha * f, penalty.lam * (1 - penalty.alpha) * f, fit.fixef[name]
        if value:
            assert g == pytest.approx(l1 * np.sign(value) + l2 * value, abs=1e-6)
        else:
            assert abs(g) <= l1 + 1e-6
    for group, sd in sds.items():
        g = slope(loglik(**{group: sd + 1e-4}), loglik(**{group: sd - 1e-4}), 1e-4)
        if half and group in half:  # the density's own slope, (1 + x^2 / (3 s^2))^-2
            g -= 4 * sd / (3 * half[group] ** 2) / (1 + sd**2 / (3 * half[group] ** 2))
        assert abs(g) < 1e-3
    assert loglik() == pytest.approx(fit.loglik, abs=1e-7)
    assert fit.convergence.converged and fit.penalised["kkt"] <= 1e-6


def test_a_normal_prior_is_a_ridge(table):
    prior = jg.fit(FORMULA, table, family="binomial", prior={"beta": jg.NormalPrior(0.3)})
    ridge = jg.fit(FORMULA, table, family="binomial", penalty=jg.Ridge(1 / (300 * 0.3**2)))
    np.testing.assert_allclose(list(prior.fixef.values()), list(ridge.fixef.values()), atol=1e-6)
    np.testing.assert_allclose(list(prior.fixef_se.values()), list(ridge.fixef_se.values()), rtol=1e-4)
    assert [row["sd"] for row in prior.varcorr] == pytest.approx([row["sd"] for row in ridge.varcorr], abs=1e-5)


def test_a_gamma_prior_keeps_one_of_two_variances_from_zero(table):
    formula = FORMULA.replace("y ~", "w ~")
    plain = jg.fit(formula, table, family="binomial", method="laplace")
    fit = jg.fit(formula, table, family="binomial", prior={"b": jg.GammaPrior(2.0, 0.1)})
    sds = {row["group"]: row["sd"] for row in fit.varcorr}
    assert plain.convergence.singular and not fit.convergence.singular
    assert 0.02 < sds["b"] < 0.6 and sds["a"] == pytest.approx(plain.varcorr[0]["sd"], abs=0.1)


def test_a_gaussian_response_against_the_dense_likelihood(table):
    data = table.assign(v=table.y + table.x2 + np.random.default_rng(1).standard_normal(300))
    penalty = jg.Lasso(0.1)
    fit = jg.fit(FORMULA.replace("y ~", "v ~"), data, penalty=penalty)
    X = np.column_stack([np.ones(300), data[NAMES]])
    same = [(data[c].to_numpy()[:, None] == data[c].to_numpy()) * 1.0 for c in "ab"]

    def criterion(at):
        V = at[7] ** 2 * np.eye(300) + at[5] ** 2 * same[0] + at[6] ** 2 * same[1]
        r = data.v.to_numpy() - X @ at[:5]
        return (
            0.5 * (r @ np.linalg.solve(V, r) + np.linalg.slogdet(2 * np.pi * V)[1]) / 300 + 0.1 * np.abs(at[1:5]).sum()
        )

    at = np.array([*fit.fixef.values(), *(row["sd"] for row in fit.varcorr), (fit.dispersion or {})["value"]])
    best = criterion(at)
    for j in range(8):
        for h in (1e-3, -1e-3):
            assert criterion(at + h * (np.arange(8) == j)) >= best - 1e-10
    assert -300 * (best - 0.1 * np.abs(at[1:5]).sum()) == pytest.approx(fit.loglik, abs=1e-7)


def test_paths_say_that_they_take_one_factor(table):
    with pytest.raises(jg.NotYetError, match="one grouping factor"):
        jg.fit_path(FORMULA, table, family="binomial")
