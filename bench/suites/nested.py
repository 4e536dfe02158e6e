"""Members inside hospitals beside members alone: what a second, nested factor costs."""

from bench.simulate import members
from bench.suites import Case


TITLE = "nested logistic regression, members of 3 rows in the mean in up to 1,000 hospitals, 20 columns, Laplace"
SIZES = (3_000, 100_000)
PEERS = ("jaxglmm", "gpboost", "glmm", "glmmTMB", "glmer")


def cases(size, seed=0):
    """The same rows, of hospitals that differ, without the hospitals and with them, and by quadrature over members."""
    arrays = members(size, seed=seed, parents=min(1_000, size // 50))
    alone = {name: v for name, v in arrays.items() if name != "h"}
    laplace, nodes = ({"family": "binomial", "nodes": k} for k in (1, 9))
    yield Case(f"{size:,} members alone", size, "mixed", alone, laplace, series="alone")
    yield Case(f"{size:,} members in hospitals", size, "mixed", dict(arrays), laplace, series="in hospitals")
    name = f"{size:,} members in hospitals, 9 nodes"
    yield Case(name, size, "mixed", dict(arrays), nodes, better=None, series="in hospitals, 9 nodes")
