"""Two nested Gaussian factors of 6 and 19 levels whose likelihood has a maximum at zero and a higher one further on."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

import jaxglmm as jg


def nested() -> pd.DataFrame:
    rng = np.random.default_rng(51)
    children = rng.multinomial(13, np.ones(6) / 6) + 1
    h, g = np.repeat(np.arange(6), children), np.repeat(np.arange(19), rng.choice([1, 1, 2, 3, 12], 19))
    n = len(g)
    y = rng.normal(size=n) + rng.normal(size=6)[h[g]] * rng.choice([0, 0.5, 2])
    y = y + rng.normal(size=19)[g] * rng.choice([0, 0.5, 2])
    return pd.DataFrame({"y": y, "x": rng.normal(size=n) + rng.normal(size=6)[h[g]], "g": g, "h": h[g]})


def criterion(data, reml):
    """Minus the profiled (restricted) log-likelihood of log relative sds, dense."""
    n, X = len(data), np.column_stack([np.ones(len(data)), data["x"]])
    same = [np.equal.outer(data[name].to_numpy(), data[name].to_numpy()) for name in "hg"]

    def negative(t):
        V = np.eye(n) + sum(np.exp(2 * a) * K for a, K in zip(t, same, strict=True))
        W = np.linalg.solve(V, X)
        A = X.T @ W
        r = data["y"].to_numpy() - X @ np.linalg.solve(A, W.T @ data["y"])
        rss, N = r @ np.linalg.solve(V, r), n - 2 * reml
        log_det = np.linalg.slogdet(V)[1] + reml * np.linalg.slogdet(A)[1]
        return 0.5 * (N * np.log(2 * np.pi * rss / N) + N + log_det)

    return negative


@pytest.mark.parametrize("reml", [True, False])
def test_a_zero_does_not_hide_a_higher_maximum(reml):
    data, best = nested(), np.inf
    negative = criterion(data, reml)
    for start in itertools.product([-6.0, -1.0, 0.0], repeat=2):
        best = min(
            best, minimize(negative, start, method="L-BFGS-B", bounds=[(-12, 5)] * 2, options={"ftol": 1e-15}).fun
        )
    at_zero = minimize(lambda t: negative([t[0], -12.0]), [-1.0], method="BFGS").fun
    assert at_zero - best > 0.03
    fit = jg.fit("y ~ x + (1 | h) + (1 | g)", data, reml=reml)
    assert fit.loglik == pytest.approx(-best, abs=1e-6)
    assert fit.varcorr[1]["sd"] > 0.5


def profiled_along(y, X, g, reml, relative):
    """The profiled criterion of one factor at relative sds (K,), by sums over the groups."""
    A, n, p = np.column_stack([X, y]), len(y), X.shape[1]
    sums = np.zeros((g.max() + 1, p + 1))
    np.add.at(sums, g, A)
    more = relative[:, None] ** 2 / (1 + np.bincount(g) * relative[:, None] ** 2)
    M = A.T @ A - np.einsum("kg,gi,gj->kij", more, sums, sums)
    XX, Xy, N = M[:, :p, :p], M[:, :p, p], n - p * reml
    rss = M[:, p, p] - np.einsum("ki,ki->k", Xy, np.linalg.solve(XX, Xy[..., None])[..., 0])
    log_det = np.log1p(np.bincount(g) * relative[:, None] ** 2).sum(1) + reml * np.linalg.slogdet(XX)[1]
    return -0.5 * (N * np.log(2 * np.pi * rss / N) + N + log_det)


@pytest.mark.parametrize("reml", [True, False])
def test_a_zero_does_not_hide_a_higher_maximum_in_many_fits(reml):
    """One group of 30 rows beside seven of 1 to 4: zero is a maximum of many of 400 responses and not the highest."""
    rng, n = np.random.default_rng(5), 400
    g = np.repeat(np.arange(8), [30, 4, 3, 2, 2, 1, 1, 1])
    x, b = rng.normal(size=len(g)), rng.normal(size=(8, n)) * rng.choice([0, 0.3, 0.6], n)
    X = np.column_stack([np.ones(len(g)), x])
    Y = -0.5 + 0.5 * x[:, None] + b[g] + rng.normal(size=(len(g), n))
    names = [f"y{i}" for i in range(n)]
    data = dict(zip(names, Y.T, strict=True)) | {"x": x, "g": g}
    relative = np.append(0.0, np.logspace(-3, 1.5, 91))
    values = np.array([profiled_along(y, X, g, reml, relative) for y in Y.T])
    fits = jg.fit_many("~ x + (1 | g)", data, responses=names, reml=reml)
    assert (fits.loglik >= values.max(1) - 1e-8).all()
    false = np.flatnonzero((values[:, 1] < values[:, 0]) & (values.max(1) > values[:, 0] + 0.02))[:4]
    assert len(false) >= 2
    table = pd.DataFrame({"y": Y[:, false].T.ravel(), "part": np.repeat(false, len(g))})
    table["x"], table["g"] = np.tile(x, len(false)), np.tile(g, len(false))
    apart = jg.fit_each("y ~ x + (1 | g)", table, by="part", reml=reml)
    for k, i in enumerate(false):
        one = jg.fit(f"y{i} ~ x + (1 | g)", data, reml=reml)
        assert fits.loglik[i] == pytest.approx(one.loglik, abs=1e-8) and one.varcorr[0]["sd"] > 0.1
        assert apart.loglik[k] == pytest.approx(one.loglik, abs=1e-8)
