"""Numbers whose sizes no computation in float64 survives: refused by name, before sums of them are without a value."""

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.ops.measure import stored


# Squares and products of such numbers, added up over rows, stay finite; of these they stay above zero.
LARGEST, SMALLEST = 1e100, 1e-100
# A weight that is larger than all others together by this leaves nothing of theirs in a sum.
RULES = 1e12
# Weights that multiply log-likelihoods and add up to less, in rows, say nothing: standard errors are above thirty, and
# a search ends where it begins.
NOTHING = 1e-3
# Whole numbers up to here are exact.
WHOLE = 2.0**53
# A held standard deviation so many times the response's (on the link scale: so large) leaves no digits of the fixed
# effects beside the groups'.
_HELD = 1e5


def check_sizes(frame, family) -> None:
    """Refuse values that are too large, or too small, to compute with.

    Parameters
    ----------
    frame : ModelFrame
    family : AbstractFamily

    Raises
    ------
    DataError
        Naming the column, its largest value and the row: for values beyond 1e100 in size; columns, Gaussian responses
        and weights that are nowhere beyond 1e-100; counts beyond 2^53, from which on not every whole number is one in
        float64, and weights that stand for as many rows or trials; a weight that is 1e12 times as large as all others
        together; weights of responses that are not Gaussian that add up to less than a thousandth of a row.
    """
    name = f"the response {frame.spec.response_text!r}"
    moments = frame.moments
    sizes = np.maximum(np.abs(moments.low), np.abs(moments.high))
    for j in np.flatnonzero(~((sizes <= LARGEST) & ((sizes >= SMALLEST) | (sizes == 0)))):
        _refuse(frame, f"column {frame.names[j]!r}", np.asarray(frame.columns[j]))
    _check(frame, name, frame.y, small=family.name == "gaussian")
    _check(frame, "the offset", frame.offset, small=False)
    _check(frame, "weights", frame.weights)
    for term in frame.terms:
        for effect, z in zip(term.names, term.z, strict=True):
            _check(frame, f"the column {effect!r} of the effects by {term.group!r}", z)
    if family.discrete and family.name != "binomial" and np.max(frame.y, initial=0.0) > WHOLE:
        _refuse(frame, name, frame.y, WHOLE, "counts of such a size are not exact in float64")
    _check_weights(frame, family)


def _check_weights(frame, family) -> None:
    weights = stored(frame.weights)
    row = int(np.argmax(weights))
    largest, others = float(weights[row]), float(weights[:row].sum() + weights[row + 1 :].sum())
    if 0 < others < largest / RULES:
        raise DataError(
            f"weights is {largest:.4g} in row {int(frame.rows[row])} (counting from 0), and {others:.4g} in all other "
            "rows together: nothing of them would be left in a sum; correct that weight, or leave the row out"
        )
    if family.name == "gaussian":  # its weights are relative: the residual variance takes their scale up
        return
    if 0 < largest + others < NOTHING:
        raise DataError(
            f"weights add up to {largest + others:.4g}, and {family.name} rows count by them: all of the data are less "
            f"than {NOTHING:g} of a row, which says nothing of any coefficient. Multiply them by a constant, so that a "
            "weight is the number of rows or trials that a row stands for"
        )
    if largest > WHOLE:
        kind = "trials" if family.name == "binomial" else "copies of a row"
        _refuse(frame, "weights", frame.weights, WHOLE, f"so many {kind} are not exact in float64")


def outside(largest: np.ndarray, *, small: bool = True) -> np.ndarray:
    """Where the largest sizes of some numbers are such that `check_sizes` may refuse them, bool of the same shape.

    Parameters
    ----------
    largest : float array
    small : bool
        Whether numbers may be too small.
    """
    out = np.logical_not(largest <= LARGEST)
    return out | ((largest < SMALLEST) & (largest > 0)) if small else out


def check_held(frame, family, factors) -> None:
    """Refuse standard deviations that were given and are too large to compute with.

    Parameters
    ----------
    factors : sequence of (S, S)
        Lambda of each term's columns.

    Raises
    ------
    DataError
        Naming the factor, for effects of rows that vary 1e5 times as much as a Gaussian response, or by more than 1e5
        on another link's scale.
    """
    linear = (family.name, family.link) == ("gaussian", "identity")
    usual = float(np.std(frame.y)) if linear else 1.0
    for term, factor in zip(frame.terms, factors, strict=True):
        with np.errstate(over="ignore"):
            size = float(np.sqrt(np.mean(np.square(np.asarray(factor).T @ term.z).sum(0))))
        if not size <= _HELD * usual:
            beside = f"the response's own is {usual:.4g}, and" if linear else f"on the scale of the {family.link} link"
            raise DataError(
                f"theta[{term.group!r}] gives the rows effects with a standard deviation of {size:.4g}; {beside} more "
                f"than {_HELD * usual:.3g} leaves no digits of the fixed effects. For effects that are not shrunken "
                f"make the groups fixed effects, C({term.group})"
            )


def what_stands_out(frame) -> str:
    """Where the data go, for a search that did not end: the response, weights, offset, and the largest of the columns.

    Returns
    -------
    str
    """
    response = f"the response {frame.spec.response_text!r}"
    ranges = [
        f"{name} from {np.min(v):.3g} to {np.max(v):.3g}"
        for name, v in ((response, frame.y), ("weights", frame.weights), ("the offset", frame.offset))
        if v is not None and (np.ptp(v) > 0 or np.max(np.abs(v)) > 1)
    ]
    sizes = np.maximum(np.abs(frame.moments.low), np.abs(frame.moments.high)) if frame.names else np.zeros(0)
    if sizes.max(initial=0.0) > 1:
        j = int(np.argmax(sizes))
        column = np.asarray(frame.columns[j])
        row = int(np.argmax(np.abs(column)))
        ranges.append(f"columns up to {float(column[row]):.4g}, of {frame.names[j]!r} in row {int(frame.rows[row])}")
    return f"the data have {', '.join(ranges)}" if ranges else "all of the data are alike"


_RESCALE = "sums of its squares are too large for float64; correct the value, or divide the column by a constant"
_ENLARGE = "sums of its squares are zero in float64; multiply it by a constant"


def _check(frame, what: str, values, *, small: bool = True) -> None:
    values = stored(np.asarray(values))
    with np.errstate(over="ignore", under="ignore"):
        size = float(values @ values)  # the quickest pass over them
    if not (size <= LARGEST and (size >= SMALLEST or not small)):
        _refuse(frame, what, values, small=small)


def _refuse(frame, what: str, values, limit: float = LARGEST, why: str = _RESCALE, *, small: bool = True) -> None:
    size = np.abs(values)
    row = int(np.argmax(size))
    found = f"{what} is {float(values[row]):.4g} in row {int(frame.rows[row])} (counting from 0)"
    if size[row] > limit:
        raise DataError(f"{found}, beyond {limit:.4g} in size: {why}")
    if small and 0 < size[row] < SMALLEST:
        raise DataError(f"{found} and smaller in all others, below {SMALLEST:g} in size: {_ENLARGE}")
