"""Random models of extreme scales: nothing but answers and the package's own errors, and no optimum that is beaten.

    python -m bench.search_fuzz --models 2000 --check 4

draws families, links, factors, effects, scales of columns, responses, offsets and weights, fits each by Laplace's
approximation, and reports every exception that is not the package's own. Of every `check`-th converged fit an
independent objective, dense linear algebra on the host, is maximised by scipy from several starts: the value at the
fit's parameters must be the same, and no start may end more than 1e-6 higher.

Data are small and of a few shapes, so that few programs are compiled.
"""

import argparse
import collections
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize
from scipy.special import digamma, expit, gammaln, log_ndtr, xlogy

import jaxglmm as jg
from jaxglmm.errors import ConvergenceError, DataError, FormulaError


ROWS = 60
# Groups of rows: alike, one of most rows beside single ones, pairs.
SIZES = {"even": [5] * 12, "ruled": [36] + [1] * 24, "pairs": [2] * 30}
EFFECTS = {
    "none": (), "one": ("(1 | g)",), "slope": ("(1 + x | g)",), "apart": ("(1 + x || g)",),
    "crossed": ("(1 | g)", "(1 | h)"), "nested": ("(1 | k)", "(1 | g)"), "mixed": ("(1 + x | g)", "(1 | h)"),
}  # fmt: skip
# With native kernels, and without: these compile a program for each shape, and are drawn less often and of one shape.
NATIVE = (
    ("binomial", "logit"), ("binomial", "probit"), ("binomial", "cloglog"), ("poisson", "log"),
    ("negativebinomial", "log"), ("gamma", "log"),
)  # fmt: skip
COMPILED = (("poisson", "sqrt"), ("gamma", "inverse"), ("beta", "logit"))
_CLASSES = {
    "binomial": jg.Binomial, "poisson": jg.Poisson, "negativebinomial": jg.NegativeBinomial, "gamma": jg.Gamma,
    "beta": jg.Beta,
}  # fmt: skip
BEATEN = 1e-6


@dataclass
class Model:
    """A drawn model: its data, and how they are fitted."""

    seed: int
    family: str
    link: str
    effects: str
    data: dict
    weighted: bool
    shifted: bool
    told: dict = field(default_factory=dict)

    @property
    def formula(self) -> str:
        return " + ".join(["y ~ x", *EFFECTS[self.effects], *(["offset(o)"] if self.shifted else [])])

    def fit(self, **options):
        family = _CLASSES[self.family](link=self.link)
        weights = "w" if self.weighted else None
        return jg.fit(self.formula, self.data, family=family, weights=weights, **options)


def draw(seed: int) -> Model:
    """The model of a seed."""
    rng = np.random.default_rng(seed)
    native = rng.random() < 0.9
    families = NATIVE if native else COMPILED
    family, link = families[rng.integers(len(families))]
    effects = rng.choice(list(EFFECTS), p=[0.04, 0.32, 0.2, 0.1, 0.14, 0.1, 0.1])
    sizes = rng.choice(list(SIZES)) if native else "even"
    g = np.repeat(np.arange(len(SIZES[sizes])), SIZES[sizes])
    h = rng.permutation(ROWS) % 6
    x = rng.choice(["normal", "binary", "skewed"])
    x = {
        "normal": rng.normal(size=ROWS),
        "binary": rng.integers(0, 2, ROWS) * 1.0,
        "skewed": rng.gamma(0.3, size=ROWS),
    }[x]
    sd, scale = rng.choice([0.0, 0.3, 1.0, 3.0, 8.0]), 10 ** rng.uniform(-6, 6)
    positive = link in ("sqrt", "inverse")
    noise = rng.normal(size=(3, ROWS))
    eta = sd * noise[0][g] + rng.normal() * x + sd * noise[1][h] * (effects in ("crossed", "mixed"))
    if effects in ("slope", "apart", "mixed"):
        eta = eta + sd * noise[2][g] * x
    level = {"binomial": rng.normal(0, 2), "beta": rng.normal(), "gamma": rng.uniform(-15, 15)}.get(
        family, rng.choice([-3, 0, 3, 8])
    )
    eta = np.clip(eta + level, -30, 20)
    shifted = not positive and rng.random() < 0.3
    offset = rng.choice([1.0, 10.0, 300.0]) * rng.normal(size=ROWS) if shifted else np.zeros(ROWS)
    weighted = rng.random() < 0.3
    weights = 10 ** rng.uniform(-4, 4, ROWS) if weighted else np.ones(ROWS)
    mean = {"sqrt": lambda v: np.square(np.abs(v) + 0.1), "inverse": lambda v: 1 / (np.abs(v) + 0.1)}.get(link, np.exp)(
        eta
    )
    if family == "binomial":
        weights = np.ceil(np.minimum(weights, 1e4))
        y = rng.binomial(weights.astype(int), expit(eta)) / weights
    elif family == "beta":
        p, phi = np.clip(expit(eta), 1e-3, 1 - 1e-3), 10 ** rng.uniform(-0.5, 3)
        y = np.clip(rng.beta(p * phi, (1 - p) * phi), 1e-9, 1 - 1e-9)
    elif family == "gamma":
        shape = 10 ** rng.uniform(-0.5, 3)
        y = np.maximum(mean * rng.gamma(shape, 1 / shape, ROWS), 1e-290)
    else:
        over = rng.random() < 0.5
        y = rng.poisson(np.minimum(mean * (rng.gamma(0.5, 2, ROWS) if over else 1.0), 1e15)) * 1.0
    data = {
        "y": y,
        "x": scale * (x + rng.choice([0.0, 0.0, 100.0])),
        "g": g,
        "h": h,
        "k": g // 4,
        "w": weights,
        "o": offset,
    }
    told = {"sizes": str(sizes), "sd": float(sd), "scale": float(scale), "level": float(level)}
    return Model(seed, family, link, str(effects), data, bool(weighted), bool(shifted), told)


