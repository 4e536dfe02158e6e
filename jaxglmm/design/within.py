"""What a Gaussian response and its columns are within groups, for responses that hardly vary there.

With V = E + Z a, a the least-squares coefficients of each group's own rows, Z'WE = 0 and

    Q = V'WV - sum_g (Z'WV)' M_g (Z'WV) = E'WE + sum_g a_g' B_g a_g,     B = A - A M A = R (I + R'T T'R)^-1 R',

where A = Z'WZ = R R' (`objectives.gaussian` has T and M). The left side is a difference of numbers whose digits are
those between groups, of which nothing is left where the noise within is a millionth of them; the right one is a sum. It
takes another pass over the rows, so that it serves where a sample says that it matters.
"""

from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from jaxglmm.errors import ExactFitError


# Share of the response's variation that is within groups, below which differences lose too many digits.
LITTLE = 1e-5
# Share that is rounding.
_NOTHING = 1e-24
# Groups and rows of the sample.
_GROUPS, _SAMPLE = 1024, 1 << 16
_ROWS = 16384  # rows of a piece
_SINGULAR = 1e-12  # eigenvalue of Z'WZ, relative to the largest, that is none
_ROUNDING = 1e-20  # share of a column's sum of squares within groups that is none


class Within(eqx.Module):
    """Of all groups, in the blocks of `CrossProducts`.

    Attributes
    ----------
    rest : float (p + 1, p + 1)
        E'WE.
    coefficients : float (blocks, p + 1, S, B)
        a, those of groups that do not determine some the shortest.
    root : float (blocks, S, S, B)
        R, such that Z'WZ = R R'.
    """

    rest: Float[Array, "columns columns"]
    coefficients: Float[Array, "blocks columns S B"]
    root: Float[Array, "blocks S S B"]

    def slopes(self, vtv: np.ndarray) -> np.ndarray:
        """Least-squares coefficients (p,) of the last column within groups; zero for what does not vary there."""
        return slopes_of_last(np.asarray(self.rest), np.diag(vtv))


def least_squares(ztz: np.ndarray, ztv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and roots of groups: (S, S, G), (k, S, G) -> (k, S, G), (S, S, G)."""
    values, vectors = np.linalg.eigh(np.moveaxis(ztz, -1, 0))
    there = values > _SINGULAR * values[:, -1:]
    inverse = np.where(there, 1 / np.where(there, values, 1.0), 0.0)
    coefficients = np.einsum("gas,gs,gbs,kbg->kag", vectors, inverse, vectors, ztv, optimize=True)
    return coefficients, np.moveaxis(vectors * np.sqrt(np.where(there, values, 0.0))[:, None], 0, -1)


def varies_little(w: np.ndarray, z: np.ndarray, codes: np.ndarray, columns, r: np.ndarray) -> bool:
    """Whether next to nothing of r (n,) is left within groups, given the columns, in a sample of groups.

    Parameters
    ----------
    w : (n,)
    z : (S, n)
    codes : int (n,)
    columns : callable
        Rows (m,) to the columns there, (m, p).
    """
    rows = np.flatnonzero(codes < _GROUPS)[:_SAMPLE]
    if not len(rows):
        return False
    V = np.column_stack([columns(rows), r[rows]])
    codes, z, w = codes[rows], z[:, rows], w[rows]
    count = int(codes.max()) + 1
    per_group = lambda v: np.bincount(codes, v, minlength=count)
    ztz = np.array([[per_group(w * a * b) for b in z] for a in z])
    ztv = np.array([[per_group(w * a * v) for a in z] for v in V.T])
    coefficients, root = least_squares(ztz, ztv)
    # Effects that take up whatever their rows say, as those of single rows, leave nothing within groups in any data.
    taken = np.count_nonzero(np.square(root).sum(0) > 0)
    if np.count_nonzero(w) - taken <= V.shape[1] - 1:
        return False
    E = V - _fitted(coefficients, z, codes)
    total = w @ np.square(V)
    return left_given_others(np.einsum("n,ni,nj->ij", w, E, E, optimize=True), total) < LITTLE * total[-1]


def within(w: np.ndarray, z: np.ndarray, codes: np.ndarray, columns, r: np.ndarray, ztz, ztv) -> Within:
    """Of all groups; arguments as in `varies_little`, and the groups' cross products in blocks (`CrossProducts`)."""
    flat = lambda v: np.moveaxis(v, 0, -2).reshape(*v.shape[1:-1], -1)
    blocks = lambda v: np.moveaxis(v.reshape(*v.shape[:-1], ztz.shape[0], ztz.shape[-1]), -2, 0)
    coefficients, root = least_squares(flat(ztz), flat(ztv))
    rest = np.zeros((ztv.shape[1],) * 2)
    for begin in range(0, len(r), _ROWS):
        rows = np.arange(begin, min(begin + _ROWS, len(r)))
        E = np.column_stack([columns(rows), r[rows]]) - _fitted(coefficients, z[:, rows], codes[rows])
        rest += (E * w[rows, None]).T @ E
    return Within(rest, blocks(coefficients), blocks(root))


def check_within(cross, response: str, groups: Sequence[str]) -> None:
    """Refuse a response that groups and columns determine.

    Parameters
    ----------
    cross : CrossProducts or FactorProducts
    response : str
        Empty where it has no name.
    groups : sequence of str
        Their names.

    Raises
    ------
    ExactFitError
    """
    if cross.within is None:
        return
    named, what = " and ".join(map(repr, groups)), f"the response {response!r}" if response else "the response"
    rest, coefficients = np.asarray(cross.within.rest), np.append(cross.origin, 1.0)
    total = float(coefficients @ cross.vtv @ coefficients)
    if coefficients @ rest @ coefficients <= _NOTHING * total:
        raise ExactFitError(
            f"{what} does not vary within the levels of {named}: its residual standard deviation "
            f"is zero and the likelihood has no maximum; keep one row a level and leave {named} out, or check the "
            "column"
            if len(groups) == 1
            else f"{what} is a sum of what the levels of {named} have in common: its residual "
            "standard deviation is zero and the likelihood has no maximum; check the column"
        )
    if left_given_others(rest, np.diag(cross.vtv)) <= _NOTHING * total:
        raise ExactFitError(
            f"the levels of {named} and the fixed effects fit {what} perfectly, so that the "
            "likelihood has no maximum: look for a column that determines the response"
        )


def _fitted(coefficients, z, codes):
    """Z a of rows, (m, k)."""
    return np.einsum("sm,ksm->mk", z, coefficients[:, :, codes])


def slopes_of_last(gram: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Of the last column on the others, whose sums of squares over all rows are `total` (p + 1,)."""
    unit = 1 / np.sqrt(np.maximum(total[:-1], 1e-300))
    values, vectors = np.linalg.eigh(gram[:-1, :-1] * unit[:, None] * unit)
    inverse = np.where(values > _ROUNDING, 1 / np.where(values > _ROUNDING, values, 1.0), 0.0)
    return unit * (vectors @ (inverse * (vectors.T @ (unit * gram[:-1, -1]))))


def left_given_others(gram: np.ndarray, total: np.ndarray) -> float:
    """What is left of the last column given the others."""
    return float(gram[-1, -1] - gram[:-1, -1] @ slopes_of_last(gram, total))
