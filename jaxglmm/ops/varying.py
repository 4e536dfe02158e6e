"""Inside of a `shard_map` that checks it, arrays carry the mesh axes over which they vary, and must agree in them."""

import jax
import jax.numpy as jnp
from jax import lax


def axes_of(x) -> frozenset:
    """Mesh axes over which an array, or a shape found by `jax.eval_shape`, varies."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    if hasattr(kind, "vma"):  # until jax 0.10.1
        return kind.vma or frozenset()  # pyright: ignore[reportAttributeAccessIssue]
    return getattr(kind.manual_axis_type, "varying", None) or frozenset()


def vary(x, axes: frozenset):
    """The same array, varying over these axes too."""
    missing = axes - axes_of(x)
    return lax.pcast(x, tuple(missing), to="varying") if missing else x


def alike(*arrays):
    """The same arrays, each varying over all axes that any of them varies over."""
    arrays = [jnp.asarray(v) for v in arrays]
    axes = frozenset().union(*map(axes_of, arrays))
    return [vary(v, axes) for v in arrays]


def zeros_as(shape):
    """Zeros of a shape found by `jax.eval_shape`, to begin a loop's carry with."""
    return vary(jnp.zeros(shape.shape, shape.dtype), axes_of(shape))
