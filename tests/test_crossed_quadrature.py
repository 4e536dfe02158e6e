"""Quadrature over the largest of crossed factors, Laplace over the rest: against dense algebra and other solvers."""

import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

import jaxglmm as jg
from jaxglmm.errors import DataError
from jaxglmm.formula.frame import model_frame
from jaxglmm.objectives.factor_quadrature import FactorQuadrature
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.problem import make_problem, with_rows


FORMULA = "y ~ x + (1 | member) + (1 + x | rater) + (1 | day)"
MEMBERS, RATERS, DAYS, NODES = 400, 6, 4, 15
MEMBER_SD = 1.4


@pytest.fixture(scope="module")
def data():
    """Members of two to four rows, so that none is as the next, met by raters and days at random."""
    rng = np.random.default_rng(5)
    member = np.repeat(np.arange(MEMBERS), 2 + np.arange(MEMBERS) % 3)
    n = len(member)
    rater, day, x = rng.integers(RATERS, size=n), rng.integers(DAYS, size=n), rng.standard_normal(n)
    slope = 0.5 + 0.4 * rng.standard_normal(RATERS)
    eta = -0.3 + slope[rater] * x + (MEMBER_SD * rng.standard_normal(MEMBERS))[member]
    eta += (0.7 * rng.standard_normal(RATERS))[rater] + (0.5 * rng.standard_normal(DAYS))[day]
    y = (rng.random(n) < expit(eta)).astype(int)
    return {"y": y, "x": x, "member": member, "rater": rater, "day": day, "count": rng.poisson(np.exp(0.5 * eta))}


@pytest.fixture(scope="module")
def fit(data):
    return jg.fit(FORMULA, data, family="binomial", method="agq", n_agq=NODES)


@pytest.fixture(scope="module")
def laplace(data):
    return jg.fit(FORMULA, data, family="binomial", method="laplace")


def dense(fit, data):
    """The value by an integral on a fine grid for each member, and the others' mode and curvature by dense algebra."""
    factor = dict(zip((term.group for term in fit.state.terms), fit.state.column_factors, strict=True))
    one = np.eye(RATERS)[data["rater"]]
    columns = np.stack([one, one * data["x"][:, None]], axis=2) @ factor["rater"]
    V = np.column_stack([columns.reshape(len(one), -1), np.eye(DAYS)[data["day"]] * factor["day"][0, 0]])
    fixed = fit.fixef["Intercept"] + fit.fixef["x"] * data["x"]
    grid = np.linspace(-9, 9, 241)
    log_prior = -0.5 * grid**2 - 0.5 * np.log(2 * np.pi) + np.log(grid[1] - grid[0])
    first = np.flatnonzero(np.diff(data["member"], prepend=-1))
    sign, tau = 2 * data["y"] - 1, factor["member"][0, 0]

    def minus(w):
        """w'w/2 - F(w), and its gradient: scores are averaged over each member's posterior."""
        eta = (fixed + V @ w)[:, None] + tau * grid
        summands = np.add.reduceat(-np.logaddexp(0, -sign[:, None] * eta), first) + log_prior
        each = np.asarray(logsumexp(summands, axis=1))
        posterior = np.exp(summands - each[:, None])[data["member"]]
        score = np.sum(posterior * sign[:, None] * expit(-sign[:, None] * eta), axis=1)
        return 0.5 * w @ w - each.sum(), w - V.T @ score

    w = minimize(minus, np.zeros(V.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-7}).x
    steps = 1e-4 * np.eye(len(w))
    for _ in range(2):
        H = np.array([(minus(w + h)[1] - minus(w - h)[1]) / 2e-4 for h in steps])
        w = w - np.linalg.solve(H, minus(w)[1])
    return -minus(w)[0] - 0.5 * np.linalg.slogdet(H)[1]


def test_the_value_is_that_of_dense_algebra(fit, data):
    assert fit.loglik == pytest.approx(dense(fit, data), abs=1e-5)
    assert fit.convergence.converged and (fit.method, fit.n_agq) == ("agq", NODES)
    assert fit.convergence.gap > 1


def quadrature(data, formula, family):
    frame = model_frame(formula, data, family=family)
    design = with_rows(make_problem(frame, family)).rows
    assert design is not None
    return FactorQuadrature(family, design, gauss_hermite(5, 1), nested=False)


def test_the_gradient_is_that_of_the_value(data):
    """In every parameter, an effect with a column of its own and a dispersion among them."""
    formula = "count ~ x + (0 + x | member) + (1 + x | rater) + (1 | day)"
    factors = [np.array([[0.9]]), np.array([[0.6, 0.0], [0.3, 0.4]]), np.array([[0.5]])]
    with jax.enable_x64(True):
        objective = quadrature(data, formula, jg.NegativeBinomial())
        beta = np.array([0.2, -0.4])
        e = objective.evaluate(beta, factors, 0.3, np.zeros(2 * RATERS + DAYS))
        step = 1e-4

        def slope(move):
            def at(size):
                beta, factors, log_phi = move(size)
                return objective.evaluate(beta, factors, log_phi, e.u).value

            return (at(step) - at(-step)) / (2 * step)

        for j in range(2):
            assert slope(lambda h, j=j: (beta + h * np.eye(2)[j], factors, 0.3)) == pytest.approx(e.beta[j], abs=1e-6)
        for t, change in enumerate(e.factors):
            for a, b in np.ndindex(change.shape):
                unit = np.zeros_like(change)
                unit[a, b] = 1.0
                moved = lambda h, t=t, unit=unit: [f + h * unit if s == t else f for s, f in enumerate(factors)]
                assert slope(lambda h, m=moved: (beta, m(h), 0.3)) == pytest.approx(change[a, b], abs=1e-6)
        assert slope(lambda h: (beta, factors, 0.3 + h)) == pytest.approx(e.log_phi, abs=1e-6)


