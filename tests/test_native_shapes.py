"""What native operations say they return is what `jax.eval_shape` finds of their plain forms, in both precisions.

Nothing is computed here: the kernels check the shapes of their results themselves, whenever they are called.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.design import make_design
from jaxglmm.design.groups import round_up
from jaxglmm.design.pairs import find_pairs
from jaxglmm.objectives import quadrature
from jaxglmm.objectives.evaluate import Evaluation, evaluate, posterior_moments
from jaxglmm.objectives.marginal import gauss_hermite
from jaxglmm.objectives.posterior import Rows, group_posteriors, lattice
from jaxglmm.ops import modes, moments, native, nested, pairs


pytestmark = pytest.mark.native

G, P, NODES = 40, 3, 3
NB = jg.NegativeBinomial()


def problem(rows, effects=1):
    """Design, psi, a rule and where the search for modes begins; groups of one row to four and of forty."""
    rng = np.random.default_rng(effects)
    codes = np.repeat(np.arange(G), np.append(rng.integers(1, 5, G - 1), 40))
    n = len(codes)
    z = rng.standard_normal((effects, n))
    design, layout = make_design(rng.poisson(1.0, n) * 1.0, rng.standard_normal((n, P)), codes=codes, z=z, dtype=rows)
    m = P + effects * (effects + 1) // 2 + 1
    return (
        design,
        layout,
        jnp.zeros(m, rows),
        gauss_hermite(NODES, effects).astype(rows),
        jnp.zeros_like(design.terms[0].z),
    )


@pytest.fixture(scope="module", autouse=True)
def traced_afresh():
    """Programs that were traced before call the library unseen."""
    jax.clear_caches()


@pytest.fixture
def same(monkeypatch):
    """Compare shapes, types and structure of what a native function, calling this kernel, and a plain one return."""
    called, original = [], native.call
    monkeypatch.setattr(native, "call", lambda kernel, *a, **k: called.append(kernel) or original(kernel, *a, **k))

    def shapes(function, way, kernels):
        called.clear()
        monkeypatch.setenv("JAXGLMM_KERNELS", way)
        found = jax.tree.map(lambda s: (s.shape, s.dtype), jax.eval_shape(function))
        assert set(called) == kernels
        return found

    def compare(kernel, function, plain):
        assert shapes(function, "native", {kernel}) == shapes(plain, "plain", set())

    return compare


@pytest.fixture
def both(same):
    """Compare what one function, traced afresh, returns in native code and in plain JAX."""
    return lambda operation, kernel: same(kernel, lambda: operation(), lambda: operation())


@pytest.mark.parametrize(("effects", "second"), [(1, True), (2, False)])
@pytest.mark.parametrize(
    ("rows", "sums"), [("f8", "f8"), ("f4", "f8"), ("f4", "f4")], ids=["double", "mixed", "single"]
)
def test_the_pass_over_the_rows(x64, both, rows, sums, effects, second):
    design, _, psi, rule, start = problem(np.dtype(rows), effects)
    both(lambda: evaluate(NB, design, rule, psi.astype(sums), start, second=second), "fused_pass")


@pytest.mark.parametrize("effects", [1, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_groups_whose_eta_is_given(x64, same, dtype, effects):
    design, _, _, rule, _ = problem(dtype, effects)
    term, zero = design.terms[0], jnp.zeros((), dtype)
    arrays = (jnp.zeros_like(design.y), jnp.eye(effects, dtype=dtype), zero)
    data = (design.y, design.weights, term.z, term.index, rule)
    by = lambda native: lambda: quadrature.slot_gradient(NB, NODES, True, native, *arrays, *data)
    same("group_modes", by(True), by(False))
    traced = jax.tree.map(jnp.asarray, data)  # as within a compiled function
    plain = lambda *of: quadrature._plain_gradient(NB, NODES, True, *of, *traced)[1:]
    pushed = lambda: modes.group_push(NB, NODES, True, *arrays, *data, *arrays)
    same("group_push", pushed, lambda: jax.jvp(plain, arrays, arrays)[1])


@pytest.mark.parametrize("rows", [np.float64, np.float32])
def test_posteriors_of_groups(x64, same, rows):
    """The plain ones are in slots, the native ones by level, in float64 whatever the rows are stored in."""
    design, layout, psi, rule, start = problem(rows)
    psi, rule, first, V = psi.astype("f8"), rule.astype("f8"), layout.first, np.eye(P + 2)
    level, levels = moments._levels(design, first), round_up(G)
    first = jnp.asarray(np.resize(first, levels))

    def plain_moments():
        found = posterior_moments(NB, design, rule, psi, start.astype("f8"))
        by_level = jnp.stack([found.root[0, 0], found.mean[0], found.covariance[0, 0]], 1)[first]
        return by_level, found.weights.T[first]

    def plain_effects():
        wide = lambda v: jnp.asarray(v, "f8")
        factor = jnp.ones((1, *design.terms[0].z.shape))
        slots = Rows(*map(wide, (design.y, design.weights, design.offset, design.terms[0].z, start, 0 * start)), factor)  # pyright: ignore
        p = group_posteriors(NB, design.index, lattice(1.0), slots, 0.0, wide(design.X), entries=((0, 0),))
        added = jnp.einsum("ag,ab,bg->g", p.slopes[0], V, p.slopes[0])
        return jnp.stack([p.mean[0], p.covariance[0, 0], added], 1)[first]

    of_moments = lambda: tuple(moments._group_moments(NB, design, rule, psi, start, level, levels=levels, keep=True))
    of_effects = lambda: moments._group_effects(NB, design, psi, V, start, level, levels=levels)
    same("group_moments", of_moments, plain_moments)
    same("group_effects", of_effects, plain_effects)


@pytest.mark.parametrize("rows", [np.float64, np.float32])
def test_groups_nested_in_parents(x64, same, rows):
    """The groups' part of the pass is that of groups alone, summed over shifts; a parent has sums of each shift."""
    H, J = 8, 4
    design, _, psi, rule, start = problem(rows)
    psi, rule, slots = psi.astype("f8"), rule.astype("f8"), design.X.shape[0]
    group, parent = jnp.zeros(slots, jnp.int32), jnp.zeros(G, jnp.int32)
    eta, ones = jnp.zeros(slots), jnp.ones((J, H))
    alone = lambda psi: evaluate(NB, design, rule, psi, start.astype("f8"))

    def shifted():
        found = nested.shifted_pass(
            NB, design, group, parent, None, start.astype("f8"), ones[0], ones[:, 0], ones, psi, rule
        )
        return Evaluation(*found[:4]), found.of_parents

    def of_parents():
        e = jax.vmap(jax.vmap(lambda _: alone(psi)))(ones.T)
        return alone(psi), jnp.concatenate([e.value[..., None], e.gradient, e.hessian[..., :1, 0]], -1)

    held = lambda: nested.nested_pass(
        NB, design, group, parent, eta, jnp.zeros(G), jnp.zeros((3, H)), jnp.zeros(2), columns=True
    )[:5]

    def one_by_one():
        e = alone(psi)
        return e.value, e.gradient, e.hessian, e.modes[0, :G], e.modes[0, :G]

    same("shifted_pass", shifted, of_parents)
    same("nested_pass", held, one_by_one)


def test_products_over_pairs_of_levels(x64, both):
    """In float64 alone: in float32 there is nothing native to compare."""
    rng = np.random.default_rng(0)
    index = find_pairs(rng.integers(0, 30, 200), 30, rng.integers(0, 9, 200), 9).index
    m, S, R, k = len(index.second), 2, 3, 4
    values, a, b = (jnp.zeros(shape) for shape in ((m, S, R), (len(index.start) - 1, S, k), (16, R, k)))
    both(lambda: pairs.pair_product(values, index, b), "pair_product")
    both(lambda: pairs.pair_product(values, index, a, adjoint=True), "pair_product")
    both(lambda: pairs.pair_outer(index, a, b), "pair_outer")
    both(lambda: pairs.row_sums(values[:, 0].T, values[:, :, 0].T, index.start), "row_sums")
    both(lambda: pairs.row_sums(values[:, 0].T, None, index.start), "row_sums")
    square = jnp.zeros((16, 16))
    both(lambda: pairs.sampled_product(values[:, 0, 0], index.start, index.second, square), "sampled_product")