class Dense:
    """Laplace's approximation by dense linear algebra, written from the families' densities and nothing else."""

    def __init__(self, model: Model):
        d = model.data
        self.family, self.link, self.y = model.family, model.link, d["y"]
        n = self.n = len(self.y)
        self.weights, self.offset = d.get("w", np.ones(n)), d.get("o", np.zeros(n))
        self.X = np.column_stack([np.ones(n), d["x"]])
        self.blocks = []  # (columns of the effects, codes) a term
        for term in EFFECTS[model.effects]:
            codes = np.unique(d[term[-2]], return_inverse=True)[1]
            columns = [np.ones(n)] + ([d["x"]] if "x" in term else [])
            self.blocks += [(c[None], codes) for c in columns] if "||" in term else [(np.array(columns), codes)]
        self.u = None
        self.constant = self._constant()

    def _constant(self) -> float:
        y, w = self.y, self.weights
        if self.family == "binomial":
            return float(np.sum(gammaln(w + 1) - gammaln(w * y + 1) - gammaln(w * (1 - y) + 1)))
        return -float(np.sum(w * gammaln(y + 1))) if self.family in ("poisson", "negativebinomial") else 0.0

    def rows(self, eta, phi) -> float:
        """Sum of the log-densities, without the constant."""
        y, w = self.y, self.weights
        if self.family == "binomial":
            if self.link == "logit":
                l = y * eta - np.logaddexp(0, eta)
            elif self.link == "probit":
                l = y * log_ndtr(eta) + (1 - y) * log_ndtr(-eta)
            else:
                mu = np.exp(eta)
                l = np.where(eta < -40, y * eta, xlogy(y, -np.expm1(-mu))) - (1 - y) * mu
        elif self.family == "poisson":
            l = y * eta - np.exp(eta) if self.link == "log" else 2 * xlogy(y, eta) - eta * eta
        elif self.family == "negativebinomial":
            mu, more = np.exp(eta), eta - np.log(phi)
            l = gammaln(y + phi) - gammaln(phi) + y * (more - np.logaddexp(0, more)) - phi * np.logaddexp(0, more)
            if phi > 1e8:
                l = y * eta - (y + phi) * np.log1p(mu / phi) + y * (y - 1) / (2 * phi)
        elif self.family == "gamma":
            log_mu = eta if self.link == "log" else -np.log(eta)
            l = phi * np.log(phi) - gammaln(phi) + (phi - 1) * np.log(y) - phi * (y * np.exp(-log_mu) + log_mu)
        else:
            mu = expit(eta)
            l = gammaln(phi) - gammaln(mu * phi) - gammaln((1 - mu) * phi)
            l = l + (mu * phi - 1) * np.log(y) + ((1 - mu) * phi - 1) * np.log1p(-y)
        return float(np.sum(w * l))

    def score(self, eta, phi):
        """Derivative in eta of each row; of complex eta too, for its own derivative. Nothing overflows."""
        y, w = self.y, self.weights
        eta = np.clip(np.real(eta), -690, 690) + (1j * np.imag(eta) if np.iscomplexobj(eta) else 0)
        if self.family == "binomial":
            if self.link == "logit":
                return w * (y - 1 / (1 + np.exp(-eta)))
            if self.link == "probit":
                log_phi = -0.5 * eta * eta - 0.5 * np.log(2 * np.pi)
                return w * (y * np.exp(log_phi - log_ndtr(eta)) - (1 - y) * np.exp(log_phi - log_ndtr(-eta)))
            mu, rare = np.exp(eta), np.exp(np.where(np.real(eta) > 6, 6 + 0 * eta, eta))  # e^-403 of what it is not
            return w * (y * rare / np.expm1(rare) - (1 - y) * mu)
        if self.family == "poisson":
            return w * (y - np.exp(eta)) if self.link == "log" else w * 2 * (y / eta - eta)
        if self.family == "negativebinomial":
            mu = np.exp(eta)
            return w * (y - mu) / (1 + mu / phi)
        if self.family == "gamma":
            return w * phi * (y * np.exp(-eta) - 1 if self.link == "log" else 1 / eta - y)
        mu = 1 / (1 + np.exp(-eta))
        return w * phi * mu * (1 - mu) * (np.log(y) - np.log1p(-y) - digamma(mu * phi) + digamma((1 - mu) * phi))

    def value(self, beta, factors, phi) -> float:
        """The log-likelihood at beta (2,), one Lambda a block and the dispersion; -inf where there is none."""
        fixed, V = self.offset + self.X @ beta, []
        for (z, codes), L in zip(self.blocks, factors, strict=True):
            v = L.T @ z
            part = np.zeros((self.n, codes.max() + 1, len(v)))
            part[np.arange(self.n), codes] = v.T
            V.append(part.reshape(self.n, -1))
        V = np.concatenate(V, 1) if V else np.zeros((self.n, 0))
        starts = (
            [np.zeros(V.shape[1])] if self.u is None or len(self.u) != V.shape[1] else [self.u, np.zeros(V.shape[1])]
        )
        with np.errstate(all="ignore"):
            for start in starts:
                found = self._mode(fixed, V, phi, start)
                if found is not None:
                    return found
        return -np.inf

    def _mode(self, fixed, V, phi, u):
        eye = np.eye(len(u))
        joint = lambda u: self.rows(fixed + V @ u, phi) - 0.5 * u @ u
        f = joint(u)
        if not np.isfinite(f):
            return None
        for _ in range(2000):  # down a tail of exp(700) steps are of one
            eta = fixed + V @ u
            s, w = self.score(eta, phi), -np.imag(self.score(eta + 1e-30j, phi)) / 1e-30
            g, H = V.T @ s - u, eye + V.T @ (w[:, None] * V)
            if not (np.isfinite(g).all() and np.isfinite(H).all()):
                return None
            try:
                L = np.linalg.cholesky(H)
            except np.linalg.LinAlgError:
                try:
                    L = np.linalg.cholesky(eye + V.T @ (np.maximum(w, 0)[:, None] * V) + 1e-8 * np.diag(np.diag(H)))
                except np.linalg.LinAlgError:
                    return None
            step = np.linalg.solve(L.T, np.linalg.solve(L, g)) if len(u) else u
            shrink, gain, longest = 1.0, step @ g, np.max(np.abs(step), initial=0.0)
            while not (joint(u + shrink * step) >= f - 1e-12 * (1 + abs(f))):
                shrink *= 0.5
                if shrink * longest < 1e-10:
                    break
            ended = shrink * longest < 1e-10 and shrink < 1  # the mode up to rounding, or none
            if ended and gain > 1e-9 * (1 + abs(f)):
                return None
            u = u if ended else u + shrink * step
            f = joint(u)
            if ended or gain < 1e-16 * (1 + abs(f)):
                self.u = u
                w = -np.imag(self.score(fixed + V @ u + 1e-30j, phi)) / 1e-30
                sign, log_det = np.linalg.slogdet(eye + V.T @ (w[:, None] * V))
                return float(f - 0.5 * log_det + self.constant) if sign > 0 else None
        return None


