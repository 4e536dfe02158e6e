"""Groups spread over devices: where their rows go, and the whole fit on four of them."""

from types import SimpleNamespace

import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.shards import shared_index


FOUR_DEVICES = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import equinox as eqx, jax, numpy as np, jaxglmm as jg
from jax.sharding import NamedSharding, PartitionSpec
from jaxglmm.design.design import make_design
from jaxglmm.model.families import get_family
from jaxglmm.objectives.evaluate import evaluate
from jaxglmm.objectives.marginal import gauss_hermite

rng = np.random.default_rng(0)
counts = np.append(1 + rng.negative_binomial(2, 0.4, 300), [40, 70])  # two long groups, on the last device
g = rng.permutation(np.repeat(np.arange(len(counts)), counts))
x = rng.standard_normal(len(g))
eta = -0.5 + 0.6 * x + 0.9 * rng.standard_normal(len(counts))[g]
table = {"y": (rng.random(len(g)) < 1 / (1 + np.exp(-eta))) * 1.0, "x": x, "g": g}
options = dict(family="binomial", method="laplace")
one = jg.fit("y ~ x + (1 | g)", table, **options)
four = jg.fit("y ~ x + (1 | g)", table, devices=jax.devices(), **options)
assert len(four._problem.design.X.devices()) == 4
np.testing.assert_allclose(four.loglik, one.loglik, rtol=1e-12)
np.testing.assert_allclose(list(four.fixef.values()), list(one.fixef.values()), rtol=1e-10)
np.testing.assert_allclose(four.varcorr[0]["sd"], one.varcorr[0]["sd"], rtol=1e-10)
np.testing.assert_allclose(four.vcov(), one.vcov(), rtol=1e-10)
for column in ("n", "estimate", "sd", "mean", "sd_mean"):
    np.testing.assert_allclose(four.ranef()[column], one.ranef()[column], rtol=1e-10, atol=1e-12)

with jax.enable_x64(True):
    design, _ = make_design(table["y"], np.column_stack([np.ones(len(g)), x]), codes=g)
    mesh = jax.make_mesh((4,), ("rows",))
    scattered = eqx.tree_at(lambda d: d.X, design, jax.device_put(design.X, NamedSharding(mesh, PartitionSpec("rows"))))
    try:
        evaluate(get_family("binomial"), scattered, gauss_hermite(1, 1), np.zeros(4), np.zeros_like(design.terms[0].z))
    except jg.DataError as error:
        print(error)
"""


def test_four_devices_give_the_answer_of_one(run_python):
    assert "spread over several devices" in run_python(FOUR_DEVICES)


CHECKED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
import jax, jax.numpy as jnp, numpy as np, jaxglmm as jg
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxglmm.design.design import make_design
from jaxglmm.objectives.evaluate import evaluate
from jaxglmm.objectives.params import Params
from jaxglmm.optimise.node_ladder import padded_nodes

rng = np.random.default_rng(0)
codes = np.repeat(np.arange(6), (1, 2, 3, 3, 5, 36))
X = np.stack([np.ones(len(codes)), rng.standard_normal(len(codes))], 1)
mesh = jax.make_mesh((2,), ("groups",))
with jax.enable_x64(True):
    design, _ = make_design((rng.random(len(codes)) < 0.4) * 1.0, X, codes=codes)
    params = Params(jnp.asarray([0.2, -0.3]), jnp.asarray([-0.4]), jnp.asarray(0.0))
    value = jg.LaplaceMarginal(jg.Binomial())

    def evaluated(params, d):  # by the plain path; the library's whole fit has a test of its own
        psi = jnp.concatenate([params.beta, jnp.exp(params.theta), params.log_dispersion[None]])
        return evaluate(jg.Binomial(), d, padded_nodes(3, 1), psi, jnp.zeros_like(d.terms[0].z))[:3]

    def all_of(params, y):
        d = type(design)(y, *(getattr(design, k) for k in ("X", "offset", "weights", "terms", "index", "constant")))
        of = lambda p: value(p, d)
        more = evaluated(params, d) if os.environ.get("JAXGLMM_KERNELS") == "plain" else ()
        return of(params), jax.grad(of)(params), jax.hessian(of)(params), more

    def part(y, params):
        varied = jax.tree.map(lambda v: jax.lax.pcast(v, ("groups",), to="varying"), params)
        return jax.tree.map(lambda v: jax.lax.psum(v, "groups"), all_of(varied, y[0]))

    y = np.stack([design.y, 1 - design.y])
    spread = jax.device_put(y, NamedSharding(mesh, P("groups")))
    checked = jax.shard_map(part, mesh=mesh, in_specs=(P("groups"), P()), out_specs=P(), check_vma=True)
    both, alone = jax.jit(checked)(spread, params), [jax.jit(all_of)(params, v) for v in y]
    for a, b, c in zip(*map(jax.tree.leaves, (both, *alone)), strict=True):
        np.testing.assert_allclose(a, b + c, rtol=1e-11, atol=1e-11)
    print("same")
"""


@pytest.mark.native
def test_derivatives_inside_of_a_shard_map_that_is_checked(run_python):
    """The functional core, by the native kernels: what it returns varies as its operands do."""
    assert run_python(CHECKED) == "same"


def test_the_plain_path_inside_of_a_shard_map_that_is_checked(run_python):
    """The same without the library, and the evaluation with its Hessian in closed form."""
    assert run_python("import os; os.environ['JAXGLMM_KERNELS'] = 'plain'\n" + CHECKED) == "same"


def test_parts_are_whole_groups_of_equal_storage():
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 70, 200)
    codes = rng.permutation(np.repeat(np.arange(200), counts))
    index, layout = shared_index(codes, 200, SimpleNamespace(size=3, axis_names=("groups",)))
    size = layout.n_slots // 3
    assert index.n_slots == size and len(index.head) == layout.n_slots and len(index.kind) == 3 * index.n_short
    assert len(np.unique(layout.slot)) == len(codes) and index.head.sum() == 200
    part = layout.slot // size
    assert all(len(set(part[codes == g])) == 1 for g in np.flatnonzero(counts))
    assert np.ptp(np.bincount(part, minlength=3)) < 2 * counts.max()
    np.testing.assert_array_equal(layout.counts, counts)


def test_more_devices_than_groups_are_refused():
    with pytest.raises(jg.DataError, match="2 groups cannot be spread over 3 devices"):
        shared_index(np.array([0, 1, 1]), 2, SimpleNamespace(size=3, axis_names=("groups",)))
