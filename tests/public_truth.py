"""What results of the public face keep: the truth where it is cheap, and bounds of every probability and interval.

Dense normal densities, sums of row densities by scipy's distributions, and quadrature node by node on the host.
"""

import numpy as np
from scipy import special, stats

from jaxglmm.plots import columns_of


class Wrong(Exception):
    """A result that is not right."""


def require(good, what: str) -> None:
    if not np.all(good):
        raise Wrong(what)


def close(a, b, what: str, rtol=1e-6, atol=1e-8) -> None:
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or not np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
        raise Wrong(f"{what}: {str(a)[:80]} is not {str(b)[:80]}")


def check_fit(fit) -> None:
    """What every fit keeps, whatever it was asked."""
    held = fit.convergence.converged
    beta, se = np.array(list(fit.fixef.values())), np.array(list(fit.fixef_se.values()))
    require(len(fit.names) == len(beta), "names and estimates")
    require(not held or np.isfinite(beta).all(), f"effects without a value: {fit.fixef}")
    require(not (se < 0).any(), "a negative standard error")
    require(not held or np.isfinite(fit.loglik), f"loglik {fit.loglik}")
    for term in fit.varcorr:
        require(not held or (term["sd"] >= 0 and np.isfinite(term["sd"])), f"sd {term['sd']}")
        for r in term["corr"].values():
            require(np.isnan(r) or abs(r) <= 1 + 1e-12, f"correlation {r}")
    if fit.dispersion is not None:
        require(not held or fit.dispersion["value"] > 0, f"dispersion {fit.dispersion}")
    require(fit.n >= 1 and fit.n_dropped >= 0, "rows")
    require(str(fit.summary()) and repr(fit), "summary")
    if held:
        rows, mean = fit._problem.frame, fit.predict(effects="mode")
        require(mean.shape == rows.y.shape, "shape of predictions")
        require(np.isfinite(mean).all(), "predictions without a value")
        for group in fit.groups:
            table = columns_of(fit.ranef(group))
            counts = np.asarray(table["n"])[np.asarray(table["term"]) == table["term"][0]]
            require(int(np.sum(counts)) == len(rows.y), "rows of the groups")
            for name in ("estimate", "sd", "mean", "sd_mean"):
                require(np.isfinite(np.asarray(table[name], float)), f"{name} of an effect without a value")
            reliability = np.asarray(table["reliability"], float)
            require(np.isnan(reliability) | ((reliability >= 0) & (reliability <= 1)), "reliability")


def log_densities(fit, eta, rows) -> np.ndarray:
    """Log-density of each row at eta (..., n), with all constants, by scipy's distributions."""
    y, w, family = rows.y, rows.weights, fit.family
    phi = 1.0 if fit.dispersion is None else float(fit.dispersion["value"])
    mu = {
        "identity": lambda e: e, "log": np.exp, "logit": special.expit, "probit": special.ndtr,
        "cloglog": lambda e: -np.expm1(-np.exp(e)), "inverse": lambda e: 1 / e, "sqrt": np.square,
    }[family.link](eta)  # fmt: skip
    if family.name == "gaussian":
        return stats.norm.logpdf(y, mu, phi / np.sqrt(w))
    if family.name == "binomial":
        return stats.binom.logpmf(np.rint(w * y), np.rint(w), mu)
    if family.name == "poisson":
        return w * (special.xlogy(y, mu) - mu - special.gammaln(y + 1))
    if family.name == "negativebinomial":
        if np.isinf(phi):
            return w * (special.xlogy(y, mu) - mu - special.gammaln(y + 1))
        rise = special.gammaln(y + phi) - special.gammaln(phi) - special.gammaln(y + 1)
        if phi > 1e7:  # the difference of two large numbers
            rise = y * np.log(phi) + y * (y - 1) / (2 * phi) - special.gammaln(y + 1)
        return w * (rise - y * np.log(phi) + special.xlogy(y, mu) - (y + phi) * np.log1p(mu / phi))
    if family.name == "gamma":
        return w * stats.gamma.logpdf(y, phi, scale=mu / phi)
    return w * stats.beta.logpdf(y, mu * phi, (1 - mu) * phi)


