"""Where a penalised fit begins: the fit of the unpenalised columns alone."""

from dataclasses import dataclass, replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxglmm.optimise.effect_units import sizes_of_one
from jaxglmm.optimise.glm_fit import fit_glm
from jaxglmm.optimise.marginal_fit import fit_marginal
from jaxglmm.optimise.node_ladder import padded_nodes
from jaxglmm.optimise.path_model import Model, Point


@dataclass(frozen=True)
class Likelihood:
    """Which likelihood is maximised.

    Attributes
    ----------
    n_agq : int
        Nodes per effect; 1 is Laplace.
    auto : bool
        Take as many nodes as make a difference.
    determinant : bool
        False for the joint likelihood.
    factor : (S, S) or None
        Lambda to hold, in the design's coordinates.
    log_phi : float or None
        Log dispersion to hold.
    check : bool
        Look at what was maximised with more nodes.
    """

    n_agq: int = 1
    auto: bool = False
    determinant: bool = True
    factor: np.ndarray | None = None
    log_phi: float | None = None
    check: bool = False


@dataclass(frozen=True)
class NullFit:
    """A model, the point where its penalised fits begin, and the nodes per effect (None without random effects)."""

    model: Model
    point: Point
    n_agq: int | None


def fit_null(
    family, design, columns, unpenalised, intercept, likelihood: Likelihood, *, names, prior=None, max_iterations=100
) -> NullFit:
    """Fit the unpenalised columns, and say what a penalised fit goes on with.

    Parameters
    ----------
    design : Design
        Its X is not read.
    columns : WideColumns
    unpenalised : int (k,)
    intercept : int or None
        Its position among all columns.
    names : sequence of str
        Of all columns.

    Raises
    ------
    SeparationError
        When unpenalised columns predict the response perfectly.
    """
    X = jnp.asarray(columns.gather(unpenalised)) if len(unpenalised) else jnp.zeros((columns.n_slots, 0))
    part = eqx.tree_at(lambda d: d.X, design, X)
    k = len(unpenalised)
    first = int(np.searchsorted(unpenalised, intercept)) if intercept in unpenalised else None
    chosen = [names[j] for j in unpenalised]
    free = np.array([family.dispersion_name is not None and likelihood.log_phi is None])
    total = float(np.sum(np.asarray(design.weights)))
    beta = np.zeros(columns.width)
    # Only where the penalised fit begins: it certifies its own solution.
    glm, groups = fit_glm(family, part, first, names=chosen, tol=1e-9)
    log_phi = glm.x[-1] if likelihood.log_phi is None else likelihood.log_phi
    if not design.terms:
        beta[unpenalised] = glm.x[:k]
        excess = 1.0 if likelihood.log_phi is None else float(np.exp(glm.x[-1] - log_phi))
        model = Model(family, design, None, True, free, total, prior, excess)
        return NullFit(model, Point(beta, np.array([log_phi]), None), None)
    solution = fit_marginal(
        family, part, glm, groups, n_agq=likelihood.n_agq, auto=likelihood.auto, fixed_factor=likelihood.factor,
        determinant=likelihood.determinant, tol=1e-9, max_iterations=max_iterations,
    )  # fmt: skip
    covariance = design.terms[0].covariance
    q = len(covariance.diagonal)
    free = np.append(np.full(q, likelihood.factor is None), free)
    beta[unpenalised], rest = solution.psi[:k], solution.psi[k:].copy()
    if likelihood.factor is None and not rest[:q].any():
        # At zero nothing would move: a small start inside lets the penalised fit decide for itself.
        rest[:q] = covariance.raw(_small_factor(groups[2], total))
    n_agq = solution.convergence.n_agq or 1
    nodes = padded_nodes(n_agq, covariance.n_effects)
    model = Model(family, design, nodes, likelihood.determinant, free, total, prior)
    if q == 1 and free[0] and prior is None and likelihood.determinant:
        model = replace(model, sizes=sizes_of_one(family, part, groups[2]))
    return NullFit(model, Point(beta, rest, jnp.asarray(solution.modes)), n_agq)


def _small_factor(level, total) -> np.ndarray:
    """A tenth of the size of the information that a row has on each effect."""
    return 0.1 * np.diag(1 / np.sqrt(np.maximum(level / total, 1e-12)))
