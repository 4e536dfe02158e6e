"""The exact Hessian of the marginal likelihood of independent groups, in closed form.

Notation and formulas are those of kernels/include/jaxglmm/group_pass.h, whose plain twin this is: every index of u is
multiplied by M, so that the curvature at the mode is the identity and Lambda'z_i becomes v_i; an unknown x (some eta_i,
an entry of Lambda, log_phi) moves the mode by M a_x and M itself by M U_x, and

    V_xy = (what x and y have directly) + g_x' (form) g_y + r_x' g_y + g_x' r_y + Cov(spread_x, spread_y),  g = (a, U).

So the Hessian in eta of a group is a diagonal, a form in few row vectors, and a covariance over the nodes: what falls
on X is one weighted product of X with itself, whatever the number of columns. Arrays are (..., R) over slots; in the
names of axes r is the slot, x and y are unknowns that are no eta, the other letters effects.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxglmm.modes.separable import linear
from jaxglmm.objectives.marginal import GroupGradient, if_several, scale
from jaxglmm.ops.small import contract
from jaxglmm.ops.varying import axes_of, vary, zeros_as


class _Mode(NamedTuple):
    """A block at its modes: rows (R,), sums over the rows of each group, and what moves M and the mode."""

    rows: np.ndarray  # of the entries of Lambda, (q,)
    columns: np.ndarray
    eta: Array  # at the mode, (R,)
    u: Array  # (S, R)
    v: Array  # v_i, (S, R)
    M: Array  # (S, S, R)
    T: Array  # Lambda M
    d: Any  # the rows' derivatives
    phi: Any  # the same in log_phi; None without dispersion
    sums: dict[str, Array]
    a_row: Array  # a_x of a row's eta, (S, R)
    U_row: Array  # U_x, (S, S, R)
    a: Array  # of the other unknowns, (m, S, R)
    U: Array  # (m, S, S, R)
    f_x: Array  # f_x of them, (m, R)


class _Moments(NamedTuple):
    """Means over the nodes, e = sqrt(2) z_k; at the mode itself, with e = 0, where there is one node."""

    f1: Array  # E[f_u], (S, R)
    f2: Array  # E[f_u e'], its upper triangle, (S, S, R)
    H: Array  # E[H_ab (1, e)(1, e)'], (S, S, 1 + S, 1 + S, R)
    w: Array  # E[w], (R,)
    we: Array  # E[w e], (S, R)
    s_p: Array  # E[ds / dlog_phi], (R,)
    a: Array  # E[f_xu], (m, S, R)
    U: Array  # E[f_xu e'], (m, S, S, R)
    second: Array  # E[f_xy] + Cov(spread_x, spread_y), (m, m, R)
    spread_x: Array  # E[spread_x], (m, R)
    varied: Array  # Cov(spread_i, spread_x), (m, R)
    spread: Array  # E[spread_i], (R,)
    pairs: Any  # Cov(spread_i, spread_j) between rows of X, (p, p)


class _ByDispersion(NamedTuple):
    """Derivatives in log_phi of a row's l, s, w, a, and their own of the first three."""

    l: Array
    s: Array
    w: Array
    a: Array
    l_p: Array
    s_p: Array
    w_p: Array


def group_hessian(
    total, head, family, eta, z, factor, log_phi, y, weight, nodes, g: GroupGradient, entries, determinant=True
):  # fmt: skip
    """Hessian of the sum of `GroupGradient.value` in (beta, entries of Lambda, log_phi).

    Parameters
    ----------
    total : Totals
        Of the block, with its rows of X (`ops.group`).
    g : GroupGradient
        Of the same arguments.
    entries : (q,), (q,)
        Rows and columns of the entries of Lambda.

    Returns
    -------
    (p + q + 1, p + q + 1)
        The last row and column are 0 where the family has no dispersion.
    """
    at = _mode(total, family, eta, z, factor, log_phi, y, weight, g.modes, entries)
    one_node = lambda: _at_mode(total, at)
    several = lambda: _over_nodes(total, family, z, log_phi, y, weight, nodes, g, at)
    e = if_several(nodes.count, several, one_node)
    H = _assemble(total, head, z, at, e, determinant)
    return H if at.phi is not None else jnp.pad(H, ((0, 1), (0, 1)))


def _by_dispersion(family, eta, y, weight, log_phi):
    one = jnp.ones_like(log_phi)
    terms = lambda p: family.derivatives(eta, y, weight, p)[:4]
    first = lambda p: jax.jvp(terms, (p,), (one,))[1]
    now, again = jax.jvp(first, (log_phi,), (one,))
    return _ByDispersion(*now, *again[:3])


