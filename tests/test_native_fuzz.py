"""Every handler of the native library, given operands that do not fit: an error that names it, never a crash.

A real call of each is caught on its way, and made again with one operand changed at a time.
"""

import ctypes

import jax
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.ops import native


pytestmark = pytest.mark.native


def use_handlers():
    """Small fits and derivatives that between them call the handlers of rows, groups and pairs."""
    rng = np.random.default_rng(0)
    n = 240
    a, b = rng.integers(0, 30, n), rng.integers(0, 12, n)
    data = {"y": (rng.random(n) < 0.5) * 1.0, "x": rng.standard_normal(n), "a": a, "b": b, "c": a % 4}
    options = {"family": "binomial", "progress": False, "throw": False, "max_iterations": 2}
    jg.fit("y ~ x + (1 | a)", data, method="laplace", **options).ranef("a")
    jg.fit("y ~ x + (1 | c) + (1 | a)", data, method="agq", n_agq=3, **options)
    for solver in ("schur", "krylov"):
        jg.fit("y ~ x + (1 | a) + (1 | b)", data, method="laplace", solver=solver, **options)
    with jax.enable_x64(True):
        design = jg.make_design(data["y"], data["x"][:, None], codes=a)[0]
        objective = jg.AdaptiveQuadrature(jg.Binomial(), 3)
        params = jg.Params(np.zeros(1), np.zeros(1), np.zeros(()))
        jax.hessian(lambda theta: objective(jg.Params(params.beta, theta, params.log_dispersion), design))(np.zeros(1))


@pytest.fixture(scope="module")
def calls():
    """{handler: (results, operands, attributes)}, with the operands' values."""
    found, original = {}, native.call

    def caught(kernel, result, *operands, **attributes):
        def keep(*values):
            found.setdefault(kernel, (result, [np.array(v) for v in values], attributes))

        jax.debug.callback(keep, *operands)
        return original(kernel, result, *operands, **attributes)

    patch = pytest.MonkeyPatch()
    patch.setattr(native, "call", caught)
    jax.clear_caches()  # programs that were traced before call the library unseen
    use_handlers()
    jax.effects_barrier()
    patch.undo()
    jax.clear_caches()
    return found


def again(call, which=None, value=None):
    """The kernel's answer, its operand `which` replaced; or the message of its error."""
    kernel, (result, operands, attributes) = call
    operands = [value if i == which else v for i, v in enumerate(operands)]
    try:
        with jax.enable_x64(True):
            return [np.asarray(v) for v in jax.tree.leaves(native.call(kernel, result, *operands, **attributes))]
    except (RuntimeError, ValueError) as error:
        return str(error)


def test_every_handler_is_called(calls):
    found = set(calls) | {"group_total"}  # which has tests of its own
    native.library().jaxglmm_handlers.restype = ctypes.c_char_p
    assert {f"jaxglmm_{name}" for name in found} == set(native.library().jaxglmm_handlers().decode().split())
    for call in calls.items():
        assert not isinstance(again(call), str)


def test_operands_of_other_shapes_are_refused(calls):
    for kernel, (result, operands, attributes) in calls.items():
        for i, v in enumerate(operands):
            longer = np.append(v, np.ones((*v.shape[:-1], 1), v.dtype), axis=-1) if v.ndim else np.ones(2, v.dtype)
            answer = again((kernel, (result, operands, attributes)), i, longer)
            if (kernel, i) == ("shifted_pass", 9):
                assert not isinstance(answer, str)  # parents of levels that have no rows
            else:
                assert isinstance(answer, str) and kernel in answer, (kernel, i, answer)


def test_operands_without_numbers_are_refused_or_computed(calls):
    refused = []
    for kernel, call in calls.items():
        for i, v in enumerate(call[1]):
            if v.ndim:
                answer = again((kernel, call), i, v[..., :0])
                refused += [(kernel, i)] if isinstance(answer, str) else []
    assert ("sampled_product", 1) in refused  # row pointers without the first one were once read


def test_sizes_pointers_and_places_out_of_range_are_refused(calls):
    groups = {"group_effects": 8, "group_moments": 8, "nested_pass": 6, "shifted_pass": 8}  # -1 where there is no row
    for kernel, (result, operands, attributes) in calls.items():
        for i, v in enumerate(operands):
            for bad in (-1, 2**30) if v.dtype == np.int32 and v.size else ():
                one = v.copy()
                one.flat[one.size // 2] = bad
                answer = again((kernel, (result, operands, attributes)), i, one)
                if bad == -1 and groups.get(kernel) == i:
                    assert not isinstance(answer, str)
                else:
                    assert isinstance(answer, str) and kernel in answer, (kernel, i, bad, answer)


def test_nan_goes_through_or_is_refused(calls):
    # A weight that is not a number is none. Not read are nodes beyond those that count, the dispersion of a family that
    # has none, and entries where no levels meet.
    weights = {"fused_pass": 2, "group_effects": 2, "group_moments": 2, "nested_pass": 3, "shifted_pass": 2}
    weights |= {"group_modes": 2, "group_push": 2}
    unread = {("fused_pass", 9), ("fused_pass", 10), ("shifted_pass", 14), ("shifted_pass", 15), ("nested_pass", 12)}
    unread |= {("group_modes", 7), ("group_push", 7), ("sampled_product", 3)}
    for kernel, (result, operands, attributes) in calls.items():
        for i, v in enumerate(operands):
            if not np.issubdtype(v.dtype, np.floating) or v.size == 0:
                continue
            one = v.copy()
            one.flat[one.size // 2] = np.nan
            answer = again((kernel, (result, operands, attributes)), i, one)
            if weights.get(kernel) == i or (kernel, i) in unread:
                assert not isinstance(answer, str) and not any(np.isnan(x).any() for x in answer)
            else:
                assert isinstance(answer, str) or any(np.isnan(x).any() for x in answer), (kernel, i)
