"""What a table must be for a fit to make sense; every refusal names the columns and the remedy."""

from collections.abc import Collection

import numpy as np

from jaxglmm.design.crossproducts import small_products
from jaxglmm.design.identifiability import check_span, check_variances
from jaxglmm.design.noiseless import check_noise
from jaxglmm.design.sizes import check_sizes
from jaxglmm.errors import ColumnsError, DataError, ExactFitError
from jaxglmm.ops.columns import Columns
from jaxglmm.ops.layout import group_counts
from jaxglmm.ops.measure import Moments, all_ones, moments


# Rows of the sample that mostly shows that columns are no combinations of each other, and how many in one place.
_SAMPLE, _PLACE = 1 << 15, 1 << 9
# A column whose part outside the others is below this share of it is a combination of them (R's lm has the same).
_COLLINEAR = 1e-7
# Cross products lose half the digits: below this, look at the rows themselves.
_SUSPECT = 1e-9
# Share of the response's sum of squares that is rounding when columns leave no more than this.
_NOTHING = 1e-24
PERFECT_FIT = (
    "the columns fit the response perfectly, so that the likelihood has no maximum: look for a column that determines "
    "the response"
)


def check_frame(
    frame, family, *, estimated: bool = True, columns: np.ndarray | None = None, found: Moments | None = None,
    exact: bool = False, informed: Collection[str] = (),
) -> None:  # fmt: skip
    """Refuse data from which the model cannot be estimated.

    Parameters
    ----------
    frame : ModelFrame
    family : AbstractFamily
    estimated : bool
        Whether the random effects' covariance is estimated (and not held by the caller).
    columns : int (k,), optional
        Columns that must be of full rank, when a penalty takes care of the others; all by default.

    found : Moments, optional
        Of all columns, where they have been measured.
    exact : bool
        Let a constant response pass.
    informed : collection of str
        Groups of whose standard deviations there is a prior, which tells what the rows do not.

    Raises
    ------
    DataError
        For no rows; values too large to compute with (`design.sizes`); a constant response; columns that are zero,
        constant beside an intercept, or combinations of others; a grouping factor of one level, or of single rows where
        these say nothing about its variance; variances that the design cannot tell apart (`design.identifiability`),
        as those of two factors that are the same groups; random effects in the span of the fixed ones; a gamma or beta
        response without noise (`design.noiseless`).
    """
    if frame.y is None:
        raise DataError("the formula has no response: write it as 'y ~ ...'")
    used = frame.weights > 0
    if not used.any():
        raise DataError("no rows are left with a positive weight: a fit needs some")
    check_sizes(frame, family)
    if not exact:
        _check_response(frame.y if used.all() else frame.y[used], family, frame)
    X, names = Columns(frame.columns, len(frame.y)), frame.names
    if columns is not None and len(columns) < len(names):
        X, names, found = X.only(columns), [names[j] for j in columns], None
    n, p = int(used.sum()), len(names)
    if n < p:
        raise ColumnsError(
            f"{n} rows cannot determine {p} fixed-effect columns ({_listed(names)}): drop columns, or merge "
            "levels of factors"
        )
    check_columns(X, names, frame.weights, found)
    for term in frame.terms:
        _check_term(term, used, frame, family, estimated and term.group not in informed)
    if estimated and frame.terms:
        check_variances(frame, used, (family.name, family.link) == ("gaussian", "identity"), family, informed)
        check_span([term for term in frame.terms if term.group not in informed], X, names, used)
    if estimated and not exact:
        check_noise(frame, family, X, used)


def _check_response(y, family, frame):
    low, high = float(y.min()), float(y.max())
    if low != high:
        return
    name = frame.spec.response_text
    if family.name == "binomial":
        if 0 < low < 1:
            return
        event = frame.modelled or f"P({name} = 1)"
        raise DataError(
            f"the response {name!r} is {low:g} in every row, so that {event} is estimated as {low:g} and no effect "
            "can be: check how the response is coded, or which rows are used"
        )
    if family.name in ("poisson", "negativebinomial") and low != 0:
        return
    raise (ExactFitError if family.name == "gaussian" else DataError)(
        f"the response {name!r} has the same value, {low:g}, in every row: nothing is left to explain; check the "
        "column, or which rows are used"
    )


def is_perfect_fit(residual, total):
    """Whether least squares leave nothing but rounding of a Gaussian response.

    Parameters
    ----------
    residual, total : float or (B,)
        Weighted sums of squares of the residuals, and of the response less its offset.

    Returns
    -------
    bool or bool (B,)
    """
    return residual <= _NOTHING * total


# --- Fixed-effect columns ----------------------------------------------------------------------------------


