"""Newton's method over some of the parameters, the others held; the limit of the dispersion included."""

import math
from dataclasses import replace

import numpy as np

from jaxglmm.optimise.dispersion import LARGEST, DispersionLimit, maximise_to_limit
from jaxglmm.optimise.newton import NewtonResult, maximise


def maximise_free(at, x0, free, even, *, part=None, limit: DispersionLimit | None = None, **options) -> NewtonResult:
    """Maximise over the free coordinates, the others held; the result is about all of them.

    The last one is the log dispersion: with a `limit`, that is tried where it grows without bound.
    """
    if limit is None or not free[-1]:
        return _maximise_free(at, x0, free, even, part, **options)

    def climb(x, held, stop):
        moving = np.append(free[:-1], not held)
        return _maximise_free(at, x, moving, even, part, stop=stop, **options)

    return maximise_to_limit(climb, lambda x: float(at(x)[0]), np.asarray(x0, float), limit)


def _maximise_free(at, x0, free, even, part, **options) -> NewtonResult:
    x0, kept = np.asarray(x0, float), np.flatnonzero(free)
    block = (kept[:, None], kept)

    def whole(x, others):
        out = others.copy()
        out[kept] = x
        return out

    def restricted(at):
        def over_free(x):
            x = whole(x, x0)
            value, gradient, hessian, *extra = at(x)
            if abs(x[-1]) > LARGEST:  # where families overflow, and may do so to any number
                value = -math.inf
            return value, gradient[kept], hessian[block], gradient, hessian, *extra

        return over_free

    sampled = None if part is None else restricted(part)
    logarithms = kept == len(x0) - 1
    r = maximise(
        restricted(at), x0[kept], log_coordinates=even[kept], logarithms=logarithms, part=sampled, **options
    )  # fmt: skip
    gradient, hessian, *extra = r.extra
    hessian = np.array(hessian)
    hessian[block] = r.hessian
    x, step = whole(r.x, x0), whole(r.step, np.zeros_like(x0))
    return replace(r, x=x, gradient=gradient, hessian=hessian, step=step, extra=tuple(extra))
