"""Crossed factors as data have them: level counts of a power law, levels with one row, levels that occur only together,
a slope on each factor. Fits, exact and iterative, against dense algebra; and all that a fit offers, iterative.
"""

import functools

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg


FORMULA = "y ~ x + (1 + x | a) + (1 + x || b)"
CASES = [(family, solver) for family in ("gaussian", "binomial") for solver in ("auto", "krylov")]


@functools.cache
def table(family):
    rng = np.random.default_rng(5)
    n, levels = 700, (60, 25)
    draw = lambda g: rng.choice(g, n, p=(w := np.arange(1, g + 1) ** -1.3) / w.sum())
    a, b = (draw(g) for g in levels)
    a[:4], b[:4] = levels  # confounded
    a[4] = levels[0] + 1  # a single row
    x = rng.standard_normal(n)
    normal = lambda g, sd: sd * rng.standard_normal((g + 2, 2))
    effects = normal(levels[0], 0.8)[a] + normal(levels[1], 0.5)[b]
    eta = 0.3 + 0.5 * x + effects[:, 0] + effects[:, 1] * x
    y = eta + rng.standard_normal(n) if family == "gaussian" else (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int)
    counts = np.unique(a, return_counts=True)[1]
    assert (counts == 1).sum() >= 3 and counts.max() > 100
    return pd.DataFrame({"y": y, "x": x, "a": a, "b": b})


@functools.cache
def fitted(family, solver):
    return jg.fit(FORMULA, table(family), family=family, solver=solver, method="laplace")


class Dense:
    """The likelihood in (beta, log sds, correlation of a's effects, log sigma): Laplace's approximation, with which the
    integral of a Gaussian model agrees."""

    def __init__(self, family):
        data = self.data = table(family)
        self.family, self.X = family, np.column_stack([np.ones(len(data)), data["x"]])
        hot = [(np.asarray(data[g])[:, None] == np.unique(data[g])).astype(float) for g in "ab"]
        self.Z = [block for h in hot for block in (h, h * self.X[:, 1:])]  # a: 1, x; b: 1, x

    @staticmethod
    def point(fit):
        sds, corr = [v["sd"] for v in fit.varcorr], fit.varcorr[0]["corr"]["x"]
        sigma = [] if fit.dispersion is None else [np.log(fit.dispersion["value"])]
        return np.concatenate([list(fit.fixef.values()), np.log(sds), [corr], sigma])

    def __call__(self, at):
        eta, sds, corr = self.X @ at[:2], np.exp(at[2:6]), at[6]
        one, slope, *others = self.Z
        V = np.hstack([sds[0] * one + corr * sds[1] * slope, np.sqrt(1 - corr**2) * sds[1] * slope])
        V = np.hstack([V, *(sd * Z for sd, Z in zip(sds[2:], others, strict=True))])
        y, u = self.data["y"].to_numpy(), np.zeros(V.shape[1])
        while True:
            score, information = self.rows(y, eta + V @ u, at)[1:]
            H = np.eye(len(u)) + V.T @ (information[:, None] * V)
            u = u + (step := np.linalg.solve(H, V.T @ score - u))
            if np.abs(step).max() < 1e-9:
                return self.rows(y, eta + V @ u, at)[0].sum() - 0.5 * (u @ u + np.linalg.slogdet(H)[1])

    def rows(self, y, eta, at):
        """Log-densities, their derivatives in eta, and minus the second ones."""
        if self.family == "gaussian":
            weight = np.exp(-2 * at[7]) * np.ones(len(y))
            return -0.5 * weight * (y - eta) ** 2 + 0.5 * np.log(weight / (2 * np.pi)), weight * (y - eta), weight
        mu = 1 / (1 + np.exp(-eta))
        return -np.logaddexp(0, -(2 * y - 1) * eta), y - mu, mu * (1 - mu)