def _totals(total, arrays):
    """Totals of several arrays (..., R) in one sweep."""
    flat = [v.reshape(-1, v.shape[-1]) for v in arrays.values()]
    ends = np.cumsum([len(v) for v in flat])[:-1]
    parts = jnp.split(total(jnp.concatenate(flat)), ends)
    return {name: part.reshape(v.shape) for (name, v), part in zip(arrays.items(), parts, strict=True)}


def _bordered(inner, edge, corner):
    """A symmetric matrix (q, q, R) with one more row and column."""
    wide = jnp.concatenate([inner, edge[:, None]], axis=1)
    return jnp.concatenate([wide, jnp.concatenate([edge, corner[None]])[None]])


def _mode(total, family, eta, z, factor, log_phi, y, weight, u, entries) -> _Mode:
    (rows, columns), S, lam = entries, z.shape[0], factor[:, :, None]
    shifted = eta + linear(contract("kcr,kr->cr", lam, z), u)
    d = family.derivatives(shifted, y, weight, log_phi)
    zz = contract("ar,br->abr", z, z)
    sums = {"s": d.s * z, "w": d.w * zz, "a": contract("abr,cr->abcr", d.a * zz, z)}
    phi = None
    if family.dispersion_name is not None:
        phi = _by_dispersion(family, shifted, y, weight, log_phi)
        sums |= {"s_p": phi.s * z, "w_p": phi.w * zz, "s_pp": phi.s_p * z, "w_pp": phi.w_p * zz}
        sums |= {"l_p": phi.l, "l_pp": phi.l_p}
    sums = _totals(total, {name: v if v.ndim > 1 else v[None] for name, v in sums.items()})

    eye = jnp.eye(S, dtype=eta.dtype)[:, :, None]
    M, _ = scale(eye + contract("kir,kar,ibr->abr", sums["w"], lam, lam))
    T = contract("kcr,car->kar", lam, M)
    v = contract("kar,kr->ar", T, z)
    bent = contract("kijr,iar,jbr->kabr", sums["a"], T, T)
    f3 = -contract("kcr,kabr->cabr", T, bent)
    wT = contract("kir,iar->kar", sums["w"], T)

    upper = jnp.asarray(np.triu(np.ones((S, S)), 1) + 0.5 * np.eye(S), eta.dtype)[:, :, None]
    a_row = -d.w * v
    U_row = upper * (contract("cabr,cr->abr", f3, a_row) - d.a * contract("ar,br->abr", v, v))
    Mc, uc = M[columns], u[columns]
    cross = contract("xar,xbr->xabr", Mc, wT[rows])
    a = contract("xar,xr->xar", Mc, sums["s"][rows]) - contract("xr,xar->xar", uc, wT[rows])
    K = -(contract("xr,xabr->xabr", uc, bent[rows]) + cross + jnp.swapaxes(cross, 1, 2))
    f_x = uc * sums["s"][rows]
    if phi is not None:
        a = jnp.concatenate([a, contract("kar,kr->ar", T, sums["s_p"])[None]])
        K = jnp.concatenate([K, -contract("ijr,iar,jbr->abr", sums["w_p"], T, T)[None]])
        f_x = jnp.concatenate([f_x, sums["l_p"]])
    U = upper * (K + contract("cabr,xcr->xabr", f3, a))
    return _Mode(rows, columns, shifted, u, v, M, T, d, phi, sums, a_row, U_row, a, U, f_x)


def _at_mode(total, at: _Mode) -> _Moments:
    """With one node, all moments are what they are at the mode."""
    S, zero, uc = len(at.u), jnp.zeros_like, at.u[at.columns]
    second = -contract("xr,yr,xyr->xyr", uc, uc, at.sums["w"][np.ix_(at.rows, at.rows)])
    if at.phi is not None:
        second = _bordered(second, uc * at.sums["s_p"][at.rows], at.sums["l_pp"][0])
    identity = jnp.asarray(np.eye(S), at.u.dtype)[:, :, None] + zero(at.M)
    H = jnp.zeros((S, S, 1 + S, 1 + S, 1), at.u.dtype) + zero(at.u[0])
    return _Moments(
        zero(at.u), zero(at.M), H.at[:, :, 0, 0].set(identity), at.d.w, zero(at.u),
        zero(at.d.w) if at.phi is None else at.phi.s, at.a, zero(at.U), second, zero(at.f_x), zero(at.f_x),
        zero(at.d.w), total.no_columns(at.u.dtype),
    )  # fmt: skip