def check_loglik(fit) -> None:
    """The log-likelihood at the fit's own parameters, from densities alone."""
    rows = fit._problem.frame
    counted = rows.weights > 0
    if not counted.all() or len(rows.y) > 100:
        return
    beta = np.array(list(fit.fixef.values()))
    eta = rows.offset + rows.X @ beta
    if np.max(np.abs(rows.X) @ np.abs(beta)) > 1e6:  # the columns as they are have too few digits for this
        return
    scale = max(1.0, abs(fit.loglik))
    if fit.family.name == "gaussian" and fit.family.link == "identity":
        truth = _normal(fit, rows, eta)
    elif not rows.terms:
        truth = float(np.sum(log_densities(fit, eta, rows)))
    elif len(rows.terms) == 1 and len(rows.terms[0].names) == 1 and fit.family.name != "gaussian":
        truth = _nodes(fit, rows, eta)
    else:
        return
    if truth is not None:
        close(truth / scale, fit.loglik / scale, "loglik against densities", rtol=0, atol=1e-6)


def _normal(fit, rows, eta):
    sigma = fit.dispersion["value"]
    V = np.diag(sigma**2 / rows.weights)
    for term, cov in zip(rows.terms, fit.state.column_covariances, strict=True):
        z, T = term.z, np.linalg.inv(term.basis)
        covariance = T @ np.asarray(cov) @ T.T
        V += (term.codes[:, None] == term.codes) * (z.T @ covariance @ z)
    try:
        L = np.linalg.cholesky(V)
    except np.linalg.LinAlgError:
        return None
    if np.linalg.cond(V) > 1e9:  # no dense truth to six digits
        return None
    r = np.linalg.solve(L, rows.y - eta)
    value = -0.5 * r @ r - np.log(np.diag(L)).sum() - 0.5 * len(r) * np.log(2 * np.pi)
    if fit.method == "reml":
        X = np.linalg.solve(L, rows.X)
        _, log_det = np.linalg.slogdet(X.T @ X)
        value += -0.5 * log_det + 0.5 * X.shape[1] * np.log(2 * np.pi)
        if np.linalg.cond(X) > 1e6:
            return None
    return float(value)


def _nodes(fit, rows, eta):
    """Adaptive Gauss-Hermite quadrature of as many nodes as the fit has, at modes found by bisection."""
    term = rows.terms[0]
    sd = float(np.sqrt(np.asarray(fit.state.column_covariances[0])[0, 0]))
    z, G = term.z[0], len(term.levels)
    if sd == 0:
        return float(np.sum(log_densities(fit, eta, rows)))
    if fit.family.link in ("inverse", "sqrt"):
        return None  # eta has a bound, which nodes may cross
    add = lambda l: np.array([np.bincount(term.codes, row, G) for row in np.atleast_2d(l)])
    joint = lambda u: add(log_densities(fit, eta + sd * z * u[..., term.codes], rows)) - 0.5 * u**2
    with np.errstate(all="ignore"):
        low, high = np.full(G, -60.0), np.full(G, 60.0)
        for _ in range(200):  # golden section: the densities are log-concave in eta, or nearly so
            a, b = low + 0.381966 * (high - low), high - 0.381966 * (high - low)
            up = joint(np.array([b]))[0] > joint(np.array([a]))[0]
            low, high = np.where(up, a, low), np.where(up, high, b)
        mode, h = (low + high) / 2, 1e-2
        d = [joint(np.array([mode + k * h]))[0] for k in (-3, -2, -1, 0, 1, 2, 3)]
        second = (2 * d[0] - 27 * d[1] + 270 * d[2] - 490 * d[3] + 270 * d[4] - 27 * d[5] + 2 * d[6]) / (180 * h * h)
        if not (second < 0).all() or sd * np.abs(z).max() > 20:
            return None
        width = 1 / np.sqrt(-second)
        t, w = np.polynomial.hermite_e.hermegauss(fit.n_agq or 1)
        points = mode + width * t[:, None]
        values = joint(points) + 0.5 * t[:, None] ** 2 + np.log(w / np.sqrt(2 * np.pi))[:, None] + np.log(width)
        return float(special.logsumexp(values, axis=0).sum())


def check_fits(fits) -> None:
    require(fits.estimate.shape == (len(fits), len(fits.parameters)), "shape of estimates")
    good = np.array([label not in fits.failed for label in fits.labels.tolist()], bool)
    require(np.isfinite(fits.loglik[good]), "loglik of a fit that did not fail")
    require(len(columns_of(fits.summary())["n"]) == len(fits) and len(fits.table()) >= 0, "tables")


def check_path(path) -> None:
    require(np.diff(path.lambdas) <= 0, "falling lambdas")
    require(np.isfinite(path.loglik[np.asarray(path.converged, bool)]), "loglik along a path")