@pytest.mark.parametrize(("family", "solver"), CASES)
def test_a_fit_is_the_optimum_of_the_dense_likelihood(family, solver):
    fit, dense = fitted(family, solver), Dense(family)
    assert fit.convergence.converged and not fit.convergence.singular
    at, se = dense.point(fit), fit.convergence.loglik_se
    value = dense(at)
    assert (se > 0) == (solver == "krylov")
    assert fit.loglik == pytest.approx(value, abs=5 * se + 1e-6)
    # In units of standard errors there is no way to go.
    h = 1e-3
    down, up = (np.array([dense(at + move) for move in sign * h * np.eye(len(at))]) for sign in (-1, 1))
    gradient, curvature = (up - down) / (2 * h), (up - 2 * value + down) / h**2
    assert (curvature < 0).all()
    assert np.max(np.abs(gradient) / np.sqrt(-curvature)) < (0.1 if se else 1e-3)


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_effects_and_their_sds_are_those_of_the_exact_fit(family):
    exact, iterative = fitted(family, "auto"), fitted(family, "krylov")
    assert exact.convergence.solver.startswith("schur") and iterative.convergence.solver.startswith("krylov")
    np.testing.assert_allclose(list(iterative.fixef_se.values()), list(exact.fixef_se.values()), rtol=0.02)
    for one, other in zip(iterative.varcorr, exact.varcorr, strict=True):
        assert (one["group"], one["name"]) == (other["group"], other["name"])
        assert one["sd"] == pytest.approx(other["sd"], rel=0.05)
    for group in "ab":
        mine, truth = iterative.ranef(group), exact.ranef(group)
        assert list(mine["level"]) == list(truth["level"]) and list(mine["term"]) == list(truth["term"])
        assert len(mine) == 2 * table(family)[group].nunique()
        assert np.max(np.abs(mine["estimate"] - truth["estimate"]) / truth["sd"]) < 0.15
        away = np.asarray(mine["sd"] / truth["sd"]) - 1  # the sds are from 64 random vectors
        assert np.sqrt(np.mean(away**2)) < 0.1 and np.abs(away).max() < 0.3


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_predictions_of_an_iterative_fit_for_any_subset_of_known_factors(family):
    fit = fitted(family, "krylov")
    row = {"x": 0.7, "a": 2, "b": 1}
    z = np.array([1.0, row["x"]])
    eta = fit.fixef["Intercept"] + row["x"] * fit.fixef["x"]
    effect, sd = {}, {}
    for group in "ab":
        mine = fit.ranef(group)
        mine = mine[mine["level"] == row[group]]
        effect[group], sd[group] = float(z @ mine["estimate"]), np.asarray(mine["sd"])
    prior = {g: float(z @ fit.state.column_covariances["ab".index(g)] @ z) for g in "ab"}
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for new in ("", "a", "b", "ab"):
        rows = {k: [999 if k in new else v] for k, v in row.items()}
        known = eta + sum(v for g, v in effect.items() if g not in new)
        assert fit.predict(rows, kind="link")[0] == pytest.approx(known, rel=1e-10)
        response = fit.predict(rows)[0]
        if family == "gaussian":
            assert response == pytest.approx(known, rel=1e-10)
        elif new == "ab":  # averaged over the distribution of both
            averaged = weights @ (1 / (1 + np.exp(-known - np.sqrt(prior["a"] + prior["b"]) * nodes))) / weights.sum()
            assert response == pytest.approx(averaged, rel=1e-6)
        else:
            assert abs(response - 0.5) < abs(1 / (1 + np.exp(-known)) - 0.5)
    with pytest.raises(jg.DataError, match="levels that the fit has not seen"):
        fit.predict({k: [999 if k == "a" else v] for k, v in row.items()}, new_levels="error")


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_an_iterative_fit_tells_how_and_is_saved(family, tmp_path):
    fit = fitted(family, "krylov")
    text = str(fit.summary())
    assert "Monte-Carlo standard error" in text and "asked for by solver=" in text
    assert "effects" in fit.convergence.solver
    fit.save(tmp_path / "model")
    same = jg.load(tmp_path / "model")
    assert same.convergence.loglik_se == fit.convergence.loglik_se > 0
    assert same.convergence.solver == fit.convergence.solver and same.varcorr == fit.varcorr
    data = table(family)
    np.testing.assert_array_equal(same.predict(data), fit.predict(data))
    np.testing.assert_allclose(fit.predict(data), fit.predict(), rtol=1e-10)
    for group in "ab":
        pd.testing.assert_frame_equal(same.ranef(group), fit.ranef(group))


def test_the_solver_is_chosen_by_size_and_may_be_chosen_otherwise(monkeypatch):
    monkeypatch.setattr("jaxglmm.modes.choice.DENSE_LIMIT", 40)
    data = table("binomial")
    auto = jg.fit(FORMULA, data, family="binomial")
    assert "more than the 40 of a dense matrix" in auto.convergence.solver and auto.convergence.loglik_se > 0
    assert auto.loglik == fitted("binomial", "krylov").loglik
    other = jg.fit(FORMULA, data, family="binomial", solver="schur", method="laplace")
    assert "asked for by solver=" in other.convergence.solver and other.convergence.loglik_se == 0
    assert other.loglik == pytest.approx(fitted("binomial", "auto").loglik, abs=1e-8)
    with pytest.raises(jg.DataError, match="REML is computed by solver='schur' here; found solver='krylov'"):
        jg.fit(FORMULA, table("gaussian"), reml=True, solver="krylov")
    with pytest.raises(jg.DataError, match="solver must be one of"):
        jg.fit("y ~ x + (1 | a)", data, family="binomial", solver="cholesky")
