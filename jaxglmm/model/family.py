"""What a response family is: one fused row function of eta, and the host-side facts around it."""

import abc
import functools
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.errors import DataError
from jaxglmm.model.links import LINKS


class Derivatives(NamedTuple):
    """Row log-density and its derivatives in eta, times the weight.

    Attributes
    ----------
    l : log-density without its data-only constant
    s : dl/deta
    w : -d2l/deta2, the observed information
    a : dw/deta
    c : da/deta
    """

    l: jax.Array
    s: jax.Array
    w: jax.Array
    a: jax.Array
    c: jax.Array


# A log dispersion that stands for infinity, where a family is its limit to all digits.
AT_LIMIT = 100.0


class AbstractFamily(eqx.Module):
    """A response family with its link; holds no arrays, so it is a static argument and a pytree alike.

    Row functions take any shape and any float dtype, keep it, and may be jitted, vmapped and differentiated.
    ``log_phi`` is the log of the dispersion parameter named ``dispersion_name`` (a scalar, ignored where there is
    none). Rows of weight 0 give exactly 0 in every derivative whatever their eta. Where eta is outside of the link's
    domain (``positive_eta``), l = -inf and the derivatives are 0.

    Attributes
    ----------
    name : str
        "gaussian", "binomial", "poisson", "negativebinomial", "gamma" or "beta".
    link : str
        Name of the link g, g(mu) = eta.
    dispersion_name : str or None
        "sigma", "theta", "shape", "phi"; None where the family has no such parameter.
    discrete : bool
        Whether the response has atoms.
    weight_is : {"precision", "trials", "copies", "mean of copies"}
        What a prior weight w says of its row. "precision": the variance is divided by w. "trials": the response is a
        proportion of w trials. "copies": the row stands for w rows that are alike; where their likelihood depends on
        them through their mean alone, "mean of copies", the response may be that mean, and is drawn so.
    log_concave : bool
        Whether w >= 0 for every eta of the domain.
    positive_eta : bool
        Whether the link's domain is eta > 0, else all of the line.
    limit : str or None
        The family that it becomes as the dispersion grows without bound, where that is an estimate to be told: one on
        the boundary, as a variance of zero is.
    """

    name: eqx.AbstractClassVar[str]
    links: eqx.AbstractClassVar[tuple[str, ...]]
    dispersion_name: eqx.AbstractClassVar[str | None]
    discrete: eqx.AbstractClassVar[bool]
    weight_is: eqx.AbstractClassVar[str]
    link: eqx.AbstractVar[str]

    positive_links: ClassVar[tuple[str, ...]] = ("inverse", "sqrt")
    limit: ClassVar[str | None] = None

    def __check_init__(self):
        if not isinstance(self.link, str) or self.link not in self.links:
            raise DataError(
                f"{type(self).__name__}: found link={self.link!r}, expected one of {', '.join(map(repr, self.links))}"
            )

    def __eq__(self, other):
        return type(self) is type(other) and self.link == other.link

    def __hash__(self):
        return hash((type(self), self.link))

    @property
    def positive_eta(self) -> bool:
        return self.link in self.positive_links

    @property
    def log_concave(self) -> bool:
        return True

    def at_limit(self, log_phi: float) -> bool:
        """Whether a log dispersion stands for the limit."""
        return self.limit is not None and bool(log_phi >= AT_LIMIT - 1e-6)

    # -- on the device ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def unit(self, eta, y, log_phi) -> Derivatives:
        """Derivatives of a row of weight 1 with eta inside of the domain; shapes need only broadcast."""

    @abc.abstractmethod
    def unit_expected(self, eta, log_phi) -> jax.Array:
        """Expected information in eta of a row of weight 1 with eta inside of the domain."""

    def derivatives(self, eta, y, weight, log_phi) -> Derivatives:
        """Weighted row log-density and its first four derivatives in eta, with shared subexpressions.

        Parameters
        ----------
        eta : array
            Linear predictor.
        y : array
            Response, valid in every row (padding rows too). Binomial: proportion of successes.
        weight : array
            Prior weight >= 0; Binomial: number of trials. Multiplies the log-density.
        log_phi : scalar
            Log dispersion; ignored where the family has none.

        Returns
        -------
        Derivatives
            (l, s, w, a, c) in the broadcast shape.
        """
        eta, y, weight, log_phi = _promote(eta, y, weight, log_phi)
        live = weight > 0
        inside = live & (eta > 0) if self.positive_eta else live
        row = self.unit(jnp.where(inside, eta, 1.0), y, log_phi)
        shape = jnp.broadcast_shapes(eta.shape, y.shape, weight.shape)
        scaled = [jnp.broadcast_to(jnp.where(inside, weight * term, 0.0), shape) for term in row]
        if self.positive_eta:
            scaled[0] = jnp.where(live & ~inside, -jnp.inf, scaled[0])
        return Derivatives(*scaled)

    def expected(self, eta, weight, log_phi):
        """Expected information E[w] >= 0 of each row, for Newton steps where the observed w may be negative."""
        eta, weight, log_phi = _promote(eta, weight, log_phi)
        inside = (weight > 0) & (eta > 0) if self.positive_eta else weight > 0
        return jnp.where(inside, weight * self.unit_expected(jnp.where(inside, eta, 1.0), log_phi), 0.0)

    def dispersion_derivatives(self, eta, y, weight, log_phi):
        """(dl, ds, dw)/d log_phi of each row."""
        eta, y, weight, log_phi = _promote(eta, y, weight, log_phi)
        _, tangent = jax.jvp(lambda p: self.derivatives(eta, y, weight, p)[:3], (log_phi,), (jnp.ones_like(log_phi),))
        return tangent

    def loglik(self, eta, y, weight, log_phi):
        """Weighted row log-density, the l of `derivatives`, safe to differentiate any number of times.

        In eta the derivatives are the closed forms s, -w, -a, -c, then automatic differentiation of c. In ``y``,
        ``weight`` and ``log_phi`` they come from automatic differentiation of the formulas.
        """
        return _derivative(self, 0, *_promote(eta, y, weight, log_phi))

    def score(self, eta, y, weight, log_phi):
        """Derivative of the weighted row log-density in eta, the s of `derivatives`."""
        return self.derivatives(eta, y, weight, log_phi).s

    def mean(self, eta):
        """Mean mu = g^-1(eta)."""
        return LINKS[self.link].inverse(*_promote(eta))

    def link_function(self, mu):
        """Linear predictor eta = g(mu)."""
        return LINKS[self.link].forward(*_promote(mu))

    @abc.abstractmethod
    def variance(self, mu, log_phi) -> jax.Array:
        """Variance of a response of weight 1 with mean ``mu``."""

    @abc.abstractmethod
    def deviance_residual(self, y, mu, weight, log_phi) -> jax.Array:
        """sign(y - mu) sqrt(weight d(y, mu)), d the unit deviance, not divided by a dispersion (as in R)."""

    # -- on the host (numpy) ------------------------------------------------------------------------------------

    @abc.abstractmethod
    def constant(self, y, weight) -> float:
        """Sum over rows of the data-only terms that `derivatives` leaves out (numpy, float64)."""

    @abc.abstractmethod
    def check_response(self, y, weight, column: str, rows=None) -> None:
        """Raise DataError with the column and the first row (from 0) where the response is outside of the support.

        `rows` (n,) are the rows' numbers in the table, if not 0, ..., n - 1.
        """

    @abc.abstractmethod
    def start(self, y, weight) -> tuple[float, float]:
        """Constant linear predictor and log dispersion at which a GLM fit may start."""

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, mu, weight, log_phi) -> np.ndarray:
        """Draw responses with means ``mu``; weights count as `weight_is` says.

        Raises
        ------
        DataError
            For copies of a row, where one number cannot stand for the responses of several.
        """

    @abc.abstractmethod
    def cdf(self, y, mu, weight, log_phi) -> np.ndarray:
        """P(Y <= y) (numpy)."""

    def cdf_below(self, y, mu, weight, log_phi) -> np.ndarray:
        """P(Y < y) (numpy): the lower end for randomised quantile residuals (Dunn & Smyth 1996)."""
        return self.cdf(y, mu, weight, log_phi)

    def single(self, weight) -> None:
        """Refuse weights that stand for several responses, other than 0 and 1."""
        weight = np.asarray(weight)
        if not ((weight == 1) | (weight == 0)).all():
            found = weight[(weight != 1) & (weight != 0)].flat[0]
            raise DataError(
                f"weights: found {found:g}; for the family {self.name} a weight is a number of copies of its row. "
                "Their responses would differ, and one number cannot stand for them: write each row out as often as "
                "its weight says"
            )

    def to_json(self) -> dict:
        """Name and link, for `family_from_json`."""
        return {"name": self.name, "link": self.link}


