"""Evaluations of a path's models at points of their own: one alone, or all folds of a cross-validation as a batch."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.objectives.evaluate import evaluate, evaluate_glm
from jaxglmm.objectives.evaluate_many import evaluate_glm_weighted, evaluate_many
from jaxglmm.objectives.scores import glm_scores, linear_predictor, marginal_scores
from jaxglmm.optimise.path_model import Model, Point


class Evaluations:
    """Evaluates models that share rows, columns and nodes: the first alone, the others, its folds, together.

    Folds differ in the weights of their rows alone, so that one program call serves them all.

    Parameters
    ----------
    models : list of Model
    points : list of Point
        Their modes are where the next search for modes begins.
    """

    def __init__(self, models: list[Model], points: list[Point]):
        self.models, self.points = models, points
        self.own = self.shared = None
        if len(models) > 2:
            weights = jnp.stack([model.design.weights for model in models[1:]])
            constants = jnp.stack([jnp.asarray(model.design.constant) for model in models[1:]])
            of_folds = lambda d: (d.weights, d.constant)
            every = eqx.tree_at(of_folds, models[0].design, (weights, constants))
            owned = eqx.tree_at(of_folds, jax.tree.map(lambda _: False, every), (True, True))
            self.own, self.shared = eqx.partition(every, owned)

    def __call__(self, X, asked: dict[int, np.ndarray], second: bool) -> dict[int, tuple]:
        """{model: (value, gradient (m,), Hessian (m, m))} at {model: psi (m,)}, the Hessian where `second`."""
        folds = [i for i in asked if i]
        if self.own is None or len(folds) < 2:
            return {i: self._one(i, X, psi, second) for i, psi in asked.items()}
        out = {0: self._one(0, X, asked[0], second)} if 0 in asked else {}
        values, gradients, hessians, modes = self._batch(self.shared, self.own, X, asked, second)
        for i in folds:
            if modes is not None and np.isfinite(values[i - 1]):
                self.points[i].modes = modes[i - 1]
            out[i] = (float(values[i - 1]), gradients[i - 1], hessians[i - 1])
        return out

    def whole_values(self, X, asked: dict[int, np.ndarray]) -> dict[int, float]:
        """{fold: log-likelihood of all rows} at {fold: psi (m,)}."""
        if self.own is None:
            design = self.models[0].design
            return {i: self._one(i, X, psi, False, design, keep=False)[0] for i, psi in asked.items()}
        none = jax.tree.map(lambda _: None, self.own)
        values = self._batch(self.models[0].design, none, X, asked, False)[0]
        return {i: float(values[i - 1]) for i in asked}

    def scores(self, i: int, X, beta, rest) -> np.ndarray:
        """dL/deta (n_slots,) of a model at the coefficients (w,) of X."""
        model, rest = self.models[i], jnp.asarray(rest)
        design = model.design
        eta = linear_predictor(X, jnp.asarray(beta), design.offset)
        rows = (design.y, design.weights)
        if model.nodes is None:
            return np.asarray(glm_scores(model.family, rows, eta, rest[-1]))
        found = marginal_scores(
            model.family, rows, design.terms[0], model.nodes, eta, rest[:-1], rest[-1], self.points[i].modes,
            determinant=model.determinant,
        )  # fmt: skip
        return np.asarray(found)

    def _one(self, i, X, psi, second, design=None, keep=True) -> tuple[float, np.ndarray, np.ndarray]:
        model, point = self.models[i], self.points[i]
        design = replace(model.design if design is None else design, X=X)
        if model.nodes is None:
            value, gradient, hessian, _ = evaluate_glm(model.family, design, jnp.asarray(psi), second=second)
        else:
            options = {"determinant": model.determinant, "second": second}
            value, gradient, hessian, modes = evaluate(model.family, design, model.nodes, psi, point.modes, **options)
            if keep and np.isfinite(float(value)):
                point.modes = modes
        return float(value), np.asarray(gradient), np.asarray(hessian)

    def _batch(self, shared, own, X, asked, second) -> list[Any]:
        """Of all folds; those that are not asked for are NaN."""
        model, folds = self.models[0], self.points[1:]
        psi = np.full((len(folds), len(next(iter(asked.values())))), np.nan)
        for i, at in asked.items():
            if i:
                psi[i - 1] = at
        psi, shared = jnp.asarray(psi), replace(shared, X=X)
        if model.nodes is None:
            found = evaluate_glm_weighted(model.family, shared, own, psi, second=second)
            return [np.asarray(v) for v in found] + [None]
        modes = jnp.stack([jnp.asarray(point.modes) for point in folds])
        options = {"determinant": model.determinant, "second": second}
        *found, modes = evaluate_many(model.family, shared, own, model.nodes, psi, modes, **options)
        return [np.asarray(v) for v in found] + [modes]
