"""Very many fits: strata, responses of one design, refits, bootstrap replicates."""

import numpy as np

from bench.suites import Case


TITLE = "very many fits of one model: in one batch, or one after the other"
SIZES = (500,)
PEERS = ("jaxglmm", "glmm", "glmer")


def cases(size, seed=0):
    """`size` fits each: small logistic ones, Gaussian refits of a small design, binary responses of a larger one."""
    rng = np.random.default_rng(seed)
    n, groups = 200, 20
    X = rng.standard_normal((3, size * n))
    X[0] = 1.0
    s, g = np.repeat(np.arange(size), n), rng.integers(0, groups, size * n)
    eta = -0.3 + 0.5 * X[1] - 0.4 * X[2] + (0.7 * rng.standard_normal((size, groups)))[s, g]
    arrays = {"y": _binary(rng, eta), "X": X, "g": g, "s": s}
    yield Case(f"{size:,} logistic fits of 200 rows, 20 groups", size, "strata", arrays, {"batch": "strata"})

    days, subject = np.tile(np.arange(10.0), 18), np.repeat(np.arange(18), 10)
    for slope in (False, True):
        effects = rng.standard_normal((2, size, 18)) * np.array([25.0, 6.0 * slope])[:, None, None]
        Y = 250 + 10 * days + effects[0][:, subject] + effects[1][:, subject] * days
        Y += 25 * rng.standard_normal(Y.shape)
        arrays = {"Y": np.ascontiguousarray(Y), "y": Y[0], "X": np.stack([np.ones(180), days]), "g": subject}
        spec = {"family": "gaussian", "slope": slope, "batch": "refits"}
        yield Case(f"{size:,} refits, {'slopes' if slope else 'intercepts'}", size, "refits", arrays, spec)

    few = max(size // 5, 2)
    X = rng.standard_normal((10, 5000))
    X[0] = 1.0
    member = np.repeat(np.arange(500), 10)
    eta = 0.3 * rng.standard_normal((few, 10)) @ X + rng.standard_normal((few, 500))[:, member]
    Y = np.ascontiguousarray(_binary(rng, eta))
    for way in ("together", "one by one"):
        arrays = {"Y": Y, "y": Y[0], "X": X, "g": member}
        yield Case(f"{few} responses of 5,000 rows {way}", size, "responses", arrays, {"batch": "", "way": way})

    eta = -0.5 + 0.4 * X[1, :2000] + 0.5 * rng.standard_normal(60)[member[:2000] % 60]
    arrays = {"y": _binary(rng, eta), "X": X[:2, :2000], "g": member[:2000] % 60}
    spec = {"batch": "bootstrap", "replicates": 20}
    yield Case("bootstrap, 20 replicates of 2,000 rows, 60 groups", size, "bootstrap", arrays, spec)


def _binary(rng, eta):
    return (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))) * 1.0