def compare(model: Model, fit) -> tuple[float, float]:
    """By how much the dense value at the fit's parameters is off, and by how much the best other start is higher."""
    dense = Dense(model)
    sds = [np.atleast_2d(L) for term in fit.state.column_factors for L in _blocks(term, model)]
    order = [i for _, i in sorted((b, i) for i, b in enumerate(_order(model)))]
    factors = [sds[i] for i in order] if len(sds) == len(order) else sds
    phi = fit.state.estimate.dispersion or 1.0
    beta = np.array(list(fit.fixef.values()))
    at_fit = dense.value(beta, factors, phi)
    # A column of the effects and of X in units in which a step of one matters.
    unit = np.array([1.0, 1 / max(np.std(model.data["x"]), 1e-300)])
    middle = np.mean(model.data["x"]) / max(np.std(model.data["x"]), 1e-300)
    entries = [np.tril_indices(len(L)) for L in factors]
    scale = [
        unit[: len(L)] if len(L) > 1 or np.ptp(z) == 0 else unit[1:]
        for L, (z, _) in zip(factors, dense.blocks, strict=True)
    ]
    shift = np.array([[1.0, -middle], [0.0, 1.0]])
    centre = [shift if len(L) == 2 else np.eye(1) for L in factors]
    plain = [np.linalg.solve(c, L / s[:, None]) for L, s, c in zip(factors, scale, centre, strict=True)]
    has_phi = fit.state.estimate.dispersion is not None

    def split(v):
        b = shift @ v[:2] * unit
        out, k = [], 2
        for e, s, c in zip(entries, scale, centre, strict=True):
            L = np.zeros((len(s),) * 2)
            L[e] = v[k : k + len(e[0])]
            out.append((c @ L) * s[:, None])
            k += len(e[0])
        return b, out, np.exp(np.clip(v[-1], -100, 100)) if has_phi else 1.0

    def loss(v):
        value = dense.value(*split(v))
        return -value if np.isfinite(value) else 1e10 + 1e3 * float(v @ v)

    def vector(L):
        tail = [np.log(phi)] if has_phi else []
        return np.concatenate(
            [np.linalg.solve(shift, beta / unit), *(M[e] for M, e in zip(L, entries, strict=True)), tail]
        )

    base, starts = vector([np.tril(M) for M in plain]), []
    starts.append(base)
    for t in (0.1, 1.0, 4.0):
        starts += [
            vector([np.where(np.eye(len(M)) > 0, t, 0.0) if k == j else np.tril(M) for k, M in enumerate(plain)])
            for j in range(len(plain))
        ]
    for j, M in enumerate(plain):
        if len(M) == 2:
            turned = np.array([[M[0, 0], 0], [-M[1, 0], max(abs(M[1, 1]), 0.3 * abs(M[1, 0]))]])
            starts.append(vector([turned if k == j else np.tril(N) for k, N in enumerate(plain)]))
    best = -np.inf
    for start in starts:
        dense.u = None
        found = minimize(loss, start, method="BFGS", options={"maxiter": 200, "gtol": 1e-6})
        best = max(best, -float(found.fun))
    return at_fit - fit.loglik, best - max(fit.loglik, at_fit if np.isfinite(at_fit) else -np.inf)


