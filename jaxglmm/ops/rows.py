"""Row derivatives of a family for arrays on the host; one compiled program for all lengths that round alike."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxglmm.design.groups import round_up
from jaxglmm.ops.programs import program


class RowDerivatives(NamedTuple):
    """Sum of the log-densities, and derivatives in eta of each row; with a dispersion also (dl, ds, dw)/d log phi."""

    value: float
    s: np.ndarray
    w: np.ndarray
    a: np.ndarray
    c: np.ndarray
    phi: tuple[np.ndarray, ...] | None


class FamilyRows:
    """A family and the rows it is evaluated on.

    Parameters
    ----------
    family : AbstractFamily
    y, weights : (n,)
    """

    def __init__(self, family, y, weights):
        self.family, self.n = family, len(y)
        self._padding = round_up(len(y)) - len(y)
        pad = lambda v, fill: jnp.asarray(np.pad(v, (0, self._padding), constant_values=fill))
        # A row without weight still needs some valid response.
        self._y, self._weights = pad(y, y[0]), pad(weights, 0.0)
        assert self._y.dtype == jnp.float64, "made outside of `computing()`, which would round the rows to float32"

    def newton(self, eta, log_phi):
        """Value, s and the information for Newton steps: observed, or expected where that may be negative."""
        value, *rows = _newton_rows(self.family, self._padded(eta), self._y, self._weights, log_phi)
        return float(value), *(np.asarray(v)[: self.n] for v in rows)

    def derivatives(self, eta, log_phi) -> RowDerivatives:
        """Everything a gradient and a Hessian need."""
        value, rows, phi = _all_rows(self.family, self._padded(eta), self._y, self._weights, log_phi)
        s, w, a, c, *phi = (np.asarray(v)[: self.n] for v in (*rows, *phi))
        return RowDerivatives(float(value), s, w, a, c, tuple(phi) or None)

    def _padded(self, eta):
        return np.pad(eta, (0, self._padding), constant_values=1.0)


@program(static=("family",))
def _newton_rows(family, eta, y, weights, log_phi):
    d = family.derivatives(eta, y, weights, log_phi)
    return jnp.sum(d.l), d.s, d.w if family.log_concave else family.expected(eta, weights, log_phi)


@program(static=("family",))
def _all_rows(family, eta, y, weights, log_phi):
    l, *rows = family.derivatives(eta, y, weights, log_phi)
    has_phi = family.dispersion_name is not None
    return jnp.sum(l), rows, family.dispersion_derivatives(eta, y, weights, log_phi) if has_phi else ()
