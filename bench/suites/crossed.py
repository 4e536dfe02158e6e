"""Logistic regression with two crossed grouping factors: the grid on which exact algebra ends."""

import numpy as np

from bench.suites import Case


TITLE = "crossed logistic regression, two balanced factors of m/2 levels, 10 m rows, 5 columns, Laplace"
SIZES = (2_000, 10_000)
PEERS = ("jaxglmm", "gpboost", "glmmTMB")


def grid(effects: int, seed: int = 0, each: int = 20) -> dict[str, np.ndarray]:
    """`effects` levels of two factors, each level in so many rows; coefficients and sds are 0.5."""
    rng = np.random.default_rng(seed)
    levels, rows = effects // 2, each * (effects // 2)
    g = np.tile(np.arange(levels), rows // levels)
    h = np.concatenate([rng.permutation(levels) for _ in range(rows // levels)])
    X = rng.standard_normal((6, rows))
    X[0] = 1.0
    eta = 0.5 * X[1:].sum(0) + 0.5 * rng.standard_normal(levels)[g] + 0.5 * rng.standard_normal(levels)[h]
    return {"y": (rng.random(rows) < 1 / (1 + np.exp(-eta))).astype(float), "X": X, "g": g, "h": h}


def cases(size, seed=0):
    """Exactly, where that is possible, and by iteration; peers have one way, which for GPBoost is stochastic too."""
    arrays, spec = grid(size, seed), {"family": "binomial", "nodes": 1}
    for solver in ("krylov", *(["schur"] if size <= 20_000 else [])):
        name, asked = f"{size:,} effects, {solver}", spec | {"solver": solver}
        yield Case(name, size, "mixed", dict(arrays), asked, better=None, series=solver)
