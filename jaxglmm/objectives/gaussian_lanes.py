"""The Gaussian likelihood of very many models at once, with its derivatives, on the host.

The formulas are those of `gaussian_expansion` and `gaussian_profile`, in the same notation, with lanes on the last
axis. With c the coefficients that solve the penalised least squares, e = Z'W(r - Xc) and f = P'e in each group,

    rss_k  = -sum_g f'dC_k f            v'Q_kl v = -sum_g f'(ddC_kl - dC_k B dC_l - dC_l B dC_k) f

so that all there is to sum over groups are products of f, B and Y = P'Z'WX.
"""

from dataclasses import dataclass, replace

import numpy as np

from jaxglmm.model.covariance import Covariance
from jaxglmm.ops import gaussian_lanes as native_lanes, lanes


@dataclass
class LaneProducts:
    """What Gaussian likelihoods need of the data: see `CrossProducts`.

    The last axis runs over B lanes, or has length 1 where they share something.

    Attributes
    ----------
    ztz : (S, S, G, B or 1)
    ztx : (p, S, G, B or 1)
    ztr : (S, G, B)
    xx : (p, p, B or 1)
    xr : (p, B)
    rr : (B,)
        Of the residuals of least squares.
    origin : (p, B)
        Coefficients of least squares.
    n, log_weights : (B,)
    covariance : Covariance
    """

    ztz: np.ndarray
    ztx: np.ndarray
    ztr: np.ndarray
    xx: np.ndarray
    xr: np.ndarray
    rr: np.ndarray
    origin: np.ndarray
    n: np.ndarray
    log_weights: np.ndarray
    covariance: Covariance

    def part(self, which: np.ndarray) -> "LaneProducts":
        """Some lanes."""
        take = lambda v: v if not isinstance(v, np.ndarray) or v.shape[-1] == 1 else v[..., which]
        return LaneProducts(**{name: take(value) for name, value in vars(self).items()})

    def reordered(self, order: np.ndarray) -> "LaneProducts":
        """With the effects of each group in another order, within blocks."""
        return replace(self, ztz=self.ztz[order][:, order], ztx=self.ztx[:, order], ztr=self.ztr[order])


@dataclass
class LaneProfile:
    """Profiled likelihoods at points: as `GaussianProfile`, lanes last.

    Attributes
    ----------
    value, rss, log_sigma : (B,)
    gradient : (q, B)
    hessian : (q, q, B)
    beta : (p, B)
        In the columns given.
    inverse : (p, p, B)
        Of Q_xx.
    load : (p, q, B)
        (Q_k v)_x.
    bend, rss2, log_det2 : (q, q, B)
    rss1 : (q, B)
    q_xx : (p, p, B)
    """

    value: np.ndarray
    rss: np.ndarray
    log_sigma: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    beta: np.ndarray
    inverse: np.ndarray
    load: np.ndarray
    bend: np.ndarray
    rss1: np.ndarray
    rss2: np.ndarray
    log_det2: np.ndarray
    q_xx: np.ndarray

    def information(self, q: int, *, reml: bool) -> np.ndarray:
        """Observed information (m, m, B) of (beta, T, log sigma); under REML beta is apart, given the others."""
        s, p = np.exp(-2 * self.log_sigma), len(self.beta)
        out = np.zeros((p + q + 1, p + q + 1, len(s)))
        part = slice(p, p + q)
        out[:p, :p] = s * self.q_xx
        if not reml:
            out[:p, part] = -s * self.load
            out[part, :p] = np.swapaxes(out[:p, part], 0, 1)
        out[part, part] = 0.5 * (self.log_det2 + s * (self.rss2 if reml else self.bend))
        out[part, -1] = out[-1, part] = -s * self.rss1
        out[-1, -1] = 2 * self.rss * s
        return out


def profile(raw: np.ndarray, a: LaneProducts, *, reml: bool) -> LaneProfile:
    """Likelihoods maximised over beta and sigma, at relative factors with free entries `raw` (q, B).

    A lane whose matrices are not positive definite is NaN.
    """
    return _natively(raw, a, reml) if native_lanes.covers(a) else _profile(raw, a, reml)


def _natively(raw, a, reml) -> LaneProfile:
    found = native_lanes.profile(raw.T, a, reml=reml)
    last = {name: np.moveaxis(array, 0, -1) for name, array in found.items()}
    beta = a.origin + last.pop("c")
    log_sigma = 0.5 * np.log(last["rss"] / (a.n - (len(beta) if reml else 0)))
    return LaneProfile(beta=beta, log_sigma=log_sigma, **last)


