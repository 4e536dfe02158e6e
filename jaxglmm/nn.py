"""Random effects as a layer of a neural network, and batches of groups to train it on."""

import dataclasses
from collections.abc import Iterator

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxglmm.arguments import a_design, a_family, floating, floats, number, numbers, optional, seed as seeds, whole
from jaxglmm.design.design import Design, make_design, only_term
from jaxglmm.design.groups import LONGEST, SIZES, round_up
from jaxglmm.errors import DataError
from jaxglmm.model.covariance import Covariance
from jaxglmm.model.family import AbstractFamily
from jaxglmm.objectives.evaluate import posterior_moments
from jaxglmm.objectives.marginal import MOST_NODES, gauss_hermite
from jaxglmm.objectives.quadrature import AdaptiveQuadrature


_BLOCK = 480  # slots in a block of a batch: the least that every size of group divides


class RandomEffects(eqx.Module):
    """Marginal likelihood of groups whose linear predictor comes from anywhere, with learnable covariance.

    `RandomEffects(family)(eta, design)` is the log-likelihood of y given eta + offset, the groups' effects integrated
    out. Differentiable in eta, theta and log_dispersion; a training loop maximises it over these and the network.

    Attributes
    ----------
    family : AbstractFamily
    theta : (q,)
        Log-Cholesky parameters of the effects' covariance; with one effect, the logarithm of its standard deviation.
    log_dispersion : ()
        Not used by families that have none.
    nodes : int
        Quadrature nodes per effect; 1 is Laplace's approximation, which underestimates variances where groups have few
        rows.
    """

    family: AbstractFamily
    theta: Float[Array, " q"]
    log_dispersion: Float[Array, ""]
    nodes: int = eqx.field(static=True)
    covariance: Covariance = eqx.field(static=True)

    def __init__(self, family: AbstractFamily, *, nodes: int = 9, sd: float = 0.5, n_effects: int = 1):
        """Make a layer whose effects are independent and have the standard deviation `sd` to begin with."""
        a_family("family", family)
        whole(1, MOST_NODES)("nodes", nodes)
        number(above=0)("sd", sd)
        whole(1, 3)("n_effects", n_effects)
        self.family, self.nodes = family, nodes
        self.covariance = Covariance((tuple(range(n_effects)),))
        self.theta = jnp.asarray(self.covariance.theta(sd * np.eye(n_effects)))
        self.log_dispersion = jnp.zeros(())

    @property
    def factor(self) -> Array:
        """Lambda (S, S); with one effect, its standard deviation."""
        return self.covariance.factor(self.theta)

    def __call__(self, eta: Float[Array, " slots"], design: Design) -> Array:
        """Marginal log-likelihood () at eta (n_slots,), one for each slot of the design; its X is not read."""
        plain = _with_offset(design, eta)
        beta = jnp.zeros(0, plain.offset.dtype)
        return AdaptiveQuadrature(self.family, self.nodes).at(beta, self.factor, self.log_dispersion, plain)

    def posterior(self, eta: Float[Array, " slots"], design: Design) -> tuple[Array, Array]:
        """Mean and standard deviation of each group's effects b given its rows and the parameters.

        Returns
        -------
        mean, sd : (S, n_slots)
            Link scale; the same in every slot of a group: read them at `layout.first`.
        """
        plain, factor = _with_offset(design, eta), self.factor
        psi = jnp.append(factor[self.covariance.entries], self.log_dispersion)
        z = jnp.asarray(only_term(design).z)
        nodes = gauss_hermite(self.nodes, len(factor)).astype(z.dtype)
        u = posterior_moments(self.family, plain, nodes, psi, jnp.zeros_like(z))
        mean = jnp.matmul(factor, u.mean, precision="highest")
        variance = jnp.einsum("ab,bcn,ac->an", factor, u.covariance, factor, precision="highest")
        return mean, jnp.sqrt(variance)


def _with_offset(design, eta):
    a_design("design", design)
    floats("eta", eta)
    if eta.shape != design.y.shape:
        raise DataError(f"eta must have shape {design.y.shape}, one for each slot of the design; found {eta.shape}")
    return dataclasses.replace(design, X=jnp.zeros((len(eta), 0), eta.dtype), offset=design.offset + eta)


