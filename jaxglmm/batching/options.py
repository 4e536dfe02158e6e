"""What all fits of a batch have in common beside the design."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """As the arguments of `jaxglmm.fit`."""

    method: str = "auto"
    n_agq: int | None = None
    reml: bool = False
    tol: float = 1e-12
    max_iterations: int = 100
