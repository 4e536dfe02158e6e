"""Penalised fits: optimality, general-purpose optimisers as rivals, identities with ridge, data that are hard."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

import jaxglmm as jg
from jaxglmm.model.penalties import column_factors
from jaxglmm.optimise.proximal import minimise_quadratic


RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def members():
    """60 groups of 5 rows, 6 columns, binary and Gaussian responses."""
    n, groups = 300, 60
    X = RNG.standard_normal((n, 6)) * [1, 2, 0.5, 1, 1, 1]
    g = np.repeat(np.arange(groups), 5)
    eta = 0.3 + X[:, 0] - 0.4 * X[:, 1] + 0.9 * RNG.standard_normal(groups)[g]
    table = pd.DataFrame(X, columns=[f"x{j}" for j in range(6)])
    return table.assign(g=g, y=(RNG.random(n) < 1 / (1 + np.exp(-eta))) * 1.0, v=eta + RNG.standard_normal(n))


FORMULA = "y ~ x0 + x1 + x2 + x3 + x4 + x5 + (1 | g)"


def general(smooth, l1):
    """Minimiser of smooth(x) + l1'|x| by L-BFGS-B in the positive and the negative part of x, each at least 0."""
    p = len(l1)

    def split(v):
        value, gradient = smooth(v[:p] - v[p:])
        return value + l1 @ (v[:p] + v[p:]), np.append(gradient + l1, -gradient + l1)

    bounds, options = [(0, None)] * 2 * p, {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000}
    found = minimize(split, np.zeros(2 * p), jac=True, bounds=bounds, method="L-BFGS-B", options=options).x
    return found[:p] - found[p:]


def conditions(fit, penalty, loss_gradient, names):
    """Largest violation of the optimality conditions at the fit's coefficients."""
    beta = np.array([fit.fixef[name] for name in names])
    f = column_factors(penalty.factors, fit.names, list(fit.names).index("Intercept"))
    f = f[[list(fit.names).index(name) for name in names]]
    slope = loss_gradient + penalty.lam * f * (1 - penalty.alpha) * beta
    l1 = penalty.lam * f * penalty.alpha
    return np.where(beta != 0, np.abs(slope + l1 * np.sign(beta)), np.maximum(np.abs(slope) - l1, 0)).max()


def test_the_quadratic_subproblem_against_a_general_solver():
    for p in (1, 4, 12):
        Z = RNG.standard_normal((p + 3, p))
        A, b, l1 = Z.T @ Z, 3 * RNG.standard_normal(p), np.where(np.arange(p) == 0, 0.0, RNG.random(p))
        x = minimise_quadratic(A, b, l1, np.zeros(p))
        rival = general(lambda x: (0.5 * x @ A @ x - b @ x, A @ x - b), l1)  # noqa: B023
        value = lambda x: 0.5 * x @ A @ x - b @ x + l1 @ np.abs(x)  # noqa: B023
        assert value(x) <= value(rival) + 1e-9
        slope = A @ x - b
        assert np.where(x != 0, np.abs(slope + l1 * np.sign(x)), np.maximum(np.abs(slope) - l1, 0)).max() < 1e-12


def test_no_penalty_is_maximum_likelihood(members):
    plain = jg.fit(FORMULA, members, family="binomial", n_agq=5)
    fit = jg.fit(FORMULA, members, family="binomial", n_agq=5, penalty=jg.Ridge(0.0))
    np.testing.assert_allclose(list(fit.fixef.values()), list(plain.fixef.values()), atol=1e-7)
    np.testing.assert_allclose(list(fit.fixef_se.values()), list(plain.fixef_se.values()), rtol=1e-5)
    assert fit.loglik == pytest.approx(plain.loglik, abs=1e-9)
    assert fit.varcorr[0]["sd"] == pytest.approx(plain.varcorr[0]["sd"], abs=1e-7)
    assert fit.df == plain.df


