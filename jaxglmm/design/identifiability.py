"""Whether a design tells the variances of its random effects apart: by moments of the rows, no group by itself.

The covariance of the rows, V = sum_t Z_t (I x D_t) Z_t' + s W^-1, is a linear function of the entries of the D_t (and
of s, a Gaussian response's residual variance). They are identified where no combination of them is zero in all rows,
that is where the Gram matrix of this map is of full rank. With the norm |V|^2 = tr V W V W its entries are sums, over
the pairs (i, j) of a level of one factor and a level of another that share rows, of products of two entries of
A_ij = Z_i'W Z_j:

    <D, E> = sum tr D A_ij E A_ij'        <D, W^-1> = sum tr D A_ii        <W^-1, W^-1> = n

and a combination that some of the rows tell from zero is not zero in all of them.

A variance of effects whose columns lie in the span of the fixed effects is not identified either: no contrast that is
free of those coefficients depends on it. That takes as many columns as the factor has levels.

References
----------
Rothenberg (1971), Econometrica 39, 577. Demidenko (2013), Mixed Models, section 3.2 (identifiability of covariances).
"""

from collections.abc import Collection
from itertools import combinations

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.ops.columns import Columns
from jaxglmm.ops.layout import group_counts


# Rows of whole levels that mostly suffice, and the factor by which there are more of them where they do not.
_SAMPLE, _MORE = 1 << 15, 16
# Smallest eigenvalue of the Gram matrix, scaled to unit diagonal: enough in a sample of the rows; too little in all.
_ENOUGH, _NOTHING = 1e-6, 1e-10
# A combination's entries below this share of its largest are none of it; what least squares leave of the squares of
# columns in a span.
_PART, _COLLINEAR = 1e-4, 1e-11


