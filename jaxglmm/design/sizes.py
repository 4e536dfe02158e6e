"""Numbers whose sizes no computation in float64 survives: refused by name, before sums of them are without a value."""

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.ops.measure import stored


# Squares and products of such numbers, added up over rows, stay finite.
LARGEST = 1e100
# A weight that is larger than all others together by this leaves nothing of theirs in a sum.
_RULES = 1e12
# Whole numbers up to here are exact.
_WHOLE = 2.0**53


def check_sizes(frame, family) -> None:
    """Refuse values that are too large to compute with.

    Parameters
    ----------
    frame : ModelFrame
    family : AbstractFamily

    Raises
    ------
    DataError
        Naming the column, its largest value and the row: for values beyond 1e100 in size; counts beyond 2^53, from
        which on not every whole number is one in float64; a weight that is 1e12 times as large as all others together.
    """
    response = frame.spec.response_text
    moments = frame.moments
    for j in np.flatnonzero(~(np.maximum(np.abs(moments.low), np.abs(moments.high)) <= LARGEST)):
        _refuse(frame, f"column {frame.names[j]!r}", np.asarray(frame.columns[j]), LARGEST, _RESCALE)
    _check(frame, f"the response {response!r}", frame.y)
    _check(frame, "the offset", frame.offset)
    _check(frame, "weights", frame.weights)
    for term in frame.terms:
        for name, z in zip(term.names, term.z, strict=True):
            _check(frame, f"the column {name!r} of the effects by {term.group!r}", z)
    if family.discrete and family.name != "binomial" and np.max(frame.y, initial=0.0) > _WHOLE:
        _refuse(frame, f"the response {response!r}", frame.y, _WHOLE, "counts of such a size are not exact in float64")
    weights = stored(frame.weights)
    row = int(np.argmax(weights))
    largest, others = float(weights[row]), float(weights[:row].sum() + weights[row + 1 :].sum())
    if 0 < others < largest / _RULES:
        raise DataError(
            f"weights is {largest:.4g} in row {int(frame.rows[row])} (counting from 0), and {others:.4g} in all other "
            "rows together: nothing of them would be left in a sum; correct that weight, or leave the row out"
        )


_RESCALE = "sums of its squares are too large for float64; correct the value, or divide the column by a constant"


def _check(frame, what: str, values) -> None:
    values = stored(np.asarray(values))
    with np.errstate(over="ignore"):
        size = float(values @ values)  # the quickest pass over them
    if not size <= LARGEST:
        _refuse(frame, what, values, LARGEST, _RESCALE)


def _refuse(frame, what: str, values, limit: float, why: str) -> None:
    size = np.abs(values)
    row = int(np.argmax(size))
    if size[row] > limit:
        raise DataError(
            f"{what} is {float(values[row]):.4g} in row {int(frame.rows[row])} (counting from 0), beyond {limit:.4g} "
            f"in size: {why}"
        )
