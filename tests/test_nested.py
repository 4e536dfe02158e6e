"""Two nested factors by native kernels: against the elimination of the rows' path, differences of its exact gradient,
and whole fits by it; the sample; variances at zero."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.design import Scaling
from jaxglmm.design.nesting import nested_design, sample_parents
from jaxglmm.design.rows import make_rows
from jaxglmm.modes.choice import choose_solver
from jaxglmm.modes.several import effect_scores, find_modes
from jaxglmm.objectives.factor_quadrature import FactorQuadrature
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.objectives.nested_laplace import NestedLaplace
from jaxglmm.objectives.nested_nodes import NestedNodes
from jaxglmm.objectives.several import evaluate_several
from jaxglmm.ops.nested import nested_pass
from jaxglmm.ops.rows import FamilyRows
from jaxglmm.optimise.node_ladder import padded_nodes


FAMILIES = {
    "logit": jg.Binomial(),
    "probit": jg.Binomial("probit"),
    "cloglog": jg.Binomial("cloglog"),
    "poisson": jg.Poisson(),
    "negativebinomial": jg.NegativeBinomial(),
    "gamma": jg.Gamma(link="log"),
    "gaussian": jg.Gaussian(),
}
SIZES = np.tile((1, 1, 2, 3, 3, 5, 7, 8, 11, 16, 24, 32, 33, 40, 70), 3)
PARENTS, P = 6, 3

pytestmark = pytest.mark.native


def arrays(family, seed=1, sizes=SIZES, parents=PARENTS, sds=(0.7, 0.5)):
    """Response, columns, weights of 0 to 3, offset, and the codes of groups and of parents, shuffled."""
    rng = np.random.default_rng(seed)
    fine = np.repeat(np.arange(len(sizes)), sizes)
    coarse = rng.permutation(np.arange(len(sizes)) % parents)[fine]
    n = len(fine)
    X = rng.standard_normal((n, P))
    X[:, 0] = 1.0
    effects = [sd * rng.standard_normal(count) for sd, count in zip(sds, (len(sizes), parents), strict=True)]
    eta = 0.3 * X.sum(1) + effects[0][fine] + effects[1][coarse]
    mean = np.exp(eta)
    y = {
        "gaussian": lambda: eta + rng.standard_normal(n),
        "binomial": lambda: (rng.random(n) < 1 / (1 + 1 / mean)) * 1.0,
        "poisson": lambda: rng.poisson(mean) * 1.0,
        "negativebinomial": lambda: rng.poisson(mean * rng.gamma(2.0, 0.5, n)) * 1.0,
        "gamma": lambda: mean * rng.gamma(3.0, 1 / 3, n) + 1e-3,
    }[family.name]()
    order = rng.permutation(n)
    weights, offset = rng.integers(0, 4, n) * 1.0, 0.3 * rng.standard_normal(n)
    return SimpleNamespace(
        y=y[order], X=X[order], fine=fine[order], coarse=coarse[order], weights=weights, offset=offset
    )


class Plain:
    """The value and exact gradient of the same approximation from rows, by `objectives.several`."""

    def __init__(self, family, a):
        terms = [
            SimpleNamespace(codes=codes, levels=range(codes.max() + 1), z=np.ones((1, len(codes))), blocks=((0,),))
            for codes in (a.coarse, a.fine)
        ]
        none = Scaling(np.zeros(P), np.ones(P), 0, np.ones(0))
        how = {"weights": a.weights, "offset": a.offset, "scaling": none, "constant": 0.0}
        nested = nested_design(a.y, a.X, terms, **how)
        assert nested is not None
        self.nested = nested
        self.rows = make_rows(a.y, a.X, terms, **how)
        self.solver, self.of_rows = choose_solver(self.rows), FamilyRows(family, self.rows.y, self.rows.weights)

    def __call__(self, psi):
        factors = [psi[P + 1].reshape(1, 1), psi[P].reshape(1, 1)]
        start = np.zeros(self.rows.starts[-1])
        e = evaluate_several(self.rows, self.of_rows, self.solver, psi[:P], factors, psi[-1], start)
        return e.value, np.array([*e.beta, e.factors[1].item(), e.factors[0].item(), e.log_phi])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_value_the_gradient_and_its_differences(x64, name):
    family = FAMILIES[name]
    plain = Plain(family, arrays(family))
    psi = np.array([0.2, -0.3, 0.1, 0.7, 0.5, 0.3 if family.dispersion_name else 0.0])
    e, (value, gradient) = NestedLaplace(family, plain.nested).evaluate(psi), plain(psi)
    assert e.value == pytest.approx(value, abs=1e-10)
    kept, step = slice(None if family.dispersion_name else -1), 2e-4
    np.testing.assert_allclose(e.gradient[kept], gradient[kept], rtol=0, atol=1e-10 * np.abs(gradient).max())
    at = lambda by: np.array([plain(psi + by * step * unit)[1] for unit in np.eye(len(psi))])
    differences = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    scale = np.abs(differences[kept, kept]).max()
    np.testing.assert_allclose(e.hessian[kept, kept], differences[kept, kept], rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("nodes", [1, 5])
def test_modes_of_other_parameters_are_no_place_to_be_lost_from(x64, nodes):
    """Where the log-density overflows at the warm modes, the value is that from zero modes."""
    family = FAMILIES["poisson"]
    design = Plain(family, arrays(family)).nested
    make = lambda: NestedLaplace(family, design) if nodes == 1 else NestedNodes(family, design, gauss_hermite(nodes, 1))
    far, cold = make(), make()
    psi = np.array([0.2, -0.3, 0.1, 0.7, 0.5, 0.0])
    far.evaluate(psi)
    far.shift, far._moves = far.shift + 1e10, None
    found, wanted = far.evaluate(psi), cold.evaluate(psi)
    assert np.isfinite(wanted.value)
    assert found.value == pytest.approx(wanted.value, abs=1e-10)
    np.testing.assert_allclose(found.gradient, wanted.gradient, rtol=0, atol=1e-8 * np.abs(wanted.gradient).max())
    assert np.abs(far.shift).max() < 10


@pytest.mark.parametrize("name", ["poisson", "cloglog"])
def test_modes_are_found_at_the_foot_of_a_long_exponential_tail(x64, name):
    """Newton's steps down from exp(650) are of one: the elimination of the rows' path takes as many as there are."""
    family = FAMILIES[name]
    a = arrays(FAMILIES["logit"])
    a.offset = np.where((np.arange(len(a.y)) % 3 == 0) | (a.coarse == 0), 650.0, 0.0)
    plain, factors = Plain(family, a), [np.array([[400.0]]), np.array([[300.0]])]
    fixed = plain.rows.offset + plain.rows.X @ np.array([0.2, -0.3, 0.1])
    modes = find_modes(plain.rows, plain.of_rows, plain.solver, fixed, factors, 0.0, np.zeros(plain.rows.starts[-1]))
    assert modes.found
    _, score, _ = plain.of_rows.newton(modes.eta, 0.0)
    np.testing.assert_allclose(effect_scores(plain.rows, factors, score), modes.u, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["logit", "negativebinomial", "gamma"])
def test_quadrature_has_the_derivatives_of_its_value(x64, name):
    """The value itself is compared with integration by brute force in test_nested_quadrature.py."""
    family, step = FAMILIES[name], 1e-3
    objective = NestedNodes(family, Plain(family, arrays(family)).nested, padded_nodes(9, 1))
    psi = np.array([0.2, -0.3, 0.1, 0.7, 0.5, 0.3 if family.dispersion_name else 0.0])
    e = objective.evaluate(psi)
    at = lambda by: [objective.evaluate(psi + by * step * unit) for unit in np.eye(len(psi))]
    near, far = (list(zip(at(by), at(-by), strict=True)) for by in (1, 2))
    difference = lambda of: np.array(
        [8 * (of(a) - of(b)) - (of(c) - of(d)) for (a, b), (c, d) in zip(near, far, strict=True)]
    ) / (12 * step)  # fmt: skip
    np.testing.assert_allclose(difference(lambda e: e.value), e.gradient, atol=1e-8 * np.abs(e.gradient).max())
    np.testing.assert_allclose(difference(lambda e: e.gradient), e.hessian, atol=1e-6 * np.abs(e.hessian).max())
    psi[P] = 0.0
    edge = objective.evaluate(psi)
    psi[P] = 1e-3
    assert (objective.evaluate(psi).value - edge.value) / 1e-6 == pytest.approx(edge.by_variance[0], rel=1e-4)


def test_quadrature_is_that_of_the_plain_form(x64):
    family, a = FAMILIES["logit"], arrays(FAMILIES["logit"])
    plain, psi = Plain(family, a), np.array([0.2, -0.3, 0.1, 0.7, 0.5, 0.0])
    rule = padded_nodes(5, 1)
    reference = FactorQuadrature(family, plain.rows, gauss_hermite(5, 1), nested=True)
    factors = [psi[P + 1].reshape(1, 1), psi[P].reshape(1, 1)]
    wanted = reference.evaluate(psi[:P], factors, psi[-1], np.zeros(PARENTS))
    found = NestedNodes(family, plain.nested, rule).evaluate(psi)
    assert found.value == pytest.approx(wanted.value, abs=1e-10)
    gradient = [*wanted.beta, wanted.factors[1].item(), wanted.factors[0].item()]
    np.testing.assert_allclose(found.gradient[:-1], gradient, atol=1e-9 * np.abs(gradient).max())


@pytest.mark.parametrize("taus", [(0.0, 0.5), (0.7, 0.0), (0.0, 0.0), (3.0, 4.0), (-0.7, 0.5)])
def test_zero_and_large_deviations_are_ordinary_points(x64, taus):
    family = FAMILIES["logit"]
    plain = Plain(family, arrays(family))
    psi = np.array([0.2, -0.3, 0.1, *taus, 0.0])
    e, (value, gradient) = NestedLaplace(family, plain.nested).evaluate(psi), plain(psi)
    assert e.value == pytest.approx(value, abs=1e-10)
    np.testing.assert_allclose(e.gradient[:-1], gradient[:-1], atol=1e-9)
    # The derivative in the variance at zero is what the value does close by.
    for j in np.flatnonzero(np.array(taus) == 0):
        near = psi.copy()
        near[P + j] = 1e-3
        assert (plain(near)[0] - value) / 1e-6 == pytest.approx(e.by_variance[j], rel=1e-4)


def test_instruction_sets_agree(run_python):
    code = f"""
