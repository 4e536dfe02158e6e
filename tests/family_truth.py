"""Row log-densities in mpmath: slow, plain formulas with as many digits as it takes."""

import mpmath as mp


def _tail(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def _log_share(cdf, below_half):
    """log F(x) with relative accuracy for F near 1 too; ``cdf`` is exact in relative terms where it is small."""

    def log_cdf(x):
        return mp.log(cdf(x)) if below_half(x) else mp.log1p(-cdf(-x))

    return log_cdf


def _cauchy(x):
    return mp.atan2(1, -x) / mp.pi


_LOG_F = {
    "logit": lambda x: -mp.log1p(mp.exp(-x)),
    "probit": _log_share(_tail, lambda x: x <= 0),
    "cauchit": _log_share(_cauchy, lambda x: x <= 0),
}


def _cloglog(eta):
    r = mp.exp(eta)
    return mp.log(-mp.expm1(-r)) if r < 1 else mp.log1p(-mp.exp(-r))


def log_density(family, eta, y, log_phi):
    """l of one row of weight 1, without the data-only constant."""
    kind, eta, y, phi = (family.name, family.link), mp.mpf(eta), mp.mpf(y), mp.exp(mp.mpf(log_phi))
    if kind[0] == "binomial":
        if kind[1] == "cloglog":
            return (y * _cloglog(eta) if y else 0) - (1 - y) * mp.exp(eta)
        log_f = _LOG_F[kind[1]]
        return (y * log_f(eta) if y else 0) + ((1 - y) * log_f(-eta) if y != 1 else 0)
    mu = {
        "identity": lambda: eta,
        "log": lambda: mp.exp(eta),
        "sqrt": lambda: eta**2,
        "inverse": lambda: 1 / eta,
        "logit": lambda: 1 / (1 + mp.exp(-eta)),
    }[kind[1]]()
    if kind[0] == "gaussian":
        return -((y - mu) ** 2) / (2 * phi**2) - mp.mpf(log_phi)
    if kind[0] == "poisson":
        return y * mp.log(mu) - mu
    if kind[0] == "negativebinomial":
        rise = mp.fsum(mp.log(phi + j) for j in range(int(y)))
        return rise + y * mp.log(mu) - y * mp.log(phi) - (y + phi) * mp.log1p(mu / phi)
    if kind[0] == "gamma":
        return phi * mp.log(phi * y / mu) - phi * y / mu - mp.loggamma(phi)
    p, q = mu * phi, phi / (1 + mp.exp(eta))
    gammas = mp.loggamma(phi) - mp.loggamma(p) - mp.loggamma(q)
    return gammas + p * mp.log(y) + q * mp.log1p(-y)


def _digits(family, eta):
    return 50 if family.positive_eta else 50 + int(0.5 * abs(eta))  # enough to see e^-|eta| beside 1


def derivatives(family, eta, y, log_phi):
    """(l, s, w, a, c) as mpmath numbers, by differences in enough digits."""
    with mp.workdps(_digits(family, eta)):

        def density(x):
            return log_density(family, x, y, log_phi)

        signs = enumerate((1, 1, -1, -1, -1))
        return [sign * mp.diff(density, mp.mpf(eta), k) for k, sign in signs]


def dispersion_derivatives(family, eta, y, log_phi):
    """d/d log_phi of (l, s, w)."""
    with mp.workdps(_digits(family, eta)):

        def density(x, p):
            return log_density(family, x, y, p)

        at = (mp.mpf(eta), mp.mpf(log_phi))
        return [sign * mp.diff(density, at, (k, 1)) for k, sign in enumerate((1, 1, -1))]
