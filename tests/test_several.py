"""Several grouping factors: solvers against dense linear algebra, gradients against differences, fits against R."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.design import Scaling
from jaxglmm.design.rows import make_rows
from jaxglmm.errors import DataError
from jaxglmm.modes.choice import choose_solver
from jaxglmm.modes.krylov import Krylov
from jaxglmm.objectives.several import evaluate_several, fixed_hessian
from jaxglmm.ops.rows import FamilyRows


BETA, LOG_PHI, EPS = np.array([0.2, -0.3]), 0.3, 1e-5


class Case:
    """300 rows, three factors of 20, 6 and 4 levels, the first with a slope."""

    def __init__(self, nested: bool, family, wanted: str):
        rng = np.random.default_rng(1)
        n, levels = 300, [6, 20, 4]
        finest = rng.integers(0, 20, n)
        codes = [finest % 6, finest, finest % 2] if nested else [rng.integers(0, g, n) for g in levels]
        x = rng.standard_normal(n)
        terms = [
            SimpleNamespace(codes=c, levels=range(g), z=np.stack([np.ones(n), x])[:S], blocks=(tuple(range(S)),))
            for c, g, S in zip(codes, levels, (1, 2, 1), strict=True)
        ]
        X = np.stack([np.ones(n), rng.standard_normal(n)], axis=1)
        y = rng.integers(0, 2 if family.name == "binomial" else 5, n).astype(float)
        none = Scaling(np.zeros(2), np.ones(2), 0, np.ones(0))
        self.design = make_rows(y, X, terms, weights=np.ones(n), offset=np.zeros(n), scaling=none, constant=0.0)
        self.rows = FamilyRows(family, self.design.y, self.design.weights)
        self.solver = choose_solver(self.design, wanted)
        self.factors = [np.array([[0.7]]), np.array([[0.6, 0.0], [-0.3, 0.5]]), np.array([[0.4]])]

    def at(self, solver, beta=BETA, factors=None, log_phi=LOG_PHI):
        start = np.zeros(self.design.starts[-1])
        return evaluate_several(self.design, self.rows, solver, beta, factors or self.factors, log_phi, start)

    def loadings(self):
        """V, dense."""
        V = np.zeros((len(self.design.y), self.design.starts[-1]))
        for term, factor, begin in zip(self.design.terms, self.factors, self.design.starts, strict=False):
            for a in range(term.n_effects):
                unit = np.zeros((term.n_levels, term.n_effects))
                for g in range(term.n_levels):
                    unit[:] = 0.0
                    unit[g, a] = 1.0
                    V[:, begin + g * term.n_effects + a] = term.at_rows(unit @ factor.T)
        return V


@pytest.fixture(scope="module", params=[(True, "separable"), (True, "schur"), (False, "schur")])
def case(request):
    nested, wanted = request.param
    with jax.enable_x64(True):
        yield Case(nested, jg.NegativeBinomial(), wanted)


def test_solvers_are_dense_linear_algebra(case):
    e, V = case.at(case.solver), case.loadings()
    H = np.eye(V.shape[1]) + V.T @ (e.rows.w[:, None] * V)
    b = np.random.default_rng(0).standard_normal((len(H), 3))
    np.testing.assert_allclose(V.T @ e.rows.s, e.u, atol=1e-12)  # the mode
    np.testing.assert_allclose(e.H.log_det, np.linalg.slogdet(H)[1], rtol=1e-12)
    np.testing.assert_allclose(e.H.solve(b), np.linalg.solve(H, b), rtol=1e-9, atol=1e-12)
    leverage = np.einsum("iq,qr,ir->i", V, np.linalg.inv(H), V)
    np.testing.assert_allclose(e.leverage, leverage, rtol=1e-9)


def test_the_gradient_is_that_of_the_value(case):
    e = case.at(case.solver)
    slope = lambda up, down: (up.value - down.value) / (2 * EPS)
    for j, unit in enumerate(np.eye(2)):
        found = slope(case.at(case.solver, BETA + EPS * unit), case.at(case.solver, BETA - EPS * unit))
        assert found == pytest.approx(e.beta[j], abs=2e-7)
    assert slope(case.at(case.solver, log_phi=LOG_PHI + EPS), case.at(case.solver, log_phi=LOG_PHI - EPS)) == (
        pytest.approx(e.log_phi, abs=2e-7)
    )
    for t, factor in enumerate(case.factors):
        for entry in zip(*np.tril_indices(len(factor)), strict=True):
            moved = []
            for sign in (1, -1):
                other = factor.copy()
                other[entry] += sign * EPS
                moved.append(case.at(case.solver, factors=[*case.factors[:t], other, *case.factors[t + 1 :]]))
            assert slope(*moved) == pytest.approx(e.factors[t][entry], abs=2e-7)


def test_the_hessian_of_the_fixed_effects_is_that_of_the_value(case):
    e = case.at(case.solver)
    differences = [
        (case.at(case.solver, BETA + EPS * unit).beta - case.at(case.solver, BETA - EPS * unit).beta) / (2 * EPS)
        for unit in np.eye(2)
    ]
    # The trace, about 1e-3 of the whole, is found by random signs.
    np.testing.assert_allclose(fixed_hessian(case.design, e, case.factors), differences, rtol=2e-3, atol=1e-3)


def test_estimates_are_unbiased_with_the_error_that_they_state():
    """Values and gradients of the iterative solver over 40 sets of random vectors, three factors and slopes."""
    entries = lambda e: [f[np.tril_indices(len(f))] for f in e.factors]
    flat = lambda e: np.concatenate([[e.value, e.log_phi], e.beta, *entries(e)])
    with jax.enable_x64(True):
        case = Case(False, jg.NegativeBinomial(), "schur")
        found = [case.at(Krylov(reason="", seed=seed)) for seed in range(40)]
        again = case.at(Krylov(reason="", seed=7))
        away = np.array([flat(e) for e in found]) - flat(case.at(case.solver))
    assert (flat(again) == flat(found[7])).all()  # the same vectors give the same numbers
    error = away.std(0, ddof=1) / np.sqrt(len(away))
    assert (error > 0).all()
    assert (np.abs(away.mean(0)) < 4 * error).all()
    stated = np.mean([e.value_se**2 for e in found])
    assert 0.5 < stated / np.var(away[:, 0], ddof=1) < 2


def test_a_factorisation_in_single_precision_is_the_other_one_to_some_digits():
    with jax.enable_x64(True):
        case = Case(False, jg.NegativeBinomial(), "schur")
        double, single = case.at(case.solver), case.at(case.solver.approximate)
    assert single.leverage is not None and double.leverage is not None
    assert 0 < np.abs(single.leverage / double.leverage - 1).max() < 1e-5
    np.testing.assert_allclose(single.beta, double.beta, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "formula", "family", "solver"),
    [
        ("VerbAgg", "r2 ~ Anger + Gender + btype + situ + (1 | id) + (1 | item)", "binomial", "schur"),
        ("grouseticks", "TICKS ~ YEAR + HEIGHT_z + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)", "poisson", "separable"),
    ],
)
def test_reference_fits(reference_dir, name, formula, family, solver):
    stored = json.loads((reference_dir / f"{name}.json").read_text())
    truth = next(f for f in stored["fits"] if "glmmTMB" in f["engine"])
    groups = {part["group"] for part in truth["varcomp"]}
    levels = {k: v["levels"] for k, v in stored["columns"].items() if v["type"] == "factor" and k not in groups}
    fit = jg.fit(formula, reference_dir / f"{name}.csv", family=family, levels=levels, method="laplace")
    assert fit.loglik == pytest.approx(truth["logLik"], abs=1e-6)
    assert fit.convergence.solver.startswith(solver)
    for part in truth["varcomp"]:
        (sd,) = (row["sd"] for row in fit.varcorr if row["group"] == part["group"])
        assert sd == pytest.approx(np.ravel(part["sd"])[0], rel=1e-5)
    estimate, se = np.array(list(fit.fixef.values())), np.array(list(fit.fixef_se.values()))
    np.testing.assert_allclose((estimate - truth["fixef"]["estimate"]) / se, 0, atol=1e-4)
    np.testing.assert_allclose(se, truth["full"]["beta_se"], rtol=1e-4)
    covariance = np.array(truth["full"]["vcov"])
    theta = np.sqrt(np.diag(covariance))[len(se) :]
    np.testing.assert_allclose(np.sqrt(np.diag(fit.state.estimate.covariance))[len(se) :], theta, rtol=1e-4)


@pytest.fixture(scope="module")
def unbalanced():
    """Two crossed factors whose level counts follow a power law, many levels with one row."""
    rng = np.random.default_rng(3)
    n = 1500
    draw = lambda levels: rng.choice(levels, n, p=(w := np.arange(1, levels + 1) ** -1.5) / w.sum())
    a, b, x = draw(150), draw(60), rng.standard_normal(n)
    eta = 0.3 + 0.5 * x + 0.8 * rng.standard_normal(150)[a]
    y = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int)
    return {"y": y, "x": x, "a": a, "b": b, "c": rng.integers(0, 6, n)}


def test_a_variance_at_zero_is_an_answer(unbalanced):
    """A factor without effect beside a power law of levels: singular, with the likelihood of the fit without it."""
    fit = jg.fit("y ~ x + (1 | a) + (1 | c)", unbalanced, family="binomial", method="laplace")
    alone = jg.fit("y ~ x + (1 | a)", unbalanced, family="binomial", method="laplace")
    assert fit.convergence.singular and fit.convergence.converged
    assert fit.convergence.scores_at_zero["c"] < 0
    assert fit.loglik == pytest.approx(alone.loglik, abs=1e-7)
    assert fit.varcorr[1]["sd"] == 0.0
    np.testing.assert_allclose(list(fit.fixef_se.values()), list(alone.fixef_se.values()), rtol=1e-4)
    # The score is the slope of the likelihood at a small held variance.
    theta = {"a": fit.varcorr[0]["sd"], "c": 0.02}
    near = jg.fit("y ~ x + (1 | a) + (1 | c)", unbalanced, family="binomial", method="laplace", theta=theta)
    assert (near.loglik - fit.loglik) / 0.02**2 == pytest.approx(fit.convergence.scores_at_zero["c"], rel=0.05)


def test_a_joint_fit_of_two_factors_is_a_ridge_on_their_one_hot_columns(unbalanced):
    """The score equations of the penalised likelihood hold, with lambda = 1/sd^2."""
    theta = {"a": 0.8, "b": 0.5}
    fit = jg.fit("y ~ x + (1 | a) + (1 | b)", unbalanced, family="binomial", method="joint", theta=theta)
    left = unbalanced["y"] - fit.predict(effects="mode")
    assert abs(left.sum()) < 1e-6 and abs(left @ unbalanced["x"]) < 1e-6
    for group, sd in theta.items():
        table = fit.ranef(group)
        sums = np.bincount(np.searchsorted(table["level"], unbalanced[group]), left)
        np.testing.assert_allclose(sums, np.asarray(table["estimate"]) / sd**2, atol=1e-6)


@pytest.fixture(scope="module")
def grid():
    """Two balanced crossed factors of 150 levels each, 10 rows a level."""
    rng = np.random.default_rng(8)
    levels, n = 150, 1500
    a, b = np.tile(np.arange(levels), 10), np.concatenate([rng.permutation(levels) for _ in range(10)])
    x, z = rng.standard_normal((2, n))
    eta = 0.5 * x + 0.5 * rng.standard_normal(levels)[a] + 0.5 * rng.standard_normal(levels)[b]
    y = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int)
    return {"y": y, "x": x, "z": z, "a": a, "b": b, "c": rng.integers(0, 30, n)}


@pytest.mark.parametrize("formula", ["y ~ x + (1 | a) + (1 | b)", "y ~ x + (1 | a) + (1 + z || b) + (1 | c)"])
def test_an_iterative_fit_is_the_exact_one_up_to_its_stated_error(grid, formula, monkeypatch):
    monkeypatch.setattr("jaxglmm.modes.choice._COSTLY", 100)  # the exact one begins at an iterative one
    iterative = jg.fit(formula, grid, family="binomial", solver="krylov", throw=False)
    exact = jg.fit(formula, grid, family="binomial", method="laplace", throw=False)
    assert exact.convergence.solver.startswith("schur") and exact.convergence.loglik_se == 0
    assert iterative.convergence.converged and exact.convergence.converged
    assert 0 < iterative.convergence.loglik_se < 0.1
    assert abs(iterative.loglik - exact.loglik) < 5 * iterative.convergence.loglik_se
    errors = np.array(list(exact.fixef_se.values()))
    away = np.subtract(list(iterative.fixef.values()), list(exact.fixef.values())) / errors
    assert np.abs(away).max() < 0.05
    np.testing.assert_allclose(list(iterative.fixef_se.values()), errors, rtol=5e-3)
    for one, other in zip(iterative.varcorr, exact.varcorr, strict=True):
        assert one["sd"] == pytest.approx(other["sd"], rel=0.02)
    np.testing.assert_allclose(iterative.ranef("a")["estimate"], exact.ranef("a")["estimate"], atol=0.02)
    np.testing.assert_allclose(iterative.ranef("a")["sd"], exact.ranef("a")["sd"], rtol=0.05)
    assert "Monte-Carlo" in str(iterative.summary()) and "Monte-Carlo" not in str(exact.summary())


def test_a_fit_of_many_nested_levels_begins_at_a_sample(monkeypatch):
    rng = np.random.default_rng(4)
    member = rng.integers(0, 1500, 6000)
    hospital = member % 75
    x = rng.standard_normal(6000)
    eta = 0.4 * x + rng.standard_normal(1500)[member] + 0.6 * rng.standard_normal(75)[hospital]
    data = {"y": rng.poisson(np.exp(eta)), "x": x, "member": member, "hospital": hospital}
    formula = "y ~ x + (1 | hospital) + (1 | member)"
    monkeypatch.setenv("JAXGLMM_KERNELS", "plain")  # those of two nested factors have their own way (test_nested.py)
    plain = jg.fit(formula, data, family="poisson", method="laplace")
    monkeypatch.setattr("jaxglmm.optimise.several_sample._MANY_ROWS", 1000)
    monkeypatch.setattr("jaxglmm.optimise.several_sample._FEWEST_ROWS", 1500)
    monkeypatch.setattr("jaxglmm.optimise.several_sample._FEWEST_LEVELS", 10)
    begun = jg.fit(formula, data, family="poisson", method="laplace")
    assert begun.convergence.iterations < plain.convergence.iterations
    assert begun.loglik == pytest.approx(plain.loglik, abs=1e-8)
    np.testing.assert_allclose(list(begun.fixef_se.values()), list(plain.fixef_se.values()), rtol=1e-6)
    assert [row["sd"] for row in begun.varcorr] == pytest.approx([row["sd"] for row in plain.varcorr], rel=1e-7)


def test_levels_that_occur_only_together_are_no_trouble():
    """One row beside a level of two rows of either factor: the maximum of a likelihood that dense algebra agrees on."""
    rng = np.random.default_rng(11)
    a, b = rng.integers(0, 30, 900), rng.integers(0, 12, 900)
    a[:3], b[:3] = 30, 12  # confounded
    a[3] = 31  # a single row
    eta = 0.8 * rng.standard_normal(32)[a] + 0.5 * rng.standard_normal(13)[b]
    data = {"y": rng.poisson(np.exp(eta)), "a": a, "b": b}
    fit = jg.fit("y ~ 1 + (1 | a) + (1 | b)", data, family="poisson", method="laplace")
    assert fit.convergence.converged and not fit.convergence.singular
    at = {row["group"]: row["sd"] for row in fit.varcorr}
    for group in at:
        for factor in (0.98, 1.02):
            moved = at | {group: at[group] * factor}
            held = jg.fit("y ~ 1 + (1 | a) + (1 | b)", data, family="poisson", method="laplace", theta=moved)
            assert held.loglik < fit.loglik
    # The confounded levels share what their rows say in proportion to their variances.
    level = lambda group, which: fit.ranef(group)["estimate"][list(fit.ranef(group)["level"]).index(which)]
    assert level("a", 30) / level("b", 12) == pytest.approx(at["a"] ** 2 / at["b"] ** 2, rel=1e-6)


def test_solvers_may_be_chosen_where_the_data_allow(unbalanced):
    with pytest.raises(DataError, match="solver must be one of"):
        jg.fit("y ~ x + (1 | a) + (1 | b)", unbalanced, family="binomial", solver="cholesky")
    with pytest.raises(DataError, match="these cross: use 'schur'"):
        jg.fit("y ~ x + (1 | a) + (1 | b)", unbalanced, family="binomial", solver="separable")