import sys, jax, numpy as np
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_nested import FAMILIES, NestedLaplace, Plain, arrays
family = FAMILIES["negativebinomial"]
e = NestedLaplace(family, Plain(family, arrays(family)).nested).evaluate(np.array([0.2, -0.3, 0.1, 0.7, 0.5, 0.3]))
print(e.value, *e.gradient, *e.hessian.ravel())
"""
    found = [np.array(run_python(code, JAXGLMM_SIMD=simd).split(), float) for simd in ("", "baseline")]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10, atol=1e-8)


def test_bad_operands_are_refused(x64):
    a = arrays(FAMILIES["poisson"])
    design = Plain(FAMILIES["poisson"], a).nested
    eta, start, held = jnp.zeros(design.layout.n_slots), jnp.zeros(len(design.parents)), np.zeros((3, PARENTS))
    call = lambda group, parents: nested_pass(
        FAMILIES["poisson"], design.tiles, group, parents, eta, start, held, np.zeros(2), columns=False
    )
    with pytest.raises(Exception, match="a parent is none of 6"):
        jax.block_until_ready(call(design.group, design.parents + 1))
    with pytest.raises(Exception, match="a group is none of 45"):
        jax.block_until_ready(call(design.group + 1, design.parents))


def table(family, **options):
    a = arrays(family, **options)
    y = a.y.astype(int) if family.name in ("binomial", "poisson", "negativebinomial") else a.y
    return {
        "y": y, "x1": a.X[:, 1], "x2": a.X[:, 2], "g": a.fine, "h": a.coarse, "w": a.weights + 1, "o": a.offset
    }  # fmt: skip


def assert_the_same(found, wanted):
    assert found.loglik == pytest.approx(wanted.loglik, abs=1e-7)
    errors = np.array(list(wanted.fixef_se.values()))
    away = np.subtract(list(found.fixef.values()), list(wanted.fixef.values())) / errors
    assert np.abs(away).max() < 1e-4
    covariance = [fit.state.estimate.covariance for fit in (found, wanted)]
    np.testing.assert_allclose(*covariance, atol=1e-5 * np.abs(covariance[1]).max())
    for group in ("g", "h"):
        (one,), (other,) = ([r for r in fit.varcorr if r["group"] == group] for fit in (found, wanted))
        assert one["sd"] == pytest.approx(other["sd"], rel=1e-5, abs=1e-6)
        for column in ("estimate", "sd"):
            np.testing.assert_allclose(found.ranef(group)[column], wanted.ranef(group)[column], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["logit", "negativebinomial"])
def test_a_fit_is_that_of_the_rows(monkeypatch, name):
    family = FAMILIES[name]
    data = table(family, sizes=np.tile(SIZES, 2), parents=10)
    options = {"family": family, "method": "laplace", "offset": "o", "weights": None if name == "logit" else "w"}
    found = jg.fit("y ~ x1 + x2 + (1 | h) + (1 | g)", data, **options)
    assert found.convergence.kernels == "native" and found.convergence.solver.startswith("separable")
    monkeypatch.setenv("JAXGLMM_KERNELS", "plain")
    wanted = jg.fit("y ~ x1 + x2 + (1 | h) + (1 | g)", data, **options)
    assert wanted.convergence.kernels == "plain"
    assert_the_same(found, wanted)
    assert wanted.convergence.passes > 2 * found.convergence.passes


@pytest.mark.parametrize(("sds", "seed", "zero"), [((0.9, 0.0), 3, "h"), ((0.0, 0.8), 4, "g")])
def test_a_variance_at_zero_is_an_answer(monkeypatch, sds, seed, zero):
    family = FAMILIES["logit"]
    data = table(family, sizes=np.full(150, 3), parents=15, sds=sds, seed=seed)
    found = jg.fit("y ~ x1 + x2 + (1 | h) + (1 | g)", data, family=family, method="laplace")
    other = {"g": "h", "h": "g"}[zero]
    alone = jg.fit(f"y ~ x1 + x2 + (1 | {other})", data, family=family, method="laplace")
    assert found.convergence.singular and found.convergence.scores_at_zero[zero] < 0
    assert found.loglik == pytest.approx(alone.loglik, abs=1e-8)
    monkeypatch.setenv("JAXGLMM_KERNELS", "plain")
    wanted = jg.fit("y ~ x1 + x2 + (1 | h) + (1 | g)", data, family=family, method="laplace")
    assert_the_same(found, wanted)
    assert found.convergence.scores_at_zero[zero] == pytest.approx(wanted.convergence.scores_at_zero[zero], rel=1e-3)


def test_held_deviations(monkeypatch):
    family = FAMILIES["poisson"]
    data, options = table(family), {"family": family, "method": "laplace", "theta": {"h": 0.4, "g": 0.9}}
    found = jg.fit("y ~ x1 + (1 | h/g)", data | {"g": data["g"] % 45}, **options | {"theta": {"h": 0.4, "h:g": 0.9}})
    monkeypatch.setenv("JAXGLMM_KERNELS", "plain")
    wanted = jg.fit("y ~ x1 + (1 | h) + (1 | g)", data, **options)
    assert found.loglik == pytest.approx(wanted.loglik, abs=1e-8)
    assert [row["sd"] for row in found.varcorr] == pytest.approx([0.4, 0.9])
    assert not found.convergence.singular


@pytest.mark.parametrize("whole", [True, False])
def test_a_sample_is_some_parents_with_all_their_rows_or_some_groups_of_each(x64, monkeypatch, whole):
    for name, value in (("_MANY_ROWS", 100), ("_FEWEST_ROWS", 300), ("_FEWEST_LEVELS", 8)):
        monkeypatch.setattr(f"jaxglmm.design.nesting.{name}", value)
    monkeypatch.setattr("jaxglmm.design.nesting._FEWEST_GROUPS", 100 if whole else 1)
    family = FAMILIES["poisson"]
    parents = 60 if whole else 10
    a = arrays(family, sizes=np.tile(SIZES, 8), parents=parents)
    design = Plain(family, a).nested
    part = sample_parents(design)
    assert part is not None and part.n_parents == (8 if whole else parents)
    inside = np.isin(design.levels, part.levels)
    chosen = np.unique(design.parents[inside]) if whole else np.arange(parents)
    rows = np.isin(a.coarse, chosen) if whole else np.isin(a.fine, part.levels)
    assert len(chosen) == part.n_parents and 0 < len(part.codes) == rows.sum() < len(a.y) / 3
    if not whole:
        assert set(design.parents[inside]) == set(range(parents))
    for name, v in (("y", a.y), ("weights", a.weights), ("offset", a.offset)):
        np.testing.assert_array_equal(np.asarray(getattr(part.tiles, name))[part.layout.slot], v[rows])
    np.testing.assert_array_equal(np.asarray(part.tiles.X)[part.layout.slot], a.X[rows])
    np.testing.assert_array_equal(part.levels[part.codes], a.fine[rows])
    np.testing.assert_array_equal(chosen[part.parents[part.codes]], a.coarse[rows])


@pytest.mark.parametrize("fewest_groups", [1, 100])
def test_a_fit_that_begins_at_a_sample_ends_where_others_do(monkeypatch, fewest_groups):
    family = FAMILIES["poisson"]
    data = table(family, sizes=np.full(1500, 4), parents=75)
    plain = jg.fit("y ~ x1 + x2 + (1 | h) + (1 | g)", data, family=family, method="laplace")
    for name, value in (("_MANY_ROWS", 1000), ("_FEWEST_ROWS", 1500), ("_FEWEST_LEVELS", 10)):
        monkeypatch.setattr(f"jaxglmm.design.nesting.{name}", value)
    monkeypatch.setattr("jaxglmm.design.nesting._FEWEST_GROUPS", fewest_groups)
    begun = jg.fit("y ~ x1 + x2 + (1 | h) + (1 | g)", data, family=family, method="laplace")
    assert begun.convergence.passes < plain.convergence.passes
    assert_the_same(begun, plain)


def test_what_the_kernels_do_not_cover_goes_by_the_rows():
    data = table(FAMILIES["poisson"], sizes=np.full(200, 4), parents=20)
    data["k"] = data["h"] % 4
    for formula in ("y ~ x1 + (1 | k) + (1 | h) + (1 | g)", "y ~ x1 + (1 | h) + (1 + x1 | g)"):
        fit = jg.fit(formula, data, family="poisson")
        assert fit.convergence.kernels == "plain" and fit.convergence.solver.startswith("separable")
