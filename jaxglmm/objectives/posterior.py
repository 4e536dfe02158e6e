"""Posterior of every group's effects given the parameters: moments, the density on a lattice, and what a change of
the parameters does to the mean.

With b = mean + Lambda u, u ~ N(0, I), a group's posterior is a sum over nodes u_k with weights

    pi_k ~ exp(c_k + f(u_k)),     f(u) = sum_i l_i(eta_i + z_i'b) - u'u/2

For one effect the nodes are a lattice, c_k = 0: the trapezoid rule, whose error falls geometrically (Trefethen &
Weideman 2014). Its spacing is a power of two and its points are multiples of that, so that groups of one spacing share
their points and densities of many groups can be added up. For several effects the nodes are Gauss-Hermite points about
the mode.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxglmm.modes.separable import curvature, find_modes, linear
from jaxglmm.objectives.marginal import Nodes, gauss_hermite
from jaxglmm.ops import small
from jaxglmm.ops.group import map_groups
from jaxglmm.ops.programs import program


# The lattice reaches `wide` prior sds to each side, or `by_curvature` times that many sds of the curvature where those
# are fewer: more without log-concavity, where a flat tail may begin beside a sharp peak.
WIDE = 9.0
_LATTICE = 160  # intervals: with WIDE a spacing of at most 0.23 prior sds and 0.45 sds of the curvature
_COARSEST = 0.125  # of the lattice, on the scale of eta; up to twice that, as spacings are powers of two
_MOST_INTERVALS = 1280


class Lattice(NamedTuple):
    """Nodes of one effect: `points` (1, K) are -K/2 ... K/2 in units of each group's spacing.

    Attributes
    ----------
    points : (1, K)
    wide : float
        Reach in prior standard deviations.
    by_curvature : float
        Reach in standard deviations of the curvature, as a multiple of `wide`.
    """

    points: Array
    wide: float
    by_curvature: float


def lattice(scale: float, wide: float = WIDE, log_concave: bool = True) -> Lattice:
    """The lattice for effects that move eta by `scale` a prior standard deviation (|z| times sd).

    Parameters
    ----------
    scale : float
    wide : float
        Reach in prior standard deviations: 9 for densities in full, less where their tails do not count.
    log_concave : bool
        Whether the rows' log-densities are concave in eta.
    """
    by_curvature = 2.0 if log_concave else 8.0
    intervals = _LATTICE * wide / WIDE * by_curvature / 2
    while 2 * wide * scale / intervals > _COARSEST and intervals < _MOST_INTERVALS:
        intervals *= 2
    half = int(np.ceil(intervals / 2))
    return Lattice(np.arange(-half, half + 1.0)[None], wide, by_curvature)


def node_rule(n_effects: int, each: int) -> Nodes:
    """Nodes about the mode: a product of `each` Gauss-Hermite nodes for up to three effects.

    For more effects the 2 S points of the spherical-radial rule of degree 3 (Arasaratnam & Haykin 2009).
    """
    if n_effects <= 3:
        rule = gauss_hermite(each, n_effects)
        return Nodes(np.asarray(rule.points), np.asarray(rule.log_weights), np.int32(rule.count))
    points = np.sqrt(n_effects / 2) * np.concatenate([np.eye(n_effects), -np.eye(n_effects)], 1)
    return Nodes(points, np.full(2 * n_effects, n_effects / 2), np.int32(2 * n_effects))


class Rows(NamedTuple):
    """What a posterior needs of the rows, in slots.

    Attributes
    ----------
    y, weights, eta : (R,)
        eta = offset + X beta.
    z, start, mean : (S, R)
        Effects' columns; where the search for u^ begins; prior mean of b.
    factor : (S, S, R)
        Lambda of the prior, equal in all slots of a group.
    """

    y: Array
    weights: Array
    eta: Array
    z: Array
    start: Array
    mean: Array
    factor: Array


class Posteriors(NamedTuple):
    """Posterior of b in every slot of its group.

    Attributes
    ----------
    mode, mean : (S, R)
    curvature, covariance : (S, S, R)
        Lambda H^-1 Lambda' at the mode, and the posterior covariance.
    root : (S, S, R)
        root root' = curvature; Gauss-Hermite nodes lie at mode + sqrt(2) root z_k.
    first, step : (R,)
        Lattice: the points are (first + k) step, k = 0 ... K - 1.
    weights : (K, R)
        Of the points, adding to 1; None unless they were asked for.
    slopes : (S, m, R)
        Derivatives of the mean in (beta, entries of Lambda, log dispersion); None without X.
    """

    mode: Array
    mean: Array
    curvature: Array
    covariance: Array
    root: Array
    first: Array
    step: Array
    weights: Array | None
    slopes: Array | None


@program(static=("family", "entries", "keep"))
def group_posteriors(family, index, nodes, rows: Rows, log_phi, X=None, *, entries=(), keep=False) -> Posteriors:
    """Posteriors of all groups of an index.

    Parameters
    ----------
    nodes : Lattice or Nodes
        A lattice for one effect, Gauss-Hermite nodes for several.
    X : (R, p), optional
        Columns of the fixed effects: `slopes` are computed.
    entries : tuple of (row, column)
        Of Lambda, whose derivatives are among them.
    keep : bool
        Return the weights.

    References
    ----------
    Kass & Steffey (1989), JASA 84, 717; Booth & Hobert (1998), JASA 93, 262, for what the slopes are for.
    """
    body = lambda total, head, rows, X: ((), _block(family, nodes, total, rows, log_phi, X, entries, keep))
    return map_groups(body, index, rows, X)[1]


def _block(family, nodes, total, rows, log_phi, X, entries, keep):
    y, weight, eta, z, start, prior, factor = rows
    S = z.shape[0]
    eta = eta + linear(z, prior)
    v = jnp.stack([sum(z[a] * factor[a, b] for a in range(S)) for b in range(S)])
    u = find_modes(total, family, eta, v, y, weight, log_phi, start)
    at_mode = family.derivatives(eta + linear(v, u), y, weight, log_phi)
    M = jnp.swapaxes(small.inverse_lower(small.cholesky(curvature(total, v, at_mode.w))), 0, 1)
    peak = total(at_mode.l) - 0.5 * jnp.sum(u * u, 0)
    mode = prior + small.matvec(factor, u)
    first, step, centre, root = _place(nodes, prior, factor, u, M)
    log_weights = getattr(nodes, "log_weights", jnp.zeros(nodes.points.shape[1]))
    sensitive = X is not None

    def terms(k):
        at = centre + small.matvec(root, nodes.points[:, k, None])
        x = eta + linear(v, at)
        d = family.derivatives(x, y, weight, log_phi)
        sums = total(jnp.concatenate([d.l[None], d.s * z]) if sensitive else d.l[None])
        pi = jnp.exp(log_weights[k] + sums[0] - 0.5 * jnp.sum(at * at, 0) - peak)
        du = at - u
        db = small.matvec(factor, du)
        # Far out a density is zero and its derivatives may be infinite.
        weighted = lambda v: jnp.where(pi > 0, pi * v, 0.0)
        out = {"1": pi, "b": pi * db, "bb": pi * db[:, None] * db[None]}
        if sensitive:
            scores = [at[c] * sums[1 + a] for a, c in entries]
            if family.dispersion_name is not None:
                scores.append(total(family.dispersion_derivatives(x, y, weight, log_phi)[0]))
            scores = jnp.stack(scores)
            out |= {"u": pi * du, "s": weighted(d.s), "bs": weighted(db * d.s)}
            out |= {"g": weighted(scores), "bg": weighted(db[:, None] * scores[None])}
        return out

    def add(sums, k):
        new = terms(k)
        return jax.tree.map(jnp.add, sums, new), new["1"] if keep else ()

    zero = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), jax.eval_shape(terms, 0))
    sums, weights = jax.lax.scan(add, zero, jnp.arange(nodes.points.shape[1]))
    mean = {name: value / sums["1"] for name, value in sums.items()}
    slopes = [_slope(total, X, entries, u, mean, a) for a in range(S)] if sensitive else None
    spread = jnp.stack([small.matvec(factor, M[:, a]) for a in range(S)], 1)
    return Posteriors(
        mode=mode,
        mean=mode + mean["b"],
        curvature=jnp.sum(spread[:, None] * spread[None], 2),
        covariance=mean["bb"] - mean["b"][:, None] * mean["b"][None],
        root=spread,
        first=first,
        step=step,
        weights=weights / sums["1"] if keep else None,
        slopes=jnp.stack(slopes) if slopes else None,
    )


def _place(nodes, prior, factor, u, M):
    """Where the nodes lie: first point and spacing of the lattice in b; u_k = centre + root points_k."""
    if not isinstance(nodes, Lattice):
        nothing = jnp.zeros_like(u[0])
        return nothing, nothing, u, np.sqrt(2.0) * M
    sd = factor[0, 0]
    half = nodes.points.shape[1] // 2
    reach = sd * nodes.wide * jnp.minimum(1.0, nodes.by_curvature * M[0, 0])
    step = jnp.ldexp(jnp.ones_like(sd), jnp.ceil(jnp.log2(reach / half)).astype(jnp.int32))
    middle = jnp.round((prior[0] + sd * u[0]) / step)
    return middle - half, step, ((middle * step - prior[0]) / sd)[None], (step / sd)[None, None]


def _slope(total, X, entries, u, mean, a):
    """Derivatives (m, R) of the mean of effect a.

    dE[b]/dpsi is the covariance of b with the score of psi; an entry of Lambda also moves b = Lambda u itself.
    """
    by_eta = mean["bs"][a] - mean["b"][a] * mean["s"]
    by_score = mean["bg"][a] - mean["b"][a] * mean["g"]
    of_u = u + mean["u"]
    for e, (row, column) in enumerate(entries):
        if row == a:
            by_score = by_score.at[e].add(of_u[column])
    return jnp.concatenate([total(X.T * by_eta), by_score])
