"""`python -m bench device`: every operation and a whole fit on this machine's accelerator against its CPU.

The reference is float64 on the CPU. Operations are run in float32, and in float64 where the device has it, and are held
against the reference by what float32 can carry; each is shown with its time, the bytes that it must move, and their
share of what a plain copy moves.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from bench.simulate import members


# Largest relative error that is no fault, by type: of sums over all rows, and of values slot by slot.
TOLERANCE = {"float32": 2e-4, "float64": 1e-9}
_RUNS = 5


@dataclass(frozen=True)
class Measured:
    """One operation on one device in one type: its error against the CPU's float64, seconds, bytes moved."""

    operation: str
    dtype: str
    error: float
    seconds: float
    bytes: int

    @property
    def good(self) -> bool:
        return self.error <= TOLERANCE[self.dtype]


def has_float64(device) -> bool:
    """Whether a device computes in float64; TPUs do not."""
    return device.platform in ("cpu", "gpu", "cuda", "rocm")


def bandwidth(device, megabytes: int = 256) -> float:
    """Bytes a second of a plain copy on the device, reading and writing counted."""
    values = jax.device_put(np.zeros(megabytes << 18, np.float32), device)
    seconds, _ = _timed(jax.jit(lambda v: v + 1), values)
    return 2 * values.nbytes / seconds


def check(device, groups: int, columns: int = 20, seed: int = 0) -> list[Measured]:
    """Measure every operation, and a whole fit, on a device.

    Parameters
    ----------
    device : jax.Device
    groups : int
        Of the members design.
    """
    dtypes = ["float32", "float64"] if has_float64(device) else ["float32"]
    arrays = members(groups, columns=columns, seed=seed)
    found = []
    with jax.enable_x64(True):
        reference = _operations(jax.devices("cpu")[0], arrays, "float64")
        expected = {name: jax.tree.map(np.asarray, call(*given)) for name, (call, given, _) in reference.items()}
        for dtype in dtypes:
            for name, (call, given, moved) in _operations(device, arrays, dtype).items():
                seconds, result = _timed(call, *given)
                found.append(Measured(name, dtype, _error(result, expected[name]), seconds, moved))
    return found


def _operations(device, arrays, dtype):
    """{name: (compiled function, its arguments on the device, bytes that it must read and write)}."""
    from jaxglmm.design.design import make_design
    from jaxglmm.model.families import get_family
    from jaxglmm.objectives.evaluate import evaluate, evaluate_glm, posterior_moments
    from jaxglmm.objectives.laplace import LaplaceMarginal
    from jaxglmm.objectives.marginal import gauss_hermite
    from jaxglmm.objectives.params import Params
    from jaxglmm.ops.group import map_groups

    family, X = get_family("binomial"), arrays["X"].T
    codes = np.unique(arrays["g"], return_inverse=True)[1]
    design, _ = make_design(arrays["y"], X, codes=codes, dtype=np.dtype(dtype), blocked=device.platform == "cpu")
    put = lambda tree: jax.tree.map(lambda v: jax.device_put(jnp.asarray(v, _kept(v, dtype)), device), tree)
    design = put(design)
    p = X.shape[1]
    psi = put(np.concatenate([[-1.0], np.full(p - 1, 0.1), [0.8, 0.0]]))
    start = jnp.zeros_like(design.terms[0].z)
    laplace, nine = put(gauss_hermite(1, 1)), put(gauss_hermite(9, 1))
    width = np.dtype(dtype).itemsize
    rows, whole = design.y.nbytes, design.X.nbytes + 5 * design.y.nbytes
    total = jax.jit(lambda d, v: map_groups(lambda t, h, r, _: ((), t(r[0])), d.index, (v,))[1])
    beta = psi[np.array([*range(p), -1])]
    core, params = LaplaceMarginal(family), put(Params(np.full(p, 0.1), np.log([0.8]), np.zeros(())))
    gradient = jax.value_and_grad(core)
    along = lambda d, x: jax.jvp(lambda x: gradient(x, d)[1], (x,), (x,))[1]
    value = lambda nodes: lambda d, s, x: evaluate(family, d, nodes, x, s)[:3]
    return {
        "group totals": (total, (design, design.y), 2 * rows),
        "GLM: value, gradient, Hessian": (lambda d, x: evaluate_glm(family, d, x)[:3], (design, beta), whole - rows),
        "Laplace: value, gradient, Hessian": (value(laplace), (design, start, psi), whole),
        "9 nodes: value, gradient, Hessian": (value(nine), (design, start, psi), whole),
        "eta given: value, gradient": (jax.jit(lambda d, x: gradient(x, d)), (design, params), whole),
        "eta given: Hessian times a direction": (jax.jit(along), (design, params), whole),
        "posterior": (lambda d, s, x: posterior_moments(family, d, nine, x, s)[2:4], (design, start, psi),
                      whole + 12 * start.size * width),
        "a whole fit": (_fit, (family, design, laplace, start, psi), 6 * whole),
    }  # fmt: skip