def check_variances(frame, used: np.ndarray, residual: bool, family, informed: Collection[str] = ()) -> None:
    """Refuse covariances of random effects that the rows cannot tell apart.

    Parameters
    ----------
    frame : ModelFrame
    used : bool (n,)
        Rows of positive weight.
    residual : bool
        Whether the residual variance is one of the parameters (Gaussian, identity link).
    family : AbstractFamily
    informed : collection of str
        Groups of whose standard deviations there is a prior: it tells combinations apart that change these.

    Raises
    ------
    DataError
    """
    terms = frame.terms
    if not terms or (len(terms) == 1 and len(terms[0].z) == 1 and not residual):
        return
    if informed and any(_same_groups(one, other) for one, other in combinations(terms, 2)):
        informed = ()  # two names of one thing, whatever is known of it
    largest = max(terms, key=lambda term: len(term.levels))
    n, levels = len(used), len(largest.levels)
    most = _SAMPLE
    while True:
        whole = most >= n
        take = used if whole else used & (largest.codes < max(2, levels * most // n))
        rows = slice(None) if take.all() else np.flatnonzero(take)
        gram, size = _gram(terms, frame.weights, rows, residual)
        told = _of_standard_deviations(terms, informed)[:, : len(size)] / size
        told /= np.sqrt(np.square(told).sum(1, keepdims=True))
        values, vectors = np.linalg.eigh(gram + told.T @ told)
        if values[0] > (_NOTHING if whole else _ENOUGH):
            return
        if whole:
            break
        most *= _MORE
    parts = _as_written(terms, vectors[:, 0] / size)
    _refuse(frame, used, family, np.flatnonzero(parts > _PART * parts.max()), _entries(terms))


def _as_written(terms, combination) -> np.ndarray:
    """Sizes of the entries of a combination of covariances, of effects of the columns as they were written."""
    entries = _entries(terms)
    out = np.array(combination)
    for t, term in enumerate(terms):
        own = [i for i, (u, *_) in enumerate(entries) if u == t]
        rows, columns = np.array([entries[i][1:] for i in own]).T
        D = np.zeros((len(term.z),) * 2)
        D[rows, columns] = D[columns, rows] = combination[own]
        root = np.sqrt(np.diag(_squares_as_written(term, term.z @ term.z.T / term.z.shape[1])))
        out[own] = (term.basis @ D @ term.basis.T * np.outer(root, root))[rows, columns]
    return np.abs(out)


def _squares_as_written(term, products: np.ndarray) -> np.ndarray:
    """Products (S, S) of the effects' columns as they were written from those of the centred ones."""
    back = np.linalg.inv(term.basis)
    return back.T @ products @ back


def _entries(terms) -> list[tuple[int, int, int]]:
    """(term, effect, effect) of each variance and covariance."""
    return [
        (t, r, c)
        for t, term in enumerate(terms)
        for block in term.blocks
        for j, c in enumerate(block)
        for r in block[j:]
    ]


def _gram(terms, weights, rows, residual: bool) -> tuple[np.ndarray, np.ndarray]:
    """Gram matrix, of unit diagonal, of the map from variances, covariances and the residual variance to V, and the
    roots of the diagonal that it had."""
    entries = _entries(terms)
    m = len(entries)
    gram = np.zeros((m + residual,) * 2)
    # In units in which no square of a square is without a value: the roots below are in the columns' own.
    w_unit = float(np.max(weights[rows], initial=0.0)) or 1.0
    w = weights[rows] / w_unit
    units = [np.array([np.max(np.abs(row), initial=0.0) or 1.0 for row in term.z[:, rows]]) for term in terms]
    codes = [np.asarray(term.codes[rows]) for term in terms]
    z = [term.z[:, rows] / unit[:, None] for term, unit in zip(terms, units, strict=True)]
    of = [np.flatnonzero([t == u for u, *_ in entries]) for t in range(len(terms))]
    for t in range(len(terms)):
        for u in range(t + 1):
            cell, count = (codes[t], len(terms[t].levels)) if t == u else _cells(codes[t], codes[u], terms[u])
            A = {
                (r, k): np.bincount(cell, w * z[t][r] * z[u][k], minlength=count)
                for r in range(len(z[t]))
                for k in range(len(z[u]))
            }
            for i in of[t]:
                for j in of[u]:
                    gram[i, j] = gram[j, i] = _inner(A, entries[i][1:], entries[j][1:])
            if t == u and residual:
                for i in of[t]:
                    _, r, c = entries[i]
                    gram[i, m] = gram[m, i] = (1 + (r != c)) * A[r, c].sum()
    if residual:
        gram[m, m] = len(w)
    size = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
    unit = np.array([w_unit * units[t][r] * units[t][c] for t, r, c in entries] + [1.0] * residual)
    return gram / np.outer(size, size), size * unit


def _of_standard_deviations(terms, informed) -> np.ndarray:
    """The variances, of the columns as written, of effects of which something else tells, as combinations of those of
    the centred ones and the residual variance: (k, m)."""
    entries = _entries(terms)
    rows = [(t, k) for t, term in enumerate(terms) if term.group in informed for k in range(len(term.z))]
    out = np.zeros((len(rows), len(entries) + 1))
    for i, (t, k) in enumerate(rows):
        of = terms[t].basis[k]
        for j, (u, r, c) in enumerate(entries):
            out[i, j] = (1 + (r != c)) * of[r] * of[c] if u == t else 0.0
    return out


def _cells(one, other, term):
    """Number of each row's pair of levels, and how many there are."""
    found, cell = np.unique(one.astype(np.int64) * len(term.levels) + other, return_inverse=True)
    return cell, len(found)


def _inner(A, D, E) -> float:
    """Sum of tr D A E A' for symmetric unit matrices D = (r, c), E = (k, l)."""
    (r, c), (k, l) = D, E
    pairs = {(r, c), (c, r)}, {(k, l), (l, k)}
    return float(sum(A[a, q] @ A[b, s] for a, b in pairs[0] for q, s in pairs[1]))


def _refuse(frame, used, family, parts, entries):
    terms = frame.terms
    listed, among = [], []
    for i in parts:
        if i == len(entries):
            listed.append("the residual variance")
            continue
        t, r, c = entries[i]
        term = terms[t]
        what = f"variance of {term.names[r]!r}" if r == c else f"covariance of {term.names[r]!r} and {term.names[c]!r}"
        listed.append(f"the {what} of {term.group!r}")
        among.append(t)
    if among and set(parts) >= {len(entries)}:
        term = terms[among[0]]
        if group_counts(term.codes[used], len(term.levels)).max() == 1:
            raise DataError(
                f"every level of {term.group!r} has a single row, so that its variance and the {family.name} "
                "dispersion cannot be told apart: use a factor that groups rows, or leave the bar out"
            )
    for t, u in combinations(sorted(set(among)), 2):
        if _same_groups(terms[t], terms[u]):
            raise DataError(
                f"the grouping factors {terms[t].group!r} and {terms[u].group!r} are the same groups of rows under two "
                f"names: {' and '.join(listed)} cannot be told apart; leave one of the bars out"
            )
    groups = list(dict.fromkeys(terms[t].group for t in among))
    raise DataError(
        f"the rows cannot tell apart {', '.join(listed[:-1])} and {listed[-1]}: whatever the responses, other values "
        f"of them fit as well, because levels of {' and '.join(map(repr, groups))} have too few rows, or too few "
        f"different values of the effects' columns; use fewer effects, such as (1 | {groups[0]}), or uncorrelated ones "
        "(||)"
    )


def _same_groups(one, other) -> bool:
    """Whether two factors group the rows alike."""
    if len(one.levels) != len(other.levels):
        return False
    partner = np.zeros(len(one.levels), other.codes.dtype)
    partner[one.codes] = other.codes  # of some row of the level
    return bool((partner[one.codes] == other.codes).all())


# --- Fixed effects -----------------------------------------------------------------------------------------


def check_span(terms, X, names, used: np.ndarray) -> None:
    """Refuse random effects whose columns are combinations of those of the fixed effects.

    Parameters
    ----------
    terms : sequence of TermFrame
    X : (n, p) or Columns
    names : sequence of str
        Of the columns.
    used : bool (n,)
        Rows of positive weight.

    Raises
    ------
    DataError
    """
    X = Columns.of(X)
    for term in terms:
        if len(term.levels) <= X.shape[1]:
            _check_term(term, X, names, used)


def _check_term(term, X, names, used):
    """The part of each effect's columns, and of combinations of effects, outside of the span of X."""
    S, G, p = len(term.z), len(term.levels), X.shape[1]
    rows = np.flatnonzero(used)
    if len(rows) > 8 * (p + S * G):  # what lies outside in some of the rows lies outside in all
        some = rows[np.linspace(0, len(rows) - 1, 4 * (p + S * G)).astype(int)]
        values = np.column_stack([np.asarray(column[some], float) for column in X.columns])
        if not _outside(*_products([(term.codes[some], term.z[:, some], values)], S, G, p), term)[0]:
            return
    pieces = ((term.codes[at][used[at]], term.z[:, at][:, used[at]], v[used[at]]) for at, v in X.pieces())
    found, columns = _outside(*_products(pieces, S, G, p), term)
    if not found:
        return
    effects = [term.names[a] for a in found]
    several = len(effects) > 1
    beside = [names[j] for j in columns]
    more = f" and {len(beside) - 6} more" if len(beside) > 6 else ""
    listed = " and ".join(map(repr, effects))
    raise DataError(
        f"the fixed effects tell the levels of {term.group!r} apart already: the effects {listed} of its levels "
        f"are combinations of the columns {', '.join(map(repr, beside[:6]))}{more}, so that "
        f"{'their variances have' if several else 'its variance has'} no estimate; leave {term.group!r} out of the "
        "fixed part, or the effect out of the bar"
    )


def _products(pieces, S, G, p):
    """X'X (p, p), Z'X (S, G, p) and Z'Z (S, S, G) of some rows."""
    xx, zx, zz = np.zeros((p, p)), np.zeros((S, G, p)), np.zeros((S, S, G))
    for codes, z, values in pieces:
        xx += values.T @ values
        order = np.argsort(codes, kind="stable")
        present, first = np.unique(codes[order], return_index=True)
        if not len(present):
            continue
        for a in range(S):
            zx[a][present] += np.add.reduceat((z[a][:, None] * values)[order], first)
            for b in range(S):
                zz[a, b] += np.bincount(codes, z[a] * z[b], minlength=G)
    return xx, zx, zz


def _outside(xx, zx, zz, term):
    """Effects of which a combination has no part outside of the span of X, and columns of X that give it; or none."""
    size = np.sqrt(np.maximum(np.diag(xx), np.finfo(float).tiny))
    inverse = np.linalg.pinv(xx / np.outer(size, size), rcond=1e-13, hermitian=True) / np.outer(size, size)
    within = zz.sum(-1)
    root = np.sqrt(np.diag(_squares_as_written(term, within)))
    left = within - np.einsum("agi,ij,bgj->ab", zx, inverse, zx, optimize=True)
    scale = np.sqrt(np.maximum(np.diag(within), np.finfo(float).tiny))
    for block in term.blocks:
        at = np.ix_(block, block)
        values, vectors = np.linalg.eigh((left / np.outer(scale, scale))[at])
        if values[0] > _COLLINEAR:
            continue
        parts = np.abs(term.basis[at] @ (vectors[:, 0] / scale[list(block)])) * root[list(block)]
        found = [block[a] for a in np.flatnonzero(parts > _PART * parts.max())]
        own = np.einsum("a,agi->gi", vectors[:, 0] / scale[list(block)], zx[list(block)])
        weights = np.abs(own @ inverse).max(0) * size
        return found, np.flatnonzero(weights > _PART * weights.max())
    return [], np.zeros(0, int)