def test_laplace_says_that_it_is_not_close_enough(laplace):
    (text,) = laplace.convergence.warnings
    assert "9 nodes for each effect of 'member'" in text and "log_sd[Intercept|member] up" in text
    assert "method='agq'" in text and laplace.convergence.gap == laplace.convergence.checked_gap


def test_the_default_takes_nodes_where_they_matter(data, fit):
    default = jg.fit(FORMULA, data, family="binomial")
    assert default.method == "agq" and not default.convergence.warnings
    assert default.loglik == pytest.approx(fit.loglik, abs=2e-3)
    rows = zip(default.varcorr, fit.varcorr, strict=True)
    assert all(a["sd"] == pytest.approx(b["sd"], rel=2e-3, abs=2e-3) for a, b in rows)


def test_what_cannot_be_integrated_is_looked_at(data):
    """Slopes of the largest factor, and conjugate gradients: Laplace's approximation, and what it is short of."""
    for formula, solver in (("y ~ x + (1 + x | member) + (1 | rater)", "auto"), (FORMULA, "krylov")):
        fit = jg.fit(formula, data, family="binomial", solver=solver)
        (text,) = fit.convergence.warnings
        assert (
            fit.method == "laplace"
            and (fit.convergence.gap or 0.0) > 0
            and "read the standard deviations with care" in text
        )


def test_everything_about_the_fit(fit, data, tmp_path):
    text = str(fit.summary())
    assert f"Quadrature: {NODES} nodes per effect" in text and "schur" in fit.convergence.solver
    assert not fit.convergence.warnings
    assert [len(fit.ranef(group)) for group in ("member", "rater", "day")] == [MEMBERS, 2 * RATERS, DAYS]
    sd = {row["group"]: row["sd"] for row in fit.varcorr if row["name"] == "Intercept"}
    assert 0 < fit.ranef("member")["sd"].max() < sd["member"]
    new = {"x": [0.0, 1.0], "member": [3, 999], "rater": [99, 2], "day": [1, 99]}
    eta = fit.predict(new, kind="link")
    fit.save(tmp_path / "fit.jg")
    again = jg.load(tmp_path / "fit.jg")
    np.testing.assert_allclose(again.predict(new, kind="link"), eta, rtol=0, atol=1e-14)
    assert (again.loglik, again.convergence.gap) == (fit.loglik, fit.convergence.gap)


@pytest.fixture(scope="module")
def wards(data):
    """Members nested in ten wards, of the same rows."""
    return data | {"ward": data["member"] % 10}


def test_nested_factors_come_to_the_same_by_kernels_and_by_dense_algebra(wards):
    fits = [
        jg.fit("y ~ x + (1 | ward/member)", wards, family="binomial", method="agq", n_agq=NODES, solver=solver)
        for solver in ("auto", "schur")
    ]
    assert [f.convergence.kernels for f in fits] == ["native", "plain"] or fits[0].convergence.kernels == "plain"
    assert fits[1].loglik == pytest.approx(fits[0].loglik, abs=1e-8)
    sds, ses = ([[row["sd"] for row in f.varcorr] for f in fits], [list(f.fixef_se.values()) for f in fits])
    np.testing.assert_allclose(sds[1], sds[0], rtol=1e-5)
    np.testing.assert_allclose(ses[1], ses[0], rtol=1e-4)


def test_slopes_of_the_coarser_factor_are_eliminated_as_dense_algebra_has_it(wards):
    tree, dense = (
        jg.fit(
            "y ~ x + (1 + x | ward) + (1 | member)", wards, family="binomial", method="agq", n_agq=NODES, solver=solver
        )
        for solver in ("separable", "schur")
    )
    assert tree.loglik == pytest.approx(dense.loglik, abs=1e-8)
    assert tree.convergence.gap == pytest.approx(dense.convergence.gap, abs=1e-6)


def test_it_finds_the_spread_that_laplace_does_not(fit, laplace):
    member = lambda f: next(row["sd"] for row in f.varcorr if row["group"] == "member")
    assert member(laplace) < member(fit)
    assert abs(member(fit) - MEMBER_SD) < 0.5 * abs(member(laplace) - MEMBER_SD)


def test_what_it_does_not_take_is_refused_by_name(data):
    with pytest.raises(DataError, match=r"one a level; 'member' has 2: use method='laplace'"):
        jg.fit("y ~ x + (1 + x | member) + (1 | rater)", data, family="binomial", method="agq")
    with pytest.raises(DataError, match=r"quadrature over 'member' solves for the 10 effects of the other factors"):
        jg.fit("y ~ (1 | member) + (1 | rater) + (1 | day)", data, family="binomial", method="agq", solver="krylov")