@pytest.mark.parametrize(
    "penalty", [jg.Lasso(0.03), jg.ElasticNet(0.05, 0.5, {"x2": 0.0, "x5": np.inf}), jg.Ridge(0.1)]
)
def test_a_penalised_fit_is_a_stationary_point_of_its_criterion(members, penalty):
    """By derivatives of the marginal likelihood from finite differences of unpenalised evaluations."""
    fit = jg.fit(FORMULA, members, family="binomial", n_agq=5, penalty=penalty)
    left_out = {name for name, factor in (penalty.factors or {}).items() if factor == np.inf}
    names = [name for name in fit.names if name != "Intercept" and name not in left_out]

    def loglik(shift, sd):
        offset = sum(members[name] * (fit.fixef[name] + d) for name, d in shift.items())
        held = jg.fit("y ~ 1 + (1 | g)", members, family="binomial", n_agq=5, offset=offset, theta={"g": sd})
        return held.loglik

    sd = fit.varcorr[0]["sd"]
    base = {name: 0.0 for name in fit.names if name != "Intercept"}
    up_down = lambda name, h: (loglik(base | {name: h}, sd) - loglik(base | {name: -h}, sd)) / (2 * h)
    gradient = -np.array([up_down(name, 1e-4) for name in names]) / len(members)
    assert conditions(fit, penalty, gradient, names) < 1e-6
    by_sd = (loglik(base, sd + 1e-4) - loglik(base, sd - 1e-4)) / 2e-4
    assert abs(by_sd) / len(members) < 1e-6
    assert fit.penalised["kkt"] < 1e-8


def test_random_cases_are_no_worse_than_a_general_optimiser():
    """50 random logistic problems of like shape, against L-BFGS-B on positive and negative parts."""
    for case in range(50):
        rng = np.random.default_rng(case)
        X = rng.standard_normal((60, 5)) @ (np.eye(5) + 0.5 * rng.standard_normal((5, 5)))
        y = (rng.random(60) < 1 / (1 + np.exp(-X @ rng.standard_normal(5)))) * 1.0
        if y.min() == y.max():
            continue
        f, lam = np.append(0, rng.random(5) * 2), 10 ** rng.uniform(-3, -0.7)
        penalty = jg.ElasticNet(lam, rng.choice([0.0, 0.3, 1.0]), f)
        data = {f"x{j}": X[:, j] for j in range(5)} | {"y": y}
        fit = jg.fit("y ~ x0 + x1 + x2 + x3 + x4", data, family="binomial", penalty=penalty)
        D, l1, l2 = np.column_stack([np.ones(60), X]), lam * f * penalty.alpha, lam * f * (1 - penalty.alpha)

        def smooth(beta):
            eta = D @ beta  # noqa: B023
            value = np.mean(np.logaddexp(0, eta) - y * eta) + 0.5 * l2 @ beta**2  # noqa: B023
            return value, D.T @ (1 / (1 + np.exp(-eta)) - y) / 60 + l2 * beta  # noqa: B023

        beta, rival = np.array(list(fit.fixef.values())), general(smooth, l1)
        assert smooth(beta)[0] + l1 @ np.abs(beta) <= smooth(rival)[0] + l1 @ np.abs(rival) + 1e-8
        assert fit.penalised["kkt"] <= 1e-6


def test_a_joint_fit_is_ridge_on_dummies(members):
    """The logistic joint mode at a held sd, against a ridge on all dummies with lambda = 1 / (n sd^2)."""
    sd = 0.7
    joint = jg.fit(FORMULA, members, family="binomial", method="joint", theta={"g": sd})
    data = members.assign(g=members.g.astype(str))
    factors = {f"x{j}": 0.0 for j in range(6)}
    ridge = jg.fit(
        "y ~ x0 + x1 + x2 + x3 + x4 + x5 + g", data, family="binomial", full_rank=False,
        penalty=jg.Ridge(1 / (len(data) * sd**2), factors),
    )  # fmt: skip
    for name in FORMULA.split(" ~ ")[1].split(" + ")[:6]:
        assert ridge.fixef[name] == pytest.approx(joint.fixef[name], abs=1e-9)
    at_mode = joint.predict(data.assign(g=members.g), effects="mode", kind="link")  # before posteriors are worked out
    own = sum(members[f"x{j}"] * joint.fixef[f"x{j}"] for j in range(6)) + joint.fixef["Intercept"]
    np.testing.assert_allclose(at_mode - own, joint.ranef("g")["estimate"].to_numpy()[members.g], atol=1e-9)
    dummies = np.array([ridge.fixef[f"g[{level}]"] for level in range(60)])
    np.testing.assert_allclose(dummies, joint.ranef("g")["estimate"], atol=1e-9)