def _order(model):
    return list(range(sum(2 if "||" in term else 1 for term in EFFECTS[model.effects])))


def _blocks(factor, model):
    factor = np.asarray(factor)
    return [factor[:1, :1], factor[1:, 1:]] if model.effects == "apart" else [factor]


def run(seeds, check: int = 0, tell=print) -> collections.Counter:
    """Fit the models of the seeds; counts of what came out. Faults are told with their seeds."""
    counts = collections.Counter()
    for seed in seeds:
        model = draw(seed)
        about = f"seed {seed}: {model.family}({model.link}) {model.formula} {model.told}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                fit = model.fit(method="laplace")
            except (ConvergenceError, DataError, FormulaError) as error:
                counts[type(error).__name__] += 1
                if type(error) is ConvergenceError:
                    tell(f"NOT CONVERGED {about}: {str(error)[:160]}")
                continue
            except Exception as error:  # what must not be
                counts["fault"] += 1
                tell(f"FAULT {about}: {error!r}")
                continue
            counts["converged"] += 1
            if check and seed % check == 0:
                off, higher = compare(model, fit)
                counts["compared"] += 1
                size = BEATEN * (1 + 1e-6 * abs(fit.loglik))
                if not abs(off) < 10 * size:
                    counts["value off"] += 1
                    tell(f"OFF by {off:.3g} {about} loglik {fit.loglik:.6f}")
                elif higher > size:
                    counts["beaten"] += 1
                    tell(f"BEATEN by {higher:.3g} {about} loglik {fit.loglik:.6f} {fit.varcorr} {fit.dispersion}")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--check", type=int, default=4, help="compare every so many with the dense optimiser; 0: none")
    options = parser.parse_args()
    began = time.perf_counter()
    counts = run(range(options.first, options.first + options.models), options.check)
    print(f"{options.models} models in {time.perf_counter() - began:.0f} s: {dict(counts)}")


if __name__ == "__main__":
    main()