def _over_nodes(total, family, z, log_phi, y, weight, nodes, g: GroupGradient, at: _Mode) -> _Moments:
    S, rows, columns = len(at.u), at.rows, at.columns
    zz, identity = contract("ar,br->abr", z, z), contract("car,cbr->abr", at.M, at.M)
    triangle = np.triu(np.ones((S, S)))[:, :, None].astype(z.dtype)

    def moments(k):
        e = jnp.sqrt(2.0).astype(z.dtype) * nodes.points[:, k, None]
        with_one = jnp.concatenate([jnp.ones_like(e[:1]), e])
        u, x = at.u + contract("car,ar->cr", at.M, e), at.eta + linear(at.v, e)
        d = family.derivatives(x, y, weight, log_phi)
        wanted = {"l": d.l[None], "s": d.s * z, "w": d.w * zz}
        s_p = jnp.zeros_like(d.s)
        if at.phi is not None:
            phi = _by_dispersion(family, x, y, weight, log_phi)
            s_p = phi.s
            wanted |= {"s_p": s_p * z, "l_p": phi.l[None], "l_pp": phi.l_p[None]}
        sums = _totals(total, wanted)
        pi = jnp.exp(nodes.log_weights[k] + sums["l"][0] - 0.5 * jnp.sum(u * u, 0) - g.log_mass)
        f_u = contract("kar,kr->ar", at.T, sums["s"]) - contract("car,cr->ar", at.M, u)
        f_ue = triangle * contract("ar,br->abr", f_u, e)
        wT = contract("kir,iar->kar", sums["w"], at.T)
        H = contract("kar,kbr->abr", at.T, wT) + identity
        f_x, uc = u[columns] * sums["s"][rows], u[columns]
        f_xu = contract("xar,xr->xar", at.M[columns], sums["s"][rows]) - contract("xr,xar->xar", uc, wT[rows])
        second = -contract("xr,yr,xyr->xyr", uc, uc, sums["w"][np.ix_(rows, rows)])
        if at.phi is not None:
            f_x = jnp.concatenate([f_x, sums["l_p"]])
            f_xu = jnp.concatenate([f_xu, contract("kar,kr->ar", at.T, sums["s_p"])[None]])
            second = _bordered(second, uc * sums["s_p"][rows], sums["l_pp"][0])
        spread_x = f_x - at.f_x + contract("ar,xar->xr", f_u, at.a) + contract("abr,xabr->xr", f_ue, at.U)
        spread = d.s - at.d.s + linear(f_u, at.a_row) + contract("abr,abr->r", f_ue, at.U_row)
        means = _Moments(
            f_u, f_ue, contract("abr,mr,nr->abmnr", H, with_one, with_one), d.w, d.w * e, s_p, f_xu,
            contract("xar,br->xabr", f_xu, e), second + contract("xr,yr->xyr", spread_x, spread_x), spread_x,
            spread * spread_x, spread, (),
        )  # fmt: skip
        return jax.tree.map(lambda v: pi * v, means), pi * spread, spread

    def add(k, acc):
        means, pairs = acc
        more, weighted, spread = moments(k)
        return jax.tree.map(jnp.add, means, more), total.add_pairs(pairs, weighted, spread)

    shapes = jax.eval_shape(moments, 0)
    zero = jax.tree.map(zeros_as, shapes[0]), vary(total.no_pairs(z.dtype), axes_of(shapes[2]))
    means, pairs = lax.fori_loop(0, nodes.count, add, zero)
    pairs = total.add_pairs(pairs, -means.spread, means.spread)
    return means._replace(
        pairs=total.outer_pairs(pairs),
        second=means.second - contract("xr,yr->xyr", means.spread_x, means.spread_x),
        varied=means.varied - means.spread * means.spread_x,
    )