def check_columns(X, names, weights: np.ndarray | None = None, found: Moments | None = None) -> None:
    """Refuse columns that are zero, constant beside an intercept, or combinations of earlier ones.

    Parameters
    ----------
    X : (n, p) or Columns
    names : sequence of str
    weights : (n,), optional
        Rows of weight 0 do not count.
    found : Moments, optional
        Of X, where they have been measured.

    Raises
    ------
    DataError
    """
    X = Columns.of(X)
    n, p = X.shape
    found = moments(X, weights) if found is None else found
    constant = found.constant
    zero = constant & (found.low == 0)
    if zero.any():
        raise ColumnsError(
            f"{_columns(names, zero)} 0 in every row: leave it out (a level of a factor, or a combination of levels, "
            "that does not occur gives such a column)"
        )
    intercepts = np.flatnonzero(constant)
    if len(intercepts) > 1:
        others = constant.copy()
        others[intercepts[0]] = False
        raise ColumnsError(
            f"{_columns(names, others)} constant ({found.low[intercepts[1]]:g}) beside {names[intercepts[0]]!r}: leave "
            "it out of the formula, or check the rows used"
        )
    center = np.zeros(p)
    if len(intercepts):
        center = found.mean.copy()
        center[intercepts[0]] = 0.0
    weights = np.broadcast_to(1.0, n) if weights is None else weights
    size = np.sqrt(weights.sum() * (found.variance + np.square(found.mean - center)))
    if p == 0 or _sample_has_rank(X, weights, center, size):
        return
    gram = np.zeros((p, p))
    for rows, values in X.pieces():
        away = values - center
        gram += small_products(away * weights[rows, None], away)
    size = np.sqrt(np.diag(gram))
    gram /= np.outer(size, size)
    for j, (rest, row, L) in enumerate(_eliminated(gram)):
        if rest < _SUSPECT:
            _check_rows(X, names, weights > 0, center, size, j, np.linalg.solve(L.T, row))


def _sample_has_rank(X, weights, center, size) -> bool:
    """Whether some of the rows already show that no column is a combination of others.

    The cross products of some rows are at most those of all in the order of matrices, and so is what elimination
    leaves of them: where that is no small share of the columns' sizes over all rows, all rows have full rank.
    """
    n, p = X.shape
    if n < 4 * _SAMPLE:
        return False
    gram = np.zeros((p, p))
    for rows, values in X.places(_SAMPLE // _PLACE, _PLACE):
        away = values - center
        gram += (away * weights[rows, None]).T @ away
    gram /= np.outer(size, size)
    return all(rest > 1e3 * _SUSPECT for rest, *_ in _eliminated(gram))


def _eliminated(gram):
    """For each column, what earlier ones leave of its diagonal entry, its row and theirs of the Cholesky factor."""
    L = np.zeros_like(gram)  # Cholesky rows
    for j in range(len(gram)):
        row = np.zeros(j)
        for k in range(j):
            row[k] = (gram[j, k] - row[:k] @ L[k, :k]) / L[k, k]
        rest = gram[j, j] - row @ row
        yield rest, row, L[:j, :j]
        L[j, :j], L[j, j] = row, np.sqrt(max(rest, 1e-300))


def _check_rows(X, names, used, center, size, j, weights):
    """Refuse column j if in the rows themselves nothing of it lies outside of this combination of earlier ones."""
    outside = 0.0
    for rows, values in X.pieces():
        scaled = (values[used[rows]] - center) / size
        outside += float(np.sum(np.square(scaled[:, j] - scaled[:, :j] @ weights)))
    if outside <= _COLLINEAR**2:
        _refuse_combination(names, j, np.flatnonzero(np.abs(weights) > 1e-6), center)


def _refuse_combination(names, j, others, center):
    beside = " and the intercept" if center.any() else ""
    if len(others) == 1:
        raise ColumnsError(
            f"columns {names[others[0]]!r} and {names[j]!r} carry the same information (one is a multiple of the other"
            f"{', plus a constant' if beside else ''}): leave one of them out"
        )
    raise ColumnsError(
        f"column {names[j]!r} is a linear combination of {_listed([names[i] for i in others])}{beside}: leave one of "
        "them out (all dummies of a factor beside an intercept are such a case)"
    )


def _columns(names, which) -> str:
    found = [names[j] for j in np.flatnonzero(which)]
    return f"column {found[0]!r} is" if len(found) == 1 else f"columns {_listed(found)} are"


def _listed(names) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(repr, names[:8])) + more


# --- Grouping factors --------------------------------------------------------------------------------------