def test_gaussian_with_a_random_effect_minimises_the_stated_criterion(members):
    """Against a general optimiser of the dense normal likelihood."""
    penalty = jg.Lasso(0.05)
    fit = jg.fit(FORMULA.replace("y ~", "v ~"), members, penalty=penalty)
    X = np.column_stack([np.ones(300), members[[f"x{j}" for j in range(6)]]])
    same = (members.g.values[:, None] == members.g.values) * 1.0

    def criterion(beta, sd, sigma):
        V = sigma**2 * np.eye(300) + sd**2 * same
        r = members.v.to_numpy() - X @ beta
        loglik = -0.5 * (r @ np.linalg.solve(V, r) + np.linalg.slogdet(2 * np.pi * V)[1])
        return -loglik / 300 + penalty.lam * np.abs(beta[1:]).sum()

    at = np.array([*fit.fixef.values(), fit.varcorr[0]["sd"], (fit.dispersion or {})["value"]])
    best = criterion(at[:7], *at[7:])
    for j in range(9):
        for h in (1e-4, -1e-4):
            moved = at.copy()
            moved[j] += h
            assert criterion(moved[:7], *moved[7:]) >= best - 1e-12
    assert -300 * (best - penalty.lam * np.abs(at[1:7]).sum()) == pytest.approx(fit.loglik, abs=1e-8)


# --- Hard data ---------------------------------------------------------------------------------------------


def test_a_separating_column_has_a_finite_estimate_when_penalised(members):
    data = members.assign(x0=members.y * 2 - 1)
    with pytest.raises(jg.SeparationError, match="x0"):
        jg.fit("y ~ x0 + x1", data, family="binomial")
    fit = jg.fit("y ~ x0 + x1", data, family="binomial", penalty=jg.Ridge(0.01))
    assert fit.penalised["kkt"] < 1e-8 and 1 < fit.fixef["x0"] < 20
    with pytest.raises(jg.SeparationError, match="x0"):
        jg.fit("y ~ x0 + x1", data, family="binomial", penalty=jg.Lasso(0.01, {"x0": 0.0}))


def test_constant_and_equal_columns(members):
    data = members.assign(x0=3.0, x2=members.x1)
    fit = jg.fit("y ~ x0 + x1 + x2", data, family="binomial", penalty=jg.Ridge(0.05))
    alone = jg.fit("y ~ x1", data, family="binomial", penalty=jg.Ridge(0.025))
    assert fit.fixef["x0"] == 0
    assert fit.fixef["x1"] == pytest.approx(fit.fixef["x2"], abs=1e-8)
    assert fit.fixef["x1"] + fit.fixef["x2"] == pytest.approx(alone.fixef["x1"], abs=1e-7)
    lasso = jg.fit("y ~ x1 + x2", data, family="binomial", penalty=jg.Lasso(0.05))
    single = jg.fit("y ~ x1", data, family="binomial", penalty=jg.Lasso(0.05))
    assert lasso.fixef["x1"] + lasso.fixef["x2"] == pytest.approx(single.fixef["x1"], abs=1e-7)
    for penalty in (jg.Lasso(0.0), jg.Lasso(0.1, {"x1": 0.0, "x2": 0.0})):
        with pytest.raises(jg.DataError, match="x2"):
            jg.fit("y ~ x1 + x2", data, family="binomial", penalty=penalty)