def _columns(table):
    return {name: np.asarray(values) for name, values in columns_of(table).items()}


def check_anova(table):
    p = np.asarray(_columns(table)["p"], float)
    require(np.isnan(p) | ((p >= 0) & (p <= 1)), f"p {p}")


def _predict(fit, found, given) -> None:
    if "interval" not in given or given["interval"] is None:
        values = np.asarray(found, float)
        if fit.convergence.converged and given.get("new") is None:
            require(np.isfinite(values), "a prediction without a value")
        return
    t = _columns(found)
    value, lower, upper = (t[name].astype(float) for name in ("prediction", "lower", "upper"))
    known = np.isfinite(value)
    slack = 1e-9 * (1 + np.abs(value[known]))
    if fit.penalised is not None and fit.penalised.get("alpha"):
        return  # a lasso's estimates have no standard errors
    require(np.isfinite(lower[known]) & np.isfinite(upper[known]), "ends without a value")
    require(lower[known] <= upper[known] + slack, "ends of an interval in the wrong order")
    if given.get("kind") == "link" or given.get("effects") in ("population", "mode"):
        require(lower[known] <= value[known] + slack, "a prediction below its interval")
        require(value[known] <= upper[known] + slack, "a prediction above its interval")
    level = float(given["interval"])
    if level < 0.9 and fit.convergence.converged:
        wider = _columns(fit.predict(**{**given, "interval": 0.99}))
        require(wider["lower"][known].astype(float) <= lower[known] + slack, "a wider interval that is narrower")


def _ranef(fit, found, given) -> None:
    t = _columns(found)
    if "lower" in t and fit.convergence.converged:
        require(t["lower"].astype(float) <= t["upper"].astype(float) + 1e-12, "ends of an effect in the wrong order")


def _rank(fit, found, given) -> None:
    t = _columns(found)
    require(t["position"] == np.arange(1, len(t["position"]) + 1), "positions")
    for name in ("p_top", "p_above", "r_value"):
        if name in t:
            require((t[name] >= -1e-12) & (t[name] <= 1 + 1e-12), name)
    require((t["percentile"] >= 0) & (t["percentile"] <= 100), "percentile")
    require(len(np.unique(t["level"].astype(str))) == len(t["level"]), "a level that stands twice")


def _score(fit, found, given) -> None:
    t = _columns(found)
    for name in ("estimate", "sd", "mean", "sd_mean"):
        require(np.isfinite(t[name].astype(float)), f"{name} without a value")


def _simulate(fit, found, given) -> None:
    require(found.shape == (len(fit._problem.frame.y), given.get("n", 1)), "shape of simulated responses")
    require(np.isfinite(found), "a simulated response without a value")
    if fit.family.name in ("poisson", "negativebinomial", "gamma"):
        require(found >= 0, "a negative response")
    if fit.family.name in ("binomial", "beta"):
        require((found >= 0) & (found <= 1), "a response outside of [0, 1]")


def _confint(fit, found, given) -> None:
    t = _columns(found)
    value, lower, upper = (t[name].astype(float) for name in ("estimate", "lower", "upper"))
    slack = 1e-6 * (1 + np.abs(value))
    require(np.isnan(lower) | (lower <= value + slack), f"lower ends above: {lower} {value}")
    require(np.isnan(upper) | (upper >= value - slack), f"upper ends below: {upper} {value}")


def _residuals(fit, found, given) -> None:
    require(fit._problem is None or found.shape == fit._problem.frame.y.shape, "shape of residuals")
    require(np.isfinite(found) | (not fit.convergence.converged), "a residual without a value")


def _test(fit, found, given) -> None:
    p = np.asarray(getattr(found, "p", np.nan), float)
    require(np.isnan(p) | ((p >= 0) & (p <= 1)), f"p {p}")


def _icc(fit, found, given) -> None:
    require(0 <= found <= 1, f"intraclass correlation {found}")


def _update(fit, found, given) -> None:
    require(found.fixef == fit.fixef, "frozen parameters")
    for group in found.groups:
        require(np.isfinite(_columns(found.ranef(group))["estimate"].astype(float)), "an effect without a value")


CHECKS = {
    "predict": _predict, "ranef": _ranef, "rank": _rank, "score": _score, "simulate": _simulate, "confint": _confint,
    "residuals": _residuals, "loo": _residuals, "test": _test, "icc": _icc, "update": _update,
}  # fmt: skip