def _check_term(term, used, frame, family, estimated):
    zero = np.array([not _stored(row).any() for row in term.z])
    if zero.any():
        raise DataError(
            f"the effect {_listed([term.names[a] for a in np.flatnonzero(zero)])} of {term.group!r} is 0 in every row: "
            "leave it out of the bar"
        )
    for block in term.blocks:
        _check_block(term, block)
    if not estimated:
        return
    n = int(used.sum())
    sizes = group_counts(term.codes if n == len(used) else term.codes[used], len(term.levels))
    groups = int(np.count_nonzero(sizes))
    if groups == 1:
        level = str(term.levels[np.argmax(sizes)])
        raise DataError(
            f"the grouping factor {term.group!r} has one level only ({level!r}), from which no variance "
            "between groups can be estimated: leave the bar out, or check the rows used"
        )
    # Beside other factors an effect of every row is told from the dispersion of other families by its shape.
    alone = len(frame.terms) == 1 and family.name in ("gamma", "beta")
    gaussian = family.name == "gaussian" and family.link != "identity"  # whose variances are looked at together
    if sizes.max() == 1 and (gaussian or alone):
        raise DataError(
            f"every level of {term.group!r} has a single row, so that its variance and the {family.name} dispersion "
            "cannot be told apart: use a factor that groups rows, or leave the bar out"
        )
    if sizes.max() == 1 and family.name == "binomial" and frame.weights[used].max() <= 1:
        raise DataError(
            f"every level of {term.group!r} has a single 0/1 response, which says nothing about a variance between "
            "groups: use a factor that groups rows, or leave the bar out"
        )
    intercept = any(np.ptp(_stored(row)) == 0 for row in term.z)
    if family.name == "binomial" and intercept and not _some_level_differs(term, frame):
        raise DataError(
            f"within every level of {term.group!r} the responses are all alike, so that the variance of its "
            "intercept has no finite estimate: hold it by theta=, or leave the bar out"
        )


def _stored(row):
    """A row of z, or the one number that stands for all of it."""
    return row if row.strides[0] else row[:1]


def _some_level_differs(term, frame):
    """Whether a level has successes and failures: mostly a few rows show it, which are looked at first."""
    n, rows = len(term.codes), _SAMPLE
    while True:
        codes, weights = term.codes[:rows], frame.weights[:rows]
        total = np.bincount(codes, weights, minlength=len(term.levels))
        successes = np.bincount(codes, weights * frame.y[:rows], minlength=len(term.levels))
        if ((successes > 0) & (successes < total)).any():
            return True
        if rows >= n:
            return False
        rows *= 16


def _check_block(term, block):
    """Effects that covary must differ."""
    rows = term.z[list(block)]
    if len(block) > 1:
        products = rows @ rows.T / rows.shape[1]
        scale = np.sqrt(np.diag(products))
        values, vectors = np.linalg.eigh(products / np.outer(scale, scale))
        if values[0] < 1e-12:
            # Named by their parts in the combination of the columns as written.
            T = term.basis[np.ix_(block, block)]
            back = np.linalg.inv(T)
            size = np.sqrt(np.diag(back.T @ products @ back))
            parts = np.abs(T @ (vectors[:, 0] / scale)) * size
            found = [term.names[block[a]] for a in np.flatnonzero(parts > 1e-4 * parts.max())]
            raise DataError(
                f"the effects {_listed(found)} of {term.group!r} carry the same information: leave one of them out of "
                "the bar"
            )


# --- Values far outside ------------------------------------------------------------------------------------


def values_far_outside(frame) -> list[str]:
    """Say which columns have one value that decides nearly all about them: more often a placeholder than a value.

    A value is told that makes up 99.99 % of its column's sum of squares, where the others are not all alike: with n
    rows it is 100 sqrt(n) of the others' standard deviations away. A column is read only when its moments tell so.
    """
    found = frame.moments
    n = float(len(frame.weights) if all_ones(frame.weights) else np.count_nonzero(frame.weights))
    out = []
    if n < 3:
        return out
    for j, name in enumerate(frame.names):
        low, high, mean, square = found.low[j], found.high[j], found.mean[j], n * found.variance[j]
        far, near = (high, low) if high - mean > mean - low else (low, high)
        if not np.square(far - mean) * n / (n - 1) > 0.9999 * square or square == 0:
            continue
        values = Columns((frame.columns[j],), len(frame.weights)).matrix()[:, 0]
        row = int(np.argmax((values == far) & (frame.weights > 0)))
        others = np.delete(values, row)[np.delete(frame.weights, row) > 0]
        if np.ptp(others) > 1e-12 * abs(far) or (np.ptp(others) > 0 and near != 0):
            out.append(
                f"column {name!r} is {far:.10g} in row {int(frame.rows[row])} (counting from 0) and between "
                f"{others.min():.6g} and {others.max():.6g} in all others: check whether it is a placeholder for a "
                "missing value; if not, its coefficient is decided by this row"
            )
    return out
