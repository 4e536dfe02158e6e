"""What a fit is made of and what is saved of it: estimates, posteriors and the formula, but no training rows."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxglmm.formula.spec import ModelSpec
from jaxglmm.model.centring import factor_to_columns
from jaxglmm.model.covariance import Covariance, side_by_side
from jaxglmm.model.family import AbstractFamily
from jaxglmm.ops.measure import all_ones
from jaxglmm.optimise.estimate import Estimate, Posterior


@dataclass(frozen=True)
class FittedTerm:
    """One grouping factor: its name, labels of its levels (G,), names of its effects (S,), which of them covary.

    `basis` (S, S) takes effects of centred columns, which estimates and posteriors are of, to those of the columns as
    they were written, which tables show: b = basis b'; see `model.centring`.
    """

    group: str
    levels: np.ndarray
    names: tuple[str, ...]
    blocks: tuple[tuple[int, ...], ...]
    basis: np.ndarray


@dataclass(frozen=True)
class State:
    """A fit without its training rows.

    Attributes
    ----------
    spec : ModelSpec
    family : AbstractFamily
    estimate : Estimate
    posteriors : sequence of Posterior
        One a term; of a new fit worked out when first asked for.
    terms : tuple of FittedTerm
    n : int
        Rows that were used; of families whose weights are copies of a row, the copies, where they are whole numbers.
    n_dropped : int
        Rows left out for missing values.
    dropped_by : dict of str to int
    modelled : str or None
    native : str
        Kind of the caller's table.
    fingerprint : int
        Checksum of response and weights: two fits with the same number saw the same data.
    mean_response : float
        Weighted mean of y.
    effect_squares : tuple of (S, S)
        Mean over rows of z z' of each term, of the centred columns.

    Notes
    -----
    `estimate`, `posteriors`, `factor` and `covariances` are of effects of centred columns, as the rows that
    `ModelSpec.effect_matrix` and frames give; `column_covariances` are of the columns as they were written.
    """

    spec: ModelSpec
    family: AbstractFamily
    estimate: Estimate
    posteriors: Sequence[Posterior]
    terms: tuple[FittedTerm, ...]
    n: int
    n_dropped: int
    dropped_by: dict[str, int]
    modelled: str | None
    native: str
    fingerprint: int
    mean_response: float
    effect_squares: tuple[np.ndarray, ...]

    @property
    def log_dispersion(self) -> float:
        """Log of the dispersion; 0 where the family has none."""
        value = self.estimate.dispersion
        return 0.0 if value is None else float(np.log(value))

    @property
    def structure(self) -> Covariance:
        """Which effects covary, those of all terms side by side."""
        return Covariance.joined([Covariance(term.blocks) for term in self.terms])

    @property
    def factor(self) -> np.ndarray:
        """Lambda of all terms' effects side by side."""
        return side_by_side(self.estimate.factors)

    @property
    def covariances(self) -> tuple[np.ndarray, ...]:
        """Sigma (S, S) of each term's effects."""
        return tuple(factor @ factor.T for factor in self.estimate.factors)

    @property
    def column_factors(self) -> tuple[np.ndarray, ...]:
        """Lambda (S, S) of each term's effects, of the columns as they were written."""
        pairs = zip(self.terms, self.estimate.factors, strict=True)
        return tuple(factor_to_columns(term.basis, factor, Covariance(term.blocks)) for term, factor in pairs)

    @property
    def column_covariances(self) -> tuple[np.ndarray, ...]:
        """Sigma (S, S) of each term's effects, of the columns as they were written."""
        return tuple(factor @ factor.T for factor in self.column_factors)

    @property
    def basis(self) -> np.ndarray:
        """That of all terms' effects side by side."""
        return side_by_side([term.basis for term in self.terms])


def terms_of(spec: ModelSpec) -> tuple[FittedTerm, ...]:
    """The grouping factors as a formula's specification knows them."""
    return tuple(
        FittedTerm(term.grouping.name, term.grouping.labels, term.names, term.blocks, term.basis) for term in spec.terms
    )


def fingerprint(y, weights, before: int = 0) -> int:
    """Checksum of a response and its weights, behind that of earlier rows; weights of 1 are none."""
    total = zlib.crc32(np.ascontiguousarray(y), before)
    return total if all_ones(weights) else zlib.crc32(np.ascontiguousarray(weights), total)


def state_of(problem, estimate: Estimate, posteriors: Sequence[Posterior]) -> State:
    """Gather what is kept of a fit."""
    frame = problem.frame
    copies = frame.weights if "copies" in problem.family.weight_is and not all_ones(frame.weights) else None
    return State(
        spec=frame.spec,
        family=problem.family,
        estimate=estimate,
        posteriors=posteriors,
        terms=terms_of(frame.spec),
        n=_rows(frame, copies),
        n_dropped=int(frame.n_dropped),
        dropped_by={name: int(count) for name, count in frame.dropped_by.items()},
        modelled=frame.modelled,
        native=frame.native,
        fingerprint=fingerprint(frame.y, frame.weights),
        mean_response=float(np.average(frame.y, weights=None if all_ones(frame.weights) else frame.weights)),
        effect_squares=tuple(
            term.z @ term.z.T / term.z.shape[1] if copies is None else (copies * term.z) @ term.z.T / copies.sum()
            for term in frame.terms
        ),
    )


def _rows(frame, copies) -> int:
    if copies is None or (copies != np.floor(copies)).any() or copies.sum() > 2**53:
        return len(frame.y)
    return int(copies.sum())
