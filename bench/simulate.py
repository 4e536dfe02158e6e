"""Data sets that several suites share, as columns: (p, n) arrays whose rows are the columns of a table."""

import numpy as np


_ROWS = 1 << 20  # of a row group


def members(
    groups: int, *, columns: int = 20, tau: float = 0.8, family: str = "binomial", slope: float = 0.0, seed: int = 0,
    shuffled: bool = True, matter: int = 0, parents: int = 0, parent_sd: float = 0.5,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Rows of many small groups.

    Group sizes are 1 + NegativeBinomial(2, 1/2), 3 in the mean; the columns are standard normal, the first constant;
    coefficients 0.3 N(0, 1) with intercept -1; a random intercept of standard deviation `tau` and, where `slope` is
    not 0, an independent slope of that standard deviation on the second column. With `matter`, only so many columns
    beside the constant matter, with coefficients of sizes from 0.1 to 0.5 and alternating signs. With `parents` each
    group is in one of so many, drawn at random, which have a random intercept of standard deviation `parent_sd`.

    Returns
    -------
    dict
        `y` (n,), `X` (columns, n), `g` (n,) int64 identifiers that are neither dense nor sorted; with parents `h` (n,),
        which are dense.
    """
    rng = np.random.default_rng(seed)
    counts = 1 + rng.negative_binomial(2, 0.5, size=groups)
    n = int(counts.sum())
    codes = np.repeat(np.arange(groups), counts)
    X = rng.standard_normal((columns, n))
    X[0] = 1.0
    beta = 0.3 * rng.standard_normal(columns)
    beta[0] = -1.0
    if matter:
        beta[1:] = 0.0
        beta[1 : matter + 1] = np.linspace(0.1, 0.5, matter) * np.where(np.arange(matter) % 2, 1.0, -1.0)
    eta = beta @ X + tau * rng.standard_normal(groups)[codes]
    if slope:
        eta += slope * rng.standard_normal(groups)[codes] * X[1]
    out = {}
    if parents:
        out["h"] = rng.integers(0, parents, groups)[codes]
        eta += parent_sd * rng.standard_normal(parents)[out["h"]]
    y = _response(rng, family, eta)
    identifiers = 1_000_003 + 7 * codes.astype(np.int64)
    if shuffled:
        order = rng.permutation(n)
        y, X, identifiers = y[order], np.ascontiguousarray(X[:, order]), identifiers[order]
        out = {name: v[order] for name, v in out.items()}
    return {"y": y, "X": X, "g": identifiers, **out}


def write_members(path, groups: int, *, columns: int = 20, tau: float = 0.8, seed: int = 0) -> str:
    """The rows of `members`, shuffled, as a Parquet file: float32, integer identifiers, written some rows at a time.

    Returns
    -------
    str
        The formula of the model that they were drawn from.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(groups, dtype=np.int32), 1 + rng.negative_binomial(2, 0.5, size=groups))
    rng.shuffle(codes)
    effects = tau * rng.standard_normal(groups)
    beta = 0.3 * rng.standard_normal(columns)
    beta[0] = -1.0
    names = [f"x{j}" for j in range(1, columns)]
    numbers = [(name, pa.float32()) for name in names]
    schema = pa.schema([("y", pa.float32()), ("g", pa.int64()), *numbers])
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") as file:
        for begin in range(0, len(codes), _ROWS):
            rows = codes[begin : begin + _ROWS]
            X = rng.standard_normal((columns - 1, len(rows)), np.float32)
            y = _response(rng, "binomial", beta[0] + beta[1:] @ X + effects[rows]).astype(np.float32)
            file.write_table(pa.table([y, 1_000_003 + 7 * rows.astype(np.int64), *X], schema=schema))
    return f"y ~ {' + '.join(names)} + (1 | g)"


def two_factors(
    levels: tuple[int, int], rows: int, *, columns: int = 6, family: str = "gaussian", nested: bool = False,
    sds: tuple[float, float] = (0.5, 0.5), seed: int = 0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Rows of two grouping factors, crossed at random or the first nested in the second.

    The columns are standard normal with coefficients 0.5, the first constant with coefficient 0; a random intercept of
    each factor.

    Returns
    -------
    dict
        As `members`, with identifiers `h` (n,) of the second factor beside `g` of the first.
    """
    rng = np.random.default_rng(seed)
    first = np.append(np.arange(levels[0]), rng.integers(0, levels[0], rows - levels[0]))
    second = first % levels[1] if nested else rng.permutation(np.arange(rows) % levels[1])
    X = rng.standard_normal((columns, rows))
    X[0] = 1.0
    eta = 0.5 * X[1:].sum(0)
    for codes, count, sd in zip((first, second), levels, sds, strict=True):
        eta += sd * rng.standard_normal(count)[codes]
    return {"y": _response(rng, family, eta), "X": X, "g": 1_000_003 + 7 * first, "h": 2_000_003 + 3 * second}


def _response(rng, family, eta):
    """Draws with the family's own link, a log link for positive responses; dispersions are 2, and 1 for the normal."""
    if family == "binomial":
        return (rng.random(len(eta)) < 1 / (1 + np.exp(-eta))).astype(float)
    if family == "gaussian":
        return eta + rng.standard_normal(len(eta))
    mu = np.exp(np.minimum(eta, 10))
    if family == "poisson":
        return rng.poisson(mu).astype(float)
    if family == "negativebinomial":
        return rng.poisson(mu * rng.gamma(2.0, 0.5, len(mu))).astype(float)
    if family == "gamma":
        return rng.gamma(2.0, mu / 2.0)
    raise ValueError(f"there is no simulation for the family {family!r}")
