"""Whether the data leave a coefficient without a finite estimate, decided by linear programmes.

A direction d in the coefficients along which no row's likelihood falls, and some row's rises for ever, has no optimum:
x'd <= 0 where the response is at the lower end of its range, x'd >= 0 at the upper end, x'd = 0 elsewhere, and not 0
everywhere. Otherwise the estimate is finite, however large. Random effects change nothing of that: given each of their
values the likelihood has the same directions.

Albert & Anderson (1984), Biometrika 71, 1; Konis (2007), Linear programming algorithms for detecting separated data
in binary logistic regression models, DPhil thesis, Oxford, section 4.2.
"""

from dataclasses import dataclass

import numpy as np

from jaxglmm.errors import SeparationError


# A linear predictor this far towards its response's lower or upper end may be on its way to infinity: another response
# has a probability of e^-10 there. At a decrement of 1e-12 it is beyond e^-25 where it is.
_FAR = {"probit": (3.9, 3.9), "cloglog": (10.0, 2.3)}
_FAR_ELSE = (10.0, 10.0)
# A search that ended at a decrement of tol leaves, along a direction to infinity, less information than this times tol
# for each row and column (of standardised columns).
_INFORMATION = 1e4
# Rows, each of largest entry 1, are looked at in chunks; so many of them begin a linear programme, and so many of those
# that its solution violates are added; with so many rows in all it begins with all of them.
_CHUNK, _FIRST, _MORE, _ALL = 1 << 16, 1000, 500, 5000
_ROUNDS = 60
# The programmes hold rows to the first (HiGHS); a solution stands when no row violates it by more than the second while
# some row goes its way by more than the third, with a largest entry of d of 1.
_FEASIBLE, _VIOLATED, _STRICT = 1e-10, 1e-8, 1e-5
# Of so many columns it is asked whether one alone, or fewer, have such a direction.
_NAMED = 40


def ends(family, y) -> np.ndarray:
    """Where the likelihood of a row has no maximum in eta: int8 (n,), -1 towards minus infinity, 1 towards infinity."""
    out = np.zeros(len(y), np.int8)
    if family.name == "binomial":
        out[y <= 0], out[y >= 1] = -1, 1
    elif family.link == "log" and family.name in ("poisson", "negativebinomial", "gaussian"):
        out[y <= 0] = -1
    return out


def may_diverge(information, n: int, tol: float):
    """Whether a search may have ended on its way to infinity, as its information on the coefficients tells.

    Parameters
    ----------
    information : (..., p, p)
        Of standardised columns.
    n : int
        Rows.
    tol : float
        The decrement at which the search ended.

    Returns
    -------
    bool (...,)
    """
    information = np.asarray(information)
    p = information.shape[-1]
    if not p:
        return np.zeros(information.shape[:-2], bool)
    finite = np.asarray(np.isfinite(information).all((-2, -1)))
    least = np.linalg.eigvalsh(np.where(finite[..., None, None], information, np.eye(p)))[..., 0]
    return ~finite | (least < _INFORMATION * tol * n * p)


def check_separation(family, rows, beta, *, names, intercept: int | None) -> None:
    """Refuse coefficients that are on their way to infinity.

    Parameters
    ----------
    rows : Design, RowDesign, or what has X (n, p), y, weights and offset (n,)
        X in the coordinates of `beta`; rows of weight 0 do not count.
    beta : (p,)
        Where the search ended.
    names : sequence of str
        Of the columns.
    intercept : int or None
        The column of ones.

    Raises
    ------
    SeparationError
        Naming the columns.
    """
    X, beta = np.asarray(rows.X), np.asarray(beta)
    end = ends(family, np.asarray(rows.y))
    end[np.asarray(rows.weights) <= 0] = 2  # does not count
    with np.errstate(all="ignore"):
        eta = X @ beta.astype(X.dtype) + np.asarray(rows.offset)  # not a second X in a wider type
    low, high = _FAR.get(family.link, _FAR_ELSE)
    far = np.where(end == -1, -eta / low, np.where(end == 1, eta / high, -np.inf))
    if not np.isfinite(beta).all() or np.nanmax(far, initial=-np.inf) >= 1:
        refuse_separation(X, end, names=names, intercept=intercept, far=far)


def refuse_separation(X, end, *, names, intercept, far=None) -> None:
    """Refuse columns (n, p) of which some combination has no finite estimate.

    Parameters
    ----------
    end : int8 (n,)
        As from `ends`; 2 in rows that do not count.
    far : (n,), optional
        How far towards its end each row was predicted: the first rows to look at.

    Raises
    ------
    SeparationError
    """
    rows = _Rows.of(X, end, intercept)
    direction = rows.direction(far=far)
    if direction is None:
        return
    found = _fewest(rows, direction, intercept)
    culprits = ", ".join(repr(names[j]) for j in found)
    raise SeparationError(
        f"complete separation: {culprits} predict{'s' if len(found) == 1 else ''} the response of some rows perfectly, "
        "so the estimate is infinite; drop or merge these columns or levels, or collect rows that contradict them"
    )