class GroupBatches:
    """Batches of whole groups, all of one shape, so that one compiled step serves them all.

    The log-likelihood is a sum over groups: a batch's gradient times its weight, `zip(batches.epoch(seed),
    batches.weights)`, is an unbiased estimate of the gradient of them all, whichever batch of the epoch it is; over an
    epoch the gradients without weights add up to that gradient itself.
    """

    def __init__(self, y, X, codes, *, groups: int, weights=None, offset=None, z=None, dtype=np.float32):
        """Sort the rows' numbers by group.

        Parameters
        ----------
        y, weights, offset : (n,)
        X : (n, p)
            What the network reads; each batch has its rows in slots.
        codes : int (n,)
            Group of each row, from 0.
        groups : int
            Groups in a batch; the last one of an epoch has what is left.
        z : (S, n), optional
            As in `make_design`.
        dtype : dtype
            Of the arrays of a batch.
        """
        whole(1)("groups", groups)
        for name, values in (("y", y), ("X", X), ("codes", codes)):
            numbers(name, values)
        for name, values in (("weights", weights), ("offset", offset), ("z", z)):
            optional(numbers)(name, values)
        floating("dtype", dtype)
        n = np.size(y)
        for name, values, shape in (("y", y, (n,)), ("X", X, (n, np.shape(X)[-1] if np.ndim(X) else 0))):
            if np.shape(values) != shape:
                raise DataError(f"{name} must have shape {shape}; found {np.shape(values)}")
        for name, values in (("codes", codes), ("weights", weights), ("offset", offset)):
            if values is not None and np.shape(values) != (n,):
                raise DataError(f"{name} must have shape ({n},), as y has; found {np.shape(values)}")
        if z is not None and np.shape(np.atleast_2d(z))[1:] != (n,):
            raise DataError(f"z must have shape (S, {n}); found {np.shape(z)}")
        if np.asarray(codes).dtype.kind not in "iu" or np.min(codes) < 0 or np.ndim(codes) != 1:
            raise DataError("codes must number the groups from 0, one for each row")
        self._rows = {"weights": weights, "offset": offset, "codes": codes, "z": z}
        self._y, self._X, self._dtype, self.groups = np.asarray(y), np.asarray(X), dtype, groups
        counts = np.bincount(codes)
        self._order, self._first = np.argsort(codes, kind="stable"), np.append(0, np.cumsum(counts))
        # Blocks that suffice for any batch: those of the largest groups, and one more for each class.
        largest = np.sort(counts)[::-1][:groups]
        padded = np.asarray(SIZES)[np.searchsorted(SIZES, np.clip(largest, 1, LONGEST))]
        short = round_up(-(-int(padded.sum()) // _BLOCK) + len(SIZES))
        pieces = -(-largest[largest > LONGEST] // LONGEST)
        long = round_up(-(-int(pieces.sum()) * LONGEST // _BLOCK)) if len(pieces) else 0
        self._least = (short, long, round_up(len(pieces) + 1) if len(pieces) else 0)

    @property
    def weights(self) -> np.ndarray:
        """All groups over those of each batch of an epoch, (len,).

        The number of batches would be too large a weight for full ones, and too small a one for the last, where that
        has fewer groups.
        """
        G = len(self._first) - 1
        return G / np.diff(np.append(np.arange(0, G, self.groups), G))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-(len(self._first) - 1) // self.groups)

    def epoch(self, seed: int) -> Iterator[Design]:
        """Every group once, in an order drawn with `seed`."""
        seeds("seed", seed)
        order = np.random.default_rng(seed).permutation(len(self._first) - 1)
        for begin in range(0, len(order), self.groups):
            chosen = order[begin : begin + self.groups]
            rows = np.concatenate([self._order[self._first[g] : self._first[g + 1]] for g in chosen])
            counts = self._first[chosen + 1] - self._first[chosen]
            given = {k: np.asarray(v)[..., rows] for k, v in self._rows.items() if v is not None}
            given["codes"] = np.repeat(np.arange(len(chosen)), counts)
            yield make_design(
                self._y[rows], self._X[rows], n_groups=len(chosen), dtype=self._dtype, block=_BLOCK,
                least=self._least, **given,
            )[0]  # fmt: skip