def _promote(*arrays):
    dtype = jnp.result_type(*arrays, 0.0)
    return [jnp.asarray(array, dtype) for array in arrays]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _derivative(family, order, eta, y, weight, log_phi):
    return family.derivatives(eta, y, weight, log_phi)[order]


def _derivative_jvp(family, order, primals, tangents):
    """The chain l' = s, s' = -w, w' = a, a' = c in eta; everything else by differentiating the formulas."""
    eta, *others = primals
    d_eta, *d_others = tangents
    value = _derivative(family, order, *primals)
    total = jnp.zeros_like(value)
    if not _is_zero(d_eta):
        if order < 3:
            slope = _derivative(family, order + 1, *primals)
        else:
            slope = family.derivatives(*primals).c
        total = total + (-slope if order == 1 else slope) * d_eta
    varied = [i for i, tangent in enumerate(d_others) if not _is_zero(tangent)]
    if varied:

        def at(*values):
            filled = list(others)
            for i, v in zip(varied, values, strict=True):
                filled[i] = v
            return family.derivatives(eta, *filled)[order]

        _, tangent = jax.jvp(at, tuple(others[i] for i in varied), tuple(d_others[i] for i in varied))
        total = total + tangent
    return value, total


def _is_zero(tangent):
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


_derivative.defjvp(_derivative_jvp, symbolic_zeros=True)


def first_bad(bad, y):
    """Position and value of the first row marked ``bad``, or None."""
    rows = np.flatnonzero(bad)
    return None if rows.size == 0 else (int(rows[0]), float(np.asarray(y)[rows[0]]), rows.size)


def refuse(bad, y, column, rows, family, expected, remedy):
    """Raise DataError for the rows marked ``bad``, naming the first of them."""
    found = first_bad(bad, y)
    if found is not None:
        row, value, count = found
        row = row if rows is None else int(rows[row])
        more = f" ({count} such rows)" if count > 1 else ""
        raise DataError(
            f"column {column!r}, row {row} (counting from 0){more}: found {value:g}, but a {family} response must be "
            f"{expected}. {remedy}"
        )