def _kept(v, dtype):
    v = np.asarray(v)
    return np.dtype(dtype) if v.dtype.kind == "f" else v.dtype


def _fit(family, design, nodes, start, psi):
    """Newton's method with exact Hessians, as a fit takes it, from a point nearby: the estimates."""
    from jaxglmm.objectives.evaluate import evaluate
    from jaxglmm.optimise.newton import maximise

    modes, dtype = start, design.X.dtype

    def at(x):
        nonlocal modes
        e = evaluate(family, design, nodes, jnp.asarray(np.append(x, 0.0), dtype), modes)
        modes = e.modes
        return float(e.value), np.asarray(e.gradient, float)[:-1], np.asarray(e.hessian, float)[:-1, :-1]

    found = maximise(at, np.asarray(psi, float)[:-1], tol=1e-12 if dtype == np.float64 else 1e-5)
    # The step that the tolerance spares: up to a three-hundredth of a standard error, which is not the device's doing.
    return found.x - np.linalg.solve(found.hessian, found.gradient)


def _timed(call, *given):
    """Median seconds, the first run (which compiles) apart; and the result."""
    result = jax.block_until_ready(call(*given))
    seconds = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        jax.block_until_ready(call(*given))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)), result


def _error(result, expected) -> float:
    """Largest difference, relative to the largest entry of each array."""
    worst = 0.0
    for mine, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        mine, theirs = np.asarray(mine, float), np.asarray(theirs, float)
        if mine.shape != theirs.shape:  # another padding: compare what is there, sorted
            mine, theirs = (np.sort(v[..., np.abs(v).reshape(-1, v.shape[-1]).any(0)], axis=-1) for v in (mine, theirs))
        scale = np.abs(theirs).max(initial=1e-300)
        worst = max(worst, float(np.abs(mine - theirs).max(initial=0.0) / scale))
    return worst


def main(groups: int = 100_000) -> int:
    """Print a table for the default device; the exit status is 1 where an answer is wrong."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from jaxglmm.ops.native import use_native

    device = jax.devices()[0]
    console = Console(width=120)
    speed = bandwidth(device)
    on = "cuda" if device.platform == "gpu" else device.platform
    kernels = "native kernels" if use_native(on) else "plain JAX"
    console.print(
        f"{device.device_kind} ({device.platform}), {kernels}, {groups:,} groups; a copy moves {speed / 1e9:.1f} GB/s"
    )
    table = Table(box=SIMPLE)
    for heading in ("operation", "type", "error", "seconds", "MB moved", "of a copy's speed", ""):
        table.add_column(heading, justify="left" if heading == "operation" else "right")
    measured = check(device, groups)
    for m in measured:
        share = m.bytes / m.seconds / speed
        table.add_row(
            m.operation, m.dtype, f"{m.error:.1e}", f"{m.seconds:.5f}", f"{m.bytes / 1e6:.1f}", f"{share:.1%}",
            "" if m.good else "WRONG",
        )  # fmt: skip
    console.print(table)
    return int(not all(m.good for m in measured))
