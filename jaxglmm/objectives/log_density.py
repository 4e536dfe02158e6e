"""Posterior densities in unconstrained coordinates, as samplers take them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxglmm.arguments import a_design, floats, instance, mapping, number, numbers, told
from jaxglmm.design.design import Design, only_term
from jaxglmm.design.groups import Layout
from jaxglmm.errors import DataError
from jaxglmm.model.covariance import Covariance
from jaxglmm.model.priors import AbstractPrior, HalfStudentPrior
from jaxglmm.objectives.joint import JointLikelihood
from jaxglmm.objectives.laplace import LaplaceMarginal
from jaxglmm.objectives.params import Params
from jaxglmm.objectives.quadrature import AdaptiveQuadrature
from jaxglmm.ops.group import map_groups


Point = dict[str, Array]

_HALF_T = HalfStudentPrior(3.0, 2.5)


class LogDensity(eqx.Module):
    """The logarithm of a posterior density, up to a constant, as a function of unconstrained coordinates.

    A point is a dict of arrays, all of them on the whole real line:

    * ``beta`` (p,): fixed effects,
    * ``theta`` (q,): log-Cholesky parameters of the effects' covariance (see `Covariance`); with one effect the
      logarithm of its standard deviation,
    * ``log_dispersion`` (): where the family has one,
    * ``u`` (S, G): with a joint likelihood, the groups' standardised effects, b = Lambda u (non-centred).

    Priors are densities of the parameters on their own scales; the Jacobians of the coordinates are part of the value.
    Calls can be jitted, vmapped and differentiated: BlackJAX takes an instance as its log-density, and NumPyro
    ``lambda x: -density(x)`` as its `potential_fn`.

    Attributes
    ----------
    objective : LaplaceMarginal, AdaptiveQuadrature or JointLikelihood
        Groups are integrated out by the first two, and sampled under the third.
    design : Design
        Of one grouping factor, or of none. Its floating type is that of the points.
    first : int (G,)
        First slot of each group.
    beta, sd, dispersion : AbstractPrior or None
        Densities of each fixed effect, of each effect's standard deviation (half-t with 3 degrees of freedom and scale
        2.5 by default), and of the dispersion; None is flat (of the dispersion: in its
        logarithm). Correlations are uniform over correlation matrices (LKJ, shape 1).
    """

    objective: Any
    design: Design
    first: np.ndarray
    beta: AbstractPrior | None
    sd: AbstractPrior | None
    dispersion: AbstractPrior | None

    def __init__(
        self, objective: LaplaceMarginal | AdaptiveQuadrature | JointLikelihood, design: Design, layout: Layout, *,
        beta: AbstractPrior | None = None, sd: AbstractPrior | None = _HALF_T,
        dispersion: AbstractPrior | None = None,
    ):  # fmt: skip
        """Put a design and priors behind a likelihood; `design, layout` are those of `make_design`.

        Raises
        ------
        DataError
            For a prior in the wrong place, or a joint likelihood without groups.
        """
        a_design("design", design)
        instance("Layout", "the layout that jaxglmm.make_design returns beside its design")("layout", layout)
        if not isinstance(objective, LaplaceMarginal | AdaptiveQuadrature | JointLikelihood):
            raise DataError(
                "objective: expected LaplaceMarginal, AdaptiveQuadrature or JointLikelihood; found "
                f"{type(objective).__name__}"
            )
        if design.terms or isinstance(objective, JointLikelihood):
            only_term(design)
        for name, prior, on_sd in (("beta", beta, False), ("sd", sd, True), ("dispersion", dispersion, True)):
            if prior is not None and not (isinstance(prior, AbstractPrior) and prior.on_sd == on_sd):
                kind = "a positive number, as HalfStudentPrior" if on_sd else "a coefficient, as NormalPrior"
                raise DataError(f"{name}: expected the density of {kind}, or None; found {prior!r}")
        self.objective, self.design, self.first = objective, design, np.asarray(layout.first)
        self.beta, self.sd, self.dispersion = beta, sd, dispersion

    @property
    def _covariance(self) -> Covariance:
        return self.design.terms[0].covariance if self.design.terms else Covariance(())

    @property
    def _dispersed(self) -> bool:
        return self.objective.family.dispersion_name is not None

    @property
    def _joint(self) -> bool:
        return isinstance(self.objective, JointLikelihood)

    def start(self, sd: float = 0.5) -> Point:
        """A point to begin at: zeros, and this standard deviation of every effect."""
        number(above=0)("sd", sd)
        dtype, covariance = np.asarray(self.design.y[:1]).dtype, self._covariance
        S = covariance.n_effects
        point = {"beta": jnp.zeros(self.design.X.shape[1], dtype)}
        point["theta"] = jnp.asarray(covariance.theta(sd * np.eye(S)), dtype)
        if self._dispersed:
            point["log_dispersion"] = jnp.zeros((), dtype)
        if self._joint:
            point["u"] = jnp.zeros((S, len(self.first)), dtype)
        return point

    def __call__(self, point: Point) -> Array:
        """The logarithm () of the density."""
        self._check(point)
        theta, log_phi = point["theta"], point.get("log_dispersion", jnp.zeros((), point["beta"].dtype))
        params = Params(point["beta"], theta, log_phi)
        value = self.objective(params, self._spread(point["u"]), self.design) if self._joint else None
        value = self.objective(params, self.design) if value is None else value
        if self.beta is not None:
            value += jnp.sum(self.beta.log_density(point["beta"]))
        if self.design.terms:
            value += self._covariance_density(theta)
        if self._dispersed and self.dispersion is not None:
            value += self.dispersion.log_density(jnp.exp(log_phi)) + log_phi
        return value

    def _covariance_density(self, theta):
        """Of standard deviations and correlations, times |d(sd, correlations) / d theta|.

        In a block of S effects, d Sigma = 2^S prod_i L_ii^(S - i + 1) d L = 2^S prod_i sd_i^S d(sd, correlations).
        """
        factor = self._covariance.factor(theta)
        sds, value = jnp.sqrt(jnp.sum(jnp.square(factor), axis=1)), jnp.zeros((), theta.dtype)
        if self.sd is not None:
            value += jnp.sum(self.sd.log_density(sds))
        for block in self._covariance.blocks:
            S = len(block)
            for i, effect in enumerate(block):
                value += (S - i + 1) * jnp.log(factor[effect, effect]) - S * jnp.log(sds[effect])
        return value

    def _spread(self, u):
        """From groups (S, G) to slots (S, n_slots)."""
        at_first = jnp.zeros((len(u), self.design.y.shape[0]), u.dtype).at[:, self.first].set(u)
        body = lambda total, head, rows, _: ((), total(rows))
        return map_groups(body, self.design.terms[0].index, at_first)[1]

    def constrain(self, point: Point) -> Point:
        """The parameters on their own scales, of one point; `jax.vmap` for draws.

        Returns
        -------
        dict
            ``beta`` (p,), ``sd`` (S,), ``correlation`` (S, S), ``dispersion`` () where the family has one, and with a
            joint likelihood ``b`` (S, G), the groups' effects.
        """
        self._check(point)
        factor = self._covariance.factor(point["theta"])
        sds = jnp.sqrt(jnp.sum(jnp.square(factor), axis=1))
        unit = factor / sds[:, None]
        out = {"beta": point["beta"], "sd": sds, "correlation": jnp.matmul(unit, unit.T, precision="highest")}
        if self._dispersed:
            out["dispersion"] = jnp.exp(point["log_dispersion"])
        if self._joint:
            out["b"] = jnp.matmul(factor, point["u"], precision="highest")
        return out

    def _check(self, point) -> None:
        """Refuse what is no point.

        Raises
        ------
        DataError
        """
        mapping("point", point)
        q, covariance = len(self._covariance.entries[0]), self._covariance
        shapes = {"beta": self.design.X.shape[1:], "theta": (q,)}
        shapes |= {"log_dispersion": ()} if self._dispersed else {}
        shapes |= {"u": (covariance.n_effects, len(self.first))} if self._joint else {}
        if set(shapes) - set(point):
            raise DataError(f"point must have {', '.join(map(repr, shapes))}; found {told(sorted(point))}")
        for name, shape in shapes.items():
            floats(f"point[{name!r}]", point[name])
            if point[name].shape != shape:
                raise DataError(f"point[{name!r}] must have shape {shape}; found {point[name].shape}")

    def unconstrain(self, beta, factor, log_dispersion=None, u=None) -> Point:
        """The point of these parameters, such as an optimum's: Lambda (S, S) has a positive diagonal."""
        rows, columns = self._covariance.entries
        S, p = self._covariance.n_effects, self.design.X.shape[1]
        wanted = {"beta": (beta, (p,)), "factor": (factor, (S, S))}
        wanted |= {"log_dispersion": (log_dispersion, ())} if self._dispersed else {}
        wanted |= {"u": (u, (S, len(self.first)))} if self._joint and u is not None else {}
        for name, (value, shape) in wanted.items():
            if getattr(value, "dtype", None) is None:  # what has one may be traced
                numbers(name, value)
            else:
                floats(name, value)
            if np.shape(value) != shape:
                raise DataError(f"{name} must have shape {shape}; found {np.shape(value)}")
        raw = jnp.asarray(factor)[rows, columns]
        point = {"beta": jnp.asarray(beta), "theta": jnp.where(rows == columns, jnp.log(jnp.abs(raw)), raw)}
        if self._dispersed:
            point["log_dispersion"] = jnp.asarray(log_dispersion)
        if self._joint:
            point["u"] = jnp.zeros((len(factor), len(self.first)), raw.dtype) if u is None else jnp.asarray(u)
        return jax.tree.map(lambda v: v.astype(np.asarray(self.design.y[:1]).dtype), point)
