"""Profiled Gaussian likelihoods of very many models, and their maximisation, by the native library.

Host code on NumPy arrays. What is computed is that of `objectives.gaussian_lanes` and `optimise.batch_newton`.
"""

import ctypes

import numpy as np

from jaxglmm.ops import native
from jaxglmm.ops.memory import i64, threads


MOST_EFFECTS = 3
_PRODUCTS = ("ztz", "ztx", "ztr", "xx", "xr", "rr", "n", "log_weights")  # attributes of LaneProducts
_PROFILE = ("rss", "c", "inverse", "load", "bend", "rss1", "rss2", "log_det2", "q_xx")
_CLIMB = ("x", "value", "gradient", "hessian", "decrement", "move", "reason", "evaluations")


def covers(products) -> bool:
    """Whether the native library has models of so many effects."""
    return 1 <= products.covariance.n_effects <= MOST_EFFECTS and native.use_native()


class _LaneArray(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("step", ctypes.c_int64), ("lane", ctypes.c_int64))


class _Problem(ctypes.Structure):
    """GaussianLanes of kernels/cpu/gaussian_lanes.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("columns", "effects", "groups", "entries", "reml")),
        ("entry_row", ctypes.c_void_p), ("entry_column", ctypes.c_void_p),
        *((name, _LaneArray) for name in _PRODUCTS),
        ("which", ctypes.c_void_p), ("fits", ctypes.c_int64), ("scale", ctypes.c_void_p),
        ("unknowns", ctypes.c_int64), ("even", ctypes.c_void_p), ("tol", ctypes.c_double),
        ("iterations", ctypes.c_int64), ("watched", ctypes.c_int64), ("nothing", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (*_CLIMB, *_PROFILE)),
    )  # fmt: skip


def profile(raw: np.ndarray, products, *, reml: bool) -> dict[str, np.ndarray]:
    """At relative factors with free entries `raw` (B, q): what `LaneProfile` has, under the same names, lanes first.

    `c` (B, p) are the coefficients beside the origin's.
    """
    B, q = raw.shape
    p = products.ztx.shape[0]
    shapes = {
        "value": (), "gradient": (q,), "hessian": (q, q), "rss": (), "c": (p,), "inverse": (p, p), "load": (p, q),
        "bend": (q, q), "rss1": (q,), "rss2": (q, q), "log_det2": (q, q), "q_xx": (p, p),
    }  # fmt: skip
    found = {name: np.empty((B, *shape)) for name, shape in shapes.items()}
    x = np.ascontiguousarray(raw, float)
    _call("profile", products, reml, np.arange(B), np.ones((B, q)), x=x, **found)
    return found


def climb(
    products, x, *, scale, reml: bool, even, tol: float, iterations: int, nothing: float = 0.0, free=slice(None)
) -> dict:
    """Newton's method from x (B, q), raw = scale x, but for its hard case; as `lane_pass.climb`.

    Parameters
    ----------
    scale : (B, q)
    free : optional
        Which entries of T the unknowns are; the others are zero.
    """
    B, q = x.shape
    found = {
        "x": np.array(x, float), "value": np.empty(B), "gradient": np.empty((B, q)), "hessian": np.empty((B, q, q)),
        "decrement": np.empty(B), "move": np.empty((B, q)), "reason": np.empty(B, np.int64),
        "evaluations": np.empty(B, np.int64),
    }  # fmt: skip
    even = np.ascontiguousarray(even, np.uint8)
    rules = {"even": even, "tol": tol, "iterations": iterations, "nothing": nothing}
    _call("climb", products, reml, np.arange(B), np.ascontiguousarray(scale, float), free, **rules, **found)
    return found


def _call(which: str, products, reml, fits, scale, free=slice(None), **given):
    p, S, G = products.ztx.shape[:3]
    rows, columns = (np.ascontiguousarray(v[free], np.int64) for v in products.covariance.entries)
    held = {name: np.ascontiguousarray(getattr(products, name), float) for name in _PRODUCTS}
    arrays = {}
    for name, v in held.items():
        lanes = v.shape[-1]
        arrays[name] = _LaneArray(v.ctypes.data, lanes, int(lanes > 1))
    address = lambda v: v.ctypes.data if isinstance(v, np.ndarray) else v
    problem = _Problem(
        columns=p, effects=S, groups=G, entries=len(rows), reml=reml, entry_row=rows.ctypes.data,
        entry_column=columns.ctypes.data, which=fits.ctypes.data, fits=len(fits), scale=scale.ctypes.data,
        unknowns=len(rows), watched=0 if given.get("nothing") else -1, **arrays,
        **{name: address(value) for name, value in given.items()},
    )  # fmt: skip
    function = getattr(native.library(), f"jaxglmm_gaussian_{which}")
    function.restype = None
    function(ctypes.byref(problem), i64(threads()))
