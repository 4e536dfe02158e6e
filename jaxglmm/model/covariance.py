"""The covariance of one factor's effects, b = Lambda u with u ~ N(0, I), and its unconstrained parameters."""

from collections.abc import Iterable, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Covariance(eqx.Module):
    """Block-diagonal covariance Lambda Lambda' with Lambda lower triangular.

    Attributes
    ----------
    blocks : tuple of tuples of int
        Effects that covary: `((0, 1),)` for `(1 + x | g)`, `((0,), (1,))` for `(x || g)`.

    Notes
    -----
    theta holds, block by block, the lower triangle of Lambda by columns: diagonal entries in their natural
    logarithm, the others as they are (Pinheiro & Bates 1996, "log-Cholesky").
    """

    blocks: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @classmethod
    def joined(cls, parts: Iterable["Covariance"]) -> "Covariance":
        """That of several factors' effects side by side, in order; theta and the entries follow each other too."""
        blocks, before = [], 0
        for part in parts:
            blocks += [tuple(before + a for a in block) for block in part.blocks]
            before += part.n_effects
        return cls(tuple(blocks))

    @property
    def n_effects(self) -> int:
        return sum(len(block) for block in self.blocks)

    @property
    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (q,), (q,) of the free entries of Lambda in the order of theta."""
        pairs = [(r, c) for block in self.blocks for j, c in enumerate(block) for r in block[j:]]
        rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
        return rows, columns

    @property
    def diagonal(self) -> np.ndarray:
        """bool (q,): which entries lie on the diagonal."""
        rows, columns = self.entries
        return rows == columns

    def raw_factor(self, raw: Float[Array, " q"]) -> Float[Array, "S S"]:
        """Lambda from its free entries."""
        rows, columns = self.entries
        return jnp.zeros((self.n_effects,) * 2, raw.dtype).at[rows, columns].set(raw)

    def factor(self, theta: Float[Array, " q"]) -> Float[Array, "S S"]:
        """Lambda from theta."""
        return self.raw_factor(jnp.where(self.diagonal, jnp.exp(jnp.where(self.diagonal, theta, 0.0)), theta))

    def raw(self, factor: np.ndarray) -> np.ndarray:
        """Free entries (q,) of Lambda (numpy)."""
        return np.asarray(factor, float)[self.entries]

    def theta(self, factor: np.ndarray) -> np.ndarray:
        """theta (q,) of a Lambda with a positive diagonal (numpy)."""
        raw = self.raw(factor)
        return np.where(self.diagonal, np.log(np.where(self.diagonal, raw, 1.0)), raw)

    def canonical(self, factor: np.ndarray) -> np.ndarray:
        """The Lambda with a non-negative diagonal that has the same covariance (numpy)."""
        out = np.zeros_like(factor)
        for block in self.blocks:
            part = np.ix_(block, block)
            out[part] = _triangle(factor[part])
        return out

    def without(self, factor: np.ndarray, column: int) -> np.ndarray:
        """The Lambda whose `column` is zero, that differs in covariance by the diagonal entry there only (numpy)."""
        out = factor.copy()
        block = next(block for block in self.blocks if column in block)
        later = block[block.index(column) + 1 :]
        out[np.ix_(later, later)] = _triangle(factor[np.ix_(later, (column, *later))])
        out[:, column] = 0.0
        return out

    def names(self, effects: tuple[str, ...], group: str) -> tuple[str, ...]:
        """Names of theta, such as "log_sd[Intercept|g]" or "cholesky[x,Intercept|g]"."""
        rows, columns = self.entries
        alone = {block[0] for block in self.blocks if len(block) == 1}
        return tuple(
            f"cholesky[{effects[r]},{effects[c]}|{group}]"
            if r != c
            else f"{'log_sd' if r in alone else 'log_cholesky'}[{effects[r]}|{group}]"
            for r, c in zip(rows, columns, strict=True)
        )


def side_by_side(factors: Sequence[np.ndarray]) -> np.ndarray:
    """Lambda of several factors' effects: each factor's own on the diagonal (numpy)."""
    ends = np.cumsum([0, *map(len, factors)])
    out = np.zeros((ends[-1],) * 2)
    for begin, end, factor in zip(ends, ends[1:], factors, strict=False):
        out[begin:end, begin:end] = factor
    return out


def _triangle(rows: np.ndarray) -> np.ndarray:
    """L, lower triangular with a non-negative diagonal, with L L' = A A' for A (m, k), k >= m."""
    upper = np.linalg.qr(rows.T, mode="r")
    return (np.where(np.diag(upper) < 0, -1.0, 1.0)[:, None] * upper).T
