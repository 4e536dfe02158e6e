"""Very many fits of one model, held as arrays; a full `Fit` is made of any of them when it is asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.fitted.fit import Fit
from jaxglmm.fitted.lanes import LaneEstimates
from jaxglmm.fitted.tables import native_table, text_column


class Fits:
    """The fits of `jaxglmm.fit_many` or `jaxglmm.fit_each`.

    `len(fits)` is their number; `fits[i]`, or `fits[label]` where labels are no numbers, is the full `Fit` of one, made
    on the spot.

    Attributes
    ----------
    by : str
        What tells the fits apart: "response", or the column that the data were split by.
    labels : (B,)
        Names of the responses, or values of that column.
    parameters : tuple of str
        Fixed effects, "sd[Intercept|g]", "cor[x,Intercept|g]", and the dispersion's name.
    estimate, se : (B, P)
        Estimates and standard errors, each on the parameter's own scale; NaN for fits that failed, and standard errors
        also for parameters on the boundary.
    loglik : (B,)
    singular : bool (B,)
        A variance is zero or a correlation is 1 in size.
    n, groups : int (B,)
        Rows and groups of each fit.
    n_agq : int (B,)
        Quadrature nodes per effect.
    gap, checked_gap, checked_move : (B,)
    checked_nodes : int (B,)
        What other nodes say of each fit, as in a single fit's `convergence`: NaN, and 0 nodes, where nothing is to be
        looked at.
    decrement : (B,)
        Newton decrements at the end.
    evaluations : int (B,)
    seconds : float
        What all fits took together.
    """

    def __init__(self, by: str, labels, parameters, estimates: LaneEstimates, native: str, make: Callable, seconds):
        self.by, self.labels, self.parameters = by, np.asarray(labels), tuple(parameters)
        self.seconds, self._native, self._make, self._reasons = seconds, native, make, estimates.reasons
        self.estimate, self.se, self.loglik = estimates.estimate, estimates.se, estimates.loglik
        self.singular, self.n, self.groups, self.n_agq = (
            estimates.singular, estimates.n, estimates.groups, estimates.n_agq,
        )  # fmt: skip
        self.decrement, self.evaluations = estimates.decrement, estimates.evaluations
        self.gap, self.checked_nodes = estimates.gap, estimates.checked_nodes
        self.checked_gap, self.checked_move = estimates.checked_gap, estimates.checked_move
        self._warnings = estimates.warnings

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def failed(self) -> dict[Any, str]:
        """{label: reason} of the fits that failed."""
        pairs = zip(self.labels.tolist(), self._reasons, strict=True)
        return {label: reason for label, reason in pairs if reason is not None}

    @property
    def dropped(self) -> dict[Any, tuple[str, ...]]:
        """{label: columns of factors that were left out} of the fits that have any, as `Fit.dropped`; their estimates
        are NaN."""
        left = np.isnan(self.estimate) & np.array([not name.startswith("cor[") for name in self.parameters])
        left[[reason is not None for reason in self._reasons]] = False
        return {
            self.labels[i : i + 1].tolist()[0]: tuple(self.parameters[j] for j in np.flatnonzero(left[i]))
            for i in np.flatnonzero(left.any(1))
        }

    @property
    def warnings(self) -> dict[Any, list[str]]:
        """{label: warnings} of the fits that have any: each is what the fit alone says in its `convergence`."""
        return {label: texts for label, texts in zip(self.labels.tolist(), self._warnings, strict=True) if texts}

    def __getitem__(self, which) -> Fit:
        i = self._place(which)
        if self._reasons[i] is not None:
            raise DataError(f"the fit of {self.by} {self.labels[i : i + 1].tolist()[0]!r} failed: {self._reasons[i]}")
        return self._make(i)

    def _place(self, which) -> int:
        if isinstance(which, int | np.integer):
            if not -len(self) <= which < len(self):
                raise IndexError(f"there are {len(self)} fits; found index {which}")
            return int(which) % len(self)
        found = np.flatnonzero(self.labels == which) if np.ndim(which) == 0 else np.zeros(0, int)
        if not len(found):
            raise KeyError(
                f"no fit of {self.by} {which!r}; the first are {', '.join(map(repr, self.labels[:5].tolist()))}"
            )
        return int(found[0])

    def table(self) -> Any:
        """All estimates.

        Returns
        -------
        table of the caller's kind
            One row a fit and parameter: the fit's label (column named as `by`), `parameter`, `estimate`, `se`. Fits
            that failed have NaN.
        """
        B, P = self.estimate.shape
        return self._table({
            self.by: _labels(np.repeat(self.labels, P)),
            "parameter": text_column(self.parameters * B),
            "estimate": self.estimate.ravel(),
            "se": self.se.ravel(),
        })  # fmt: skip

    def summary(self) -> Any:
        """One row a fit: label, `n`, `groups`, `loglik`, `singular`, `n_agq`, `checked_gap`, `decrement`,
        `evaluations`, `failed` and `warnings`, of which the last two are empty for most."""
        return self._table({
            self.by: _labels(self.labels), "n": self.n, "groups": self.groups, "loglik": self.loglik,
            "singular": self.singular, "n_agq": self.n_agq, "checked_gap": self.checked_gap,
            "decrement": self.decrement, "evaluations": self.evaluations,
            "failed": text_column([reason or "" for reason in self._reasons]),
            "warnings": text_column(["; ".join(texts) for texts in self._warnings]),
        })  # fmt: skip

    def _table(self, columns):
        return native_table(self._native, columns)

    def __repr__(self) -> str:
        failed, warned = sum(reason is not None for reason in self._reasons), len(self.warnings)
        return (
            f"<jaxglmm.Fits: {len(self):,} by {self.by!r}, {int(self.singular.sum()):,} singular, {failed:,} failed, "
            f"{f'{warned:,} with warnings, ' if warned else ''}{self.seconds:.1f} s>"
        )


def _labels(values: np.ndarray) -> np.ndarray:
    return text_column(values.tolist()) if values.dtype.kind in "OUS" else values
