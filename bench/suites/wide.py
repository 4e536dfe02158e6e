"""A lasso path over 5,000 columns beside glmnet's: as a sparse matrix, and, of fewer rows, as a dense one."""

from typing import Any

import numpy as np

from bench.suites import Case


TITLE = (
    "lasso path over 5,000 columns, of which 200 matter, tau estimated at each lambda; glmnet's has no random effect"
)
SIZES = (3_000, 30_000)
PEERS = ("jaxglmm", "glmnet")
_COLUMNS, _MATTER, _SHARE, _TAU = 5_000, 200, 0.02, 0.8
_MOST_DENSE = 1e8  # numbers


def cases(size, seed=0):
    """Groups of three rows in the mean; one in fifty entries of X is not zero."""
    from scipy import sparse

    rng = np.random.default_rng(seed)
    counts = 1 + rng.negative_binomial(2, 0.5, size=size)
    g = np.repeat(np.arange(size), counts)
    X: Any = sparse.random(len(g), _COLUMNS, density=_SHARE, format="csc", rng=rng, data_rvs=rng.standard_normal)
    beta = np.zeros(_COLUMNS)
    beta[rng.choice(_COLUMNS, _MATTER, replace=False)] = rng.choice([-1, 1], _MATTER) * rng.uniform(0.5, 1.5, _MATTER)
    eta = X @ beta + _TAU * rng.standard_normal(size)[g]
    y = (rng.random(len(g)) < 1 / (1 + np.exp(-eta))) * 1.0
    spec = {"family": "binomial", "lambdas": 30, "glmnet_lambdas": 30, "ratio": 0.3, "columns": _COLUMNS}
    stored = {"data": X.data, "indices": X.indices.astype(float), "indptr": X.indptr.astype(float)}
    rows = {"y": y, "g": g}
    yield Case(f"sparse, {size:,} groups", size, "wide", rows | stored, dict(spec), better=None, series="sparse")
    if len(g) * _COLUMNS < _MOST_DENSE:
        arrays = rows | {"wide": np.ascontiguousarray(X.toarray().T)}
        yield Case(f"dense, {size:,} groups", size, "wide", arrays, dict(spec), better=None, series="dense")