def _assemble(total, head, z, at: _Mode, e: _Moments, determinant):
    S, (rows, columns), sums, d = len(at.u), (at.rows, at.columns), at.sums, at.d
    M, T, u, v, uc = at.M, at.T, at.u, at.v, at.u[at.columns]
    eye = jnp.asarray(np.eye(S), u.dtype)[:, :, None]
    delta = determinant * eye
    # R, rho; kappa of a row, and its sums.
    R = 0.5 * (e.f2 + jnp.swapaxes(e.f2, 0, 1) - e.f2 * eye + delta)
    f3 = -contract("kcr,kijr,iar,jbr->cabr", T, sums["a"], T, T)
    rho = e.f1 + contract("abr,cabr->cr", R, f3)
    own = lambda c, a: -(c * contract("abr,ar,br->r", R, v, v) + a * linear(rho, v))
    kappa_row, kappa_p_row = own(d.c, d.a), None
    wanted = {"k": kappa_row * contract("ar,br->abr", z, z)}
    if at.phi is not None:
        kappa_p_row = own(at.phi.a, at.phi.w)
        wanted["p"] = kappa_p_row * z
    more = _totals(total, wanted)
    kappa, diagonal = more["k"], kappa_row - e.w

    # R and rho, moved to the scale of z and of the columns of Lambda.
    MR = contract("cbr,bar->car", M, R)
    rho_z, rho_u = contract("kar,ar->kr", T, rho), contract("car,ar->cr", M, rho)
    mass_z, across = contract("kbr,bar,jar->kjr", T, R, T), contract("car,kar->ckr", MR, T)
    chi = (
        contract("kjr,cr->ckjr", kappa, u)
        - 2.0 * contract("tkjr,ctr->ckjr", sums["a"], across)
        - contract("kjr,cr->ckjr", sums["w"], rho_u)
    )

    form = contract("kjr,kar,jbr->abr", kappa, T, T) - e.H[:, :, 0, 0]
    He, Hee = e.H[:, :, 0, 1:], e.H[:, :, 1:, 1:]

    def against(a, U):
        """The form's product with (a, U) of several unknowns."""
        to_a = contract("abr,xbr->xar", form, a) - contract("acbr,xcbr->xar", He, U)
        to_U = (
            contract("abr,xabr->xabr", delta + jnp.zeros_like(M), U)
            - contract("acbr,xcr->xabr", He, a)
            + contract("ajr,xbjr->xabr", e.f2, U)
            + contract("ibr,xiar->xabr", e.f2, U)
            + 2.0 * contract("bdr,xadr->xabr", R, U)
            - contract("acbdr,xcdr->xabr", Hee, U)
        )
        return to_a, to_U

    pull = contract("ijr,kijr->kr", mass_z, sums["a"]) + contract("ktr,tr->kr", sums["w"], rho_z)
    turned = contract("xtr,tar->xar", chi[columns, rows], T) - contract("xr,xar->xar", pull[rows], M[columns])
    if at.phi is not None:
        turned = jnp.concatenate([turned, contract("tar,tr->ar", T, more["p"])[None]])
    r_a, r_U = e.a + turned, e.U
    to_a, to_U = against(at.a, at.U)
    to_a, to_U = to_a + r_a, to_U + r_U

    # The unknowns that are no eta.
    both, half = np.ix_(rows, rows), contract("xyr,yr->xyr", chi[columns[:, None], rows[:, None], rows], uc)
    direct = (
        half
        + jnp.swapaxes(half, 0, 1)
        - contract("xyr,xr,yr->xyr", kappa[both], uc, uc)
        - 2.0 * sums["w"][both] * contract("xar,yar->xyr", MR[columns], M[columns])
    )
    if at.phi is not None:
        edge = (
            more["p"][rows] * uc
            - 2.0 * contract("xir,iar,xar->xr", sums["w_p"][rows], T, MR[columns])
            + sums["s_p"][rows] * rho_u[columns]
        )
        direct = _bordered(direct, edge, linear(rho_z, sums["s_pp"]) - contract("ijr,ijr->r", mass_z, sums["w_pp"]))
    among = (
        direct
        + e.second
        + contract("xar,yar->xyr", at.a, to_a)
        + contract("xabr,yabr->xyr", at.U, to_U)
        + contract("xar,yar->xyr", r_a, at.a)
        + contract("xabr,yabr->xyr", r_U, at.U)
    )
    among = jnp.sum(jnp.where(head, among, 0.0), axis=-1)

    # A row and such an unknown.
    a_side, U_side = diagonal * v, -contract("ar,br->abr", v, e.we)
    chi_row = diagonal * u - d.w * rho_u - 2.0 * d.a * contract("car,ar->cr", MR, v) - contract("car,ar->cr", M, e.we)
    mixed = z[rows] * chi_row[columns]
    if kappa_p_row is not None:
        mixed = jnp.concatenate([mixed, (kappa_p_row + e.s_p)[None]])
    mixed = (
        mixed
        + e.varied
        + contract("ar,xar->xr", at.a_row, to_a)
        + contract("abr,xabr->xr", at.U_row, to_U)
        + contract("ar,xar->xr", a_side, at.a)
        + contract("abr,xabr->xr", U_side, at.U)
    )

    # Two rows of a group.
    to_a, to_U = (t[0] for t in against(at.a_row[None], at.U_row[None]))
    triangle = np.triu_indices(S)
    left = jnp.concatenate([at.a_row, at.U_row[triangle]])
    right = jnp.concatenate([0.5 * to_a + a_side, (0.5 * to_U + U_side)[triangle]])
    by_rows = total.outer(diagonal, left, right) + e.pairs
    by_both = total.columns(mixed)
    return jnp.block([[by_rows, by_both.T], [by_both, among]])