def test_more_columns_than_rows():
    rng = np.random.default_rng(2)
    data = {f"x{j}": rng.standard_normal(30) for j in range(50)} | {"v": rng.standard_normal(30)}
    data["y"] = (data["v"] + data["x0"] > 0) * 1.0
    right = " + ".join(f"x{j}" for j in range(50))
    fit = jg.fit(f"y ~ {right}", data, family="binomial", penalty=jg.Lasso(0.05))
    assert fit.penalised["kkt"] < 1e-8 and 0 < sum(v != 0 for v in fit.fixef.values()) < 30
    with pytest.raises(jg.DataError, match="30 rows cannot determine 51"):
        jg.fit(f"y ~ {right}", data, family="binomial", penalty=jg.Lasso(0.0))
    with pytest.raises(jg.ConvergenceError, match="as many columns as rows"):
        jg.fit(f"v ~ {right}", data, penalty=jg.Lasso(0.3))


def test_an_infinite_factor_leaves_a_column_out(members):
    fit = jg.fit(FORMULA, members, family="binomial", n_agq=5, penalty=jg.Lasso(0.0, {"x0": np.inf, "x4": np.inf}))
    without = jg.fit("y ~ x1 + x2 + x3 + x5 + (1 | g)", members, family="binomial", n_agq=5)
    assert fit.fixef["x0"] == fit.fixef["x4"] == 0 and fit.df == without.df
    for name, value in without.fixef.items():
        assert fit.fixef[name] == pytest.approx(value, abs=1e-7)
        assert fit.fixef_se[name] == pytest.approx(without.fixef_se[name], rel=1e-5)


def test_a_variance_that_is_zero(members):
    data = members.assign(y=(RNG.random(300) < 0.5) * 1.0)
    plain = jg.fit(FORMULA, data, family="binomial", n_agq=5)
    fit = jg.fit(FORMULA, data, family="binomial", n_agq=5, penalty=jg.Lasso(0.001))
    assert plain.convergence.singular == fit.convergence.singular
    assert fit.varcorr[0]["sd"] == pytest.approx(plain.varcorr[0]["sd"], abs=0.02)


def test_what_a_lasso_does_not_have(members, tmp_path):
    fit = jg.fit(FORMULA, members, family="binomial", n_agq=5, penalty=jg.Lasso(0.03))
    assert np.isnan(list(fit.fixef_se.values())).all()
    assert "lasso with lambda 0.03" in fit.summary().text
    for refused in (lambda: fit.confint("profile"), lambda: fit.vcov("cluster"), lambda: jg.anova(fit, fit)):
        with pytest.raises(jg.DataError, match="penalty"):
            refused()
    fit.save(tmp_path / "fit")
    again = jg.load(tmp_path / "fit")
    assert again.penalised == fit.penalised and again.df == fit.df
    np.testing.assert_array_equal(again.predict(members), fit.predict(members))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jg.Lasso(-1.0), "lam must be"),
        (lambda: jg.Lasso(np.nan), "lam must be"),
        (lambda: jg.ElasticNet(0.1, 1.5), "alpha must be"),
        (lambda: column_factors({"z": 1.0}, ["a", "b"], None), "no column 'z'"),
        (lambda: column_factors([1.0], ["a", "b"], None), "found shape"),
        (lambda: column_factors([1.0, -1.0], ["a", "b"], None), "at least 0"),
        (lambda: jg.fit("y ~ x", {"x": [1.0, 2, 3], "y": [1.0, 2, 4]}, penalty="lasso"), "jg.Lasso"),
        (lambda: jg.fit("y ~ x", {"x": [1.0, 2, 3], "y": [1.0, 2, 4]}, reml=True, penalty=jg.Lasso(1)), "reml"),
    ],
)
def test_bad_penalties_are_named(make, message):
    with pytest.raises(jg.DataError, match=message):
        make()