@dataclass(frozen=True)
class _Rows:
    """Rows of some columns, in units in which they can be compared: neither changes what directions there are.

    Columns are centred at their medians where there is an intercept to take that up, and divided by their usual size,
    so that one value far outside does not make the others alike; each row is divided by its largest entry.
    """

    X: np.ndarray
    end: np.ndarray
    center: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, X, end, intercept):
        counted = np.flatnonzero(end != 2)
        some = counted if len(counted) <= _ALL else _drawn(counted, _ALL)
        values = np.asarray(X[some], float)
        center = np.zeros(X.shape[1])
        if intercept is not None:
            center = np.median(values, axis=0)
            center[intercept] = 0.0
        away = np.abs(values - center)
        # The usual distance of those that are not at the centre; a dummy's is its other value.
        scale = np.array([np.median(v[v > 0]) if (v > 0).any() else 1.0 for v in away.T])
        return cls(X, end, center, scale)

    def only(self, columns) -> "_Rows":
        return _Rows(self.X[:, columns], self.end, self.center[columns], self.scale[columns])

    def take(self, which) -> np.ndarray:
        """Some rows (k, p)."""
        out = (np.asarray(self.X[which], float) - self.center) / self.scale
        return out / np.maximum(np.max(np.abs(out), axis=1, initial=0.0, keepdims=True), 1e-300)

    def chunks(self):
        for begin in range(0, len(self.end), _CHUNK):
            which = np.flatnonzero(self.end[begin : begin + _CHUNK] != 2) + begin
            if len(which):
                yield which, self.take(which), self.end[which]

    def direction(self, far=None) -> np.ndarray | None:
        """A direction (p,) to infinity, in these units, or None.

        Rows are taken in as solutions violate them. Of the directions that all rows together favour each one to
        infinity is favoured, so that some rows without any leave none.
        """
        favoured = np.zeros(self.X.shape[1])
        for _, rows, end in self.chunks():
            favoured += end @ rows
        counted = np.flatnonzero(self.end != 2)
        if len(counted) > _ALL:
            asked = [_drawn(counted, _FIRST)]
            if far is not None:
                asked.append(counted[np.argsort(-far[counted], kind="stable")[:_FIRST]])
            for side in (-1, 0, 1):  # some of each, and few as they may be
                which = np.flatnonzero(self.end == side)
                asked.append(_drawn(which, _FIRST // 2))
            counted = np.unique(np.concatenate(asked))
        for _ in range(_ROUNDS):
            d = _programme(self.take(counted), self.end[counted], favoured)
            if d is None:
                return None
            strict, violated = self.along(d)
            if not len(violated):
                return d if strict > _STRICT else None
            counted = np.union1d(counted, violated)
        return None

    def along(self, d) -> tuple[float, np.ndarray]:
        """How far the row goes that goes furthest along d, and the rows that most go against it."""
        strict, rows_against, size = 0.0, [], []
        for which, rows, end in self.chunks():
            step = rows @ d
            gain = np.where(end == 0, -np.abs(step), end * step)
            strict = max(strict, float(gain.max()))
            bad = gain < -_VIOLATED
            rows_against.append(which[bad])
            size.append(gain[bad])
        rows_against, size = np.concatenate(rows_against or [[]]), np.concatenate(size or [[]])
        return strict, rows_against[np.argsort(size, kind="stable")[:_MORE]].astype(int)


def _drawn(which, k) -> np.ndarray:
    """At most k of them, spread evenly."""
    return which if len(which) <= k else which[np.linspace(0, len(which) - 1, k).astype(int)]


def _programme(rows, end, favoured) -> np.ndarray | None:
    """The direction, of entries of size 1 at most, that is favoured most among those that these rows allow."""
    from scipy.optimize import linprog

    apart, held = end != 0, end == 0
    found = linprog(
        -favoured, A_ub=-end[apart, None] * rows[apart], b_ub=np.zeros(apart.sum()),
        A_eq=rows[held] if held.any() else None, b_eq=np.zeros(held.sum()) if held.any() else None, bounds=(-1, 1),
        method="highs", options={"primal_feasibility_tolerance": _FEASIBLE, "dual_feasibility_tolerance": _FEASIBLE},
    )  # fmt: skip
    if found.status != 0 or favoured @ found.x <= _STRICT:
        return None
    size = np.max(np.abs(found.x), initial=0.0)
    return found.x / size if size > 0 else None


def _fewest(rows: _Rows, direction, intercept) -> list[int]:
    """Columns to name: those that separate alone, else some of which none can be missed."""
    beside = [] if intercept is None else [intercept]
    found = [j for j in np.argsort(-np.abs(direction), kind="stable") if abs(direction[j]) > 1e-6 and j not in beside]
    if not found:
        return beside  # the intercept alone
    if len(found) > _NAMED:
        return sorted(int(j) for j in found[:_NAMED])
    alone = [j for j in found if rows.only([*beside, j]).direction() is not None]
    if alone:
        return sorted(int(j) for j in alone)
    for j in reversed(list(found)):  # what matters least first
        rest = [k for k in found if k != j]
        if rest and rows.only([*beside, *rest]).direction() is not None:
            found = rest
    return sorted(int(j) for j in found)