def _profile(raw, a, reml) -> LaneProfile:
    B = raw.shape[1]
    p, S = a.ztx.shape[:2]
    rows, columns = a.covariance.entries
    T = np.zeros((S, S, B))
    T[rows, columns] = raw
    M, log_det = _kernel(T, a.ztz, B)
    P = np.eye(S)[:, :, None, None] - _sum("acg...,cbg...->abg...", M, a.ztz)
    Bg = _sum("acg...,cbg...->abg...", a.ztz, P)
    MX = _sum("abg...,ibg...->iag...", M, a.ztx)
    q_xx = a.xx - _sum("iag...,jag...->ij...", MX, a.ztx)
    q_xr = a.xr - _sum("iag...,ag...->i...", MX, a.ztr)
    q_rr = a.rr - _sum("ag...,ag...->...", _sum("abg...,bg...->ag...", M, a.ztr), a.ztr)
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = lanes.inverse(q_xx)
        c = _sum("ij...,j...->i...", inverse, q_xr)
        rss = q_rr - np.sum(q_xr * c, 0)
        n = a.n - (p if reml else 0)
        log_sigma = 0.5 * np.log(rss / n)

    f = _sum("bag...,bg...->ag...", P, a.ztr - _sum("iag...,i...->ag...", a.ztx, c))
    Y = _sum("bag...,ibg...->iag...", P, a.ztx)
    dC, ddC = _covariance_derivatives(T, rows, columns)
    ff, fb = _sum("ag...,bg...->ab...", f, f), f[:, None, None] * Bg[None]
    fbf = _sum("abcg...,dg...->abcd...", fb, f)
    yf = _sum("iag...,bg...->iab...", Y, f)
    rss1 = -_sum("kab...,ab...->k...", dC, ff)
    load = -_sum("iab...,kab...->ik...", yf, dC)
    turned = _sum("kab...,abcd...->kcd...", dC, fbf)
    bend = 2 * _sum("kcd...,lcd...->kl...", turned, dC) - np.einsum("klab,ab...->kl...", ddC, ff)
    solved = _sum("ij...,jk...->ik...", inverse, load)
    rss2 = bend - 2 * _sum("ik...,il...->kl...", load, solved)

    sb = _sum("abg...->ab...", Bg)
    bb = _sum("abg...,cdg...->abcd...", Bg, Bg)
    log_det1 = _sum("kab...,ab...->k...", dC, sb)
    log_det2 = np.einsum("klab,ab...->kl...", ddC, sb) - _sum(
        "kad...,lad...->kl...", _sum("abcd...,kbc...->kad...", bb, dC), np.swapaxes(dC, 1, 2)
    )
    if reml:
        log_det = log_det - np.linalg.slogdet(np.moveaxis(np.nan_to_num(inverse), -1, 0))[1]
        yy = _sum("iag...,jbg...->iajb...", Y, Y)
        slopes = -_sum("kab...,iajb...->kij...", dC, yy)
        by = _sum("ij...,kjl...->kil...", inverse, slopes)
        log_det1 = log_det1 + np.einsum("kii...->k...", by)
        log_det2 = log_det2 - _sum("kij...,lji...->kl...", by, by)
        w = _sum("iag...,ibg...->abg...", _sum("ij...,jag...->iag...", inverse, Y), Y)
        wb = _sum("adg...,bcg...->abcd...", w, Bg)
        half = _sum("kab...,abcd...->kcd...", dC, wb)
        log_det2 = log_det2 + 2 * _sum("kcd...,lcd...->kl...", half, dC)
        log_det2 = log_det2 - np.einsum("klab,ab...->kl...", ddC, _sum("abg...->ab...", w))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = 0.5 * (a.log_weights - log_det) - n * (log_sigma + 0.5 * np.log(2 * np.pi) + 0.5)
        gradient = -0.5 * (n * rss1 / rss + log_det1)
        ratio = rss1 / rss
        hessian = -0.5 * (n * (rss2 / rss - ratio[:, None] * ratio[None]) + log_det2)
    return LaneProfile(
        value, rss, log_sigma, gradient, hessian, a.origin + c, inverse, load, bend, rss1, rss2, log_det2,
        np.broadcast_to(q_xx, (p, p, B)),
    )  # fmt: skip


def _sum(formula: str, *arrays: np.ndarray) -> np.ndarray:
    return np.einsum(formula, *arrays)


def _kernel(T, ztz, B):
    """M = T (T'Z'WZT + I)^-1 T' (S, S, G, B) and the sum of log det (T'Z'WZT + I) (B,)."""
    S, G = ztz.shape[1:3]
    if not S:
        return np.zeros((0, 0, G, B)), np.zeros(B)
    right = np.einsum("abg...,bj...->ajg...", ztz, T)
    inner = np.einsum("ai...,ajg...->ijg...", T, right) + np.eye(S)[:, :, None, None]
    L = lanes.cholesky(inner.reshape(S, S, -1))
    turned = np.broadcast_to(np.swapaxes(T, 0, 1)[:, :, None], inner.shape).reshape(S, S, -1)
    half = lanes.solve_lower(L, turned)
    log_det = 2 * np.log(np.einsum("iib->ib", L)).sum(0).reshape(G, B).sum(0)
    return np.einsum("iab,icb->acb", half, half).reshape(S, S, G, B), log_det


def _covariance_derivatives(T, rows, columns):
    """First (q, S, S, B) and second (q, q, S, S) derivatives of C = T T' in the free entries of T."""
    q, S = len(rows), len(T)
    unit = np.zeros((q, S, S))
    unit[np.arange(q), rows, columns] = 1.0
    dC = np.einsum("kac,bc...->kab...", unit, T)
    ddC = np.einsum("kij,lmj->klim", unit, unit)
    return dC + np.swapaxes(dC, 1, 2), ddC + ddC.transpose(0, 1, 3, 2)
