"""What a solver for the modes of several factors is."""

import abc
from typing import ClassVar

import equinox as eqx
import numpy as np

from jaxglmm.design.rows import RowDesign
from jaxglmm.modes.blocks import Blocks


class AbstractFactorisation(abc.ABC):
    """H = I + Lambda'Z'WZ Lambda at one point, in a form that solves with it.

    Attributes
    ----------
    log_det : float
    log_det_se : float
        Monte-Carlo standard error of `log_det`; 0 where it is exact.
    pattern : Blocks
        The entries of H^-1 where levels meet in the data; found when first asked for.
    """

    log_det: float
    log_det_se: float = 0.0
    pattern: Blocks

    @property
    def diagonal(self) -> list[np.ndarray]:
        """Diagonal blocks of H^-1 for reports, which may take longer than those of `pattern`."""
        return self.pattern.diagonal

    @abc.abstractmethod
    def solve(self, b: np.ndarray) -> np.ndarray:
        """H^-1 b for b (q, k)."""


class AbstractSolver(eqx.Module):
    """How systems with H are solved.

    Attributes
    ----------
    name : str
    reason : str
        Why it was chosen.
    exact : bool
        Whether log-determinants and entries of the inverse are exact, and not estimated.
    """

    name: eqx.AbstractClassVar[str]
    exact: ClassVar[bool] = True
    reason: eqx.AbstractVar[str]

    @property
    def cheap(self) -> "AbstractSolver":
        """A solver that finds the same solutions, where factorising costs many times what a product with H does."""
        return self

    @property
    def approximate(self) -> "AbstractSolver":
        """A solver of like answers, some digits of them, at less cost."""
        return self

    @property
    def rough(self) -> "AbstractSolver":
        """A solver good enough for a step that is followed by others."""
        return self.cheap

    @abc.abstractmethod
    def factorise(self, design: RowDesign, H: Blocks) -> AbstractFactorisation:
        """Prepare H for solving.

        Raises
        ------
        numpy.linalg.LinAlgError
            Where H is not positive definite.
        """
