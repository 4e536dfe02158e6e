"""The matrix that conjugate gradients solve with when the largest factor is eliminated (`modes.krylov`), compiled.

Vectors of the rest are tuples with an array (levels, effects, columns) a factor; lengths are rounded up, with zeros.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxglmm.modes.blocks import product, transposed
from jaxglmm.modes.conjugate_gradients import conjugate_gradients
from jaxglmm.ops.pairs import PairIndex, pair_outer, row_sums, sparse_product
from jaxglmm.ops.programs import program


class Compressed(NamedTuple):
    """A sparse matrix by its rows: blocks, pointers to each row's first, columns of the blocks."""

    values: Array
    start: Array
    other: Array

    def __matmul__(self, x: Array) -> Array:
        return sparse_product(self.values, self.start, self.other, x)


class Both(NamedTuple):
    """A sparse matrix and its transpose, each by its rows."""

    forward: Compressed
    backward: Compressed


@partial(jax.tree_util.register_dataclass, data_fields=("F", "between", "own_root", "roots"), meta_fields=("pairs",))
@dataclass(frozen=True)
class Operator:
    """I - N on vectors of the rest, one array (levels, effects, columns) a factor, and the way there and back.

    Attributes
    ----------
    F : tuple of Both
        Of the largest factor with each other one.
    between : tuple of Both
        L^-1 C L^-T of two of the others, which `pairs` numbers.
    own_root : (G, S, S)
        K^-1.
    roots : tuple of (G', S', S')
        L^-1.
    """

    F: tuple[Both, ...]
    between: tuple[Both, ...]
    own_root: Array
    roots: tuple[Array, ...]
    pairs: tuple[tuple[int, int], ...]

    def apply(self, x):
        own = self.forward(x)
        y = [v - change for v, change in zip(x, self.backward(own), strict=True)]
        for (i, j), C in zip(self.pairs, self.between, strict=True):
            y[i] = y[i] + C.forward @ x[j]
            y[j] = y[j] + C.backward @ x[i]
        return tuple(y)

    def forward(self, x):
        """F x."""
        return sum((F.forward @ v for F, v in zip(self.F, x, strict=True)), jnp.zeros(()))

    def backward(self, own):
        """F'own."""
        return tuple(F.backward @ own for F in self.F)

    def scaled(self, x):
        """L^-1 x."""
        return tuple(_times(root, v) for root, v in zip(self.roots, x, strict=True))

    def unscaled(self, x):
        """L^-T x."""
        return tuple(_times(transposed(root), v) for root, v in zip(self.roots, x, strict=True))


class Probed(NamedTuple):
    """Probes Z = L^-T z, what (I - N)^-1 - I makes of them, R, and both times D^-1 B; the coefficients of their
    conjugate gradients (steps, k), how many of them, and tr N's part F'F."""

    Z: tuple[Array, ...]
    R: tuple[Array, ...]
    EZ: Array
    ER: Array
    alpha: Array
    beta: Array
    steps: Array
    stopped: Array
    trace: Array


@program()
def solve(operator: Operator, own, rest, tolerance):
    own = _times(operator.own_root, own)
    right = tuple(a - b for a, b in zip(operator.scaled(rest), operator.backward(own), strict=True))
    found = conjugate_gradients(operator.apply, right, tolerance)
    own = _times(transposed(operator.own_root), own - operator.forward(found.x))
    return own, operator.unscaled(found.x), found.stopped


@program()
def probe(operator: Operator, z, tolerance) -> Probed:
    found = conjugate_gradients(operator.apply, z, tolerance)
    over = tuple(x - one for x, one in zip(found.x, z, strict=True))
    back = transposed(operator.own_root)
    trace = sum(jnp.sum(F.forward.values**2) for F in operator.F)
    return Probed(
        operator.unscaled(z), operator.unscaled(over), _times(back, operator.forward(z)),
        _times(back, operator.forward(over)), found.alpha, found.beta, found.steps, found.stopped, jnp.asarray(trace),
    )  # fmt: skip


@program()
def scaled_blocks(left, right, C, index: PairIndex) -> Both:
    """left[first] C right[second]', by rows and by columns; padding is zero."""
    values = _matmul(_matmul(left[index.first], C), transposed(right[index.second]))
    values = jnp.where((jnp.arange(len(C)) < index.start[-1])[:, None, None], values, 0.0)
    back = Compressed(transposed(values[index.place]), index.place_start, index.place_first)
    return Both(Compressed(values, index.start, index.second), back)


@program()
def own_entries(root, found: Probed):
    return _matmul(transposed(root), root) + _outer(found.ER, found.EZ)


@program(static=("i",))
def diagonal_entries(root, found: Probed, i):
    return _matmul(transposed(root), root) + _outer(found.R[i], found.Z[i])


@program(static=("i",))
def first_entries(F: Compressed, index: PairIndex, own_root, root, found: Probed, i):
    """Entries between the largest factor and another one, and what their first order adds to its own."""
    back = transposed(own_root)
    squares = _squares(F)
    entries = _matmul(_matmul(back[index.first], F.values), root[index.second])
    change = _outer_pairs(index, (found.ER, found.EZ), (found.R[i], found.Z[i]))
    return -entries - change, _matmul(_matmul(back, squares), own_root)


@program(static=("i", "j"))
def between_entries(index: PairIndex, found: Probed, i, j):
    return _outer_pairs(index, (found.R[i], found.Z[i]), (found.R[j], found.Z[j]))


def _squares(F: Compressed):
    """F F' of each row: (G, S, S)."""
    total = jnp.zeros(())
    for r in range(F.values.shape[2]):
        column = F.values[:, :, r].T
        total = total + row_sums(column, column, F.start)
    return total


def _outer(R, Z):
    """Mean over probes of the symmetric part of R Z' of each level: (G, S, K) twice -> (G, S, S)."""
    one = jnp.einsum("gak,gbk->gab", R, Z, precision="highest") / R.shape[2]
    return 0.5 * (one + transposed(one))


def _outer_pairs(index, left, right):
    """The same of pairs of levels of two factors: (P, S, S')."""
    (R, Z), (Q, Y) = left, right
    both = pair_outer(index, jnp.concatenate([R, Z], -1), jnp.concatenate([Y, Q], -1))
    return both / (2 * R.shape[2])


def _times(A, x):
    """A_g x_g: (G, S, S), (G, S, k) -> (G, S, k)."""
    return A * x if A.shape[-1] == 1 else jnp.einsum("gab,gbk->gak", A, x, precision="highest")


def _matmul(a, b):
    return product(a, b) if 1 in (a.shape[-1], b.shape[-1]) else jnp.matmul(a, b, precision="highest")
