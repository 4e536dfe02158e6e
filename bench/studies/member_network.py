"""A network with member effects against the same network without them, and against the linear mixed model.

Binary rows of very many members with about three rows each, a mean that no linear predictor has, and effects of
standard deviation 1. A tenth of the members is kept for early stopping, by their marginal likelihood; of the others
every fourth row is kept for the test: rows of members who are known.

    python -m bench.studies.member_network --ids 200000
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxglmm as jg
from jaxglmm.nn import GroupBatches, RandomEffects


TAU, FEATURES = 1.0, 4


def simulate(n_ids: int, seed: int):
    """y (n,), X (n, 4), member (n,) and the true log odds (n,)."""
    rng = np.random.default_rng(seed)
    sizes = 1 + rng.negative_binomial(2, 0.5, n_ids)
    member = np.repeat(np.arange(n_ids), sizes)
    X = rng.normal(size=(len(member), FEATURES)).astype(np.float32)
    eta = 1.5 * np.sin(2 * X[:, 0]) + X[:, 1] ** 2 - 1 + X[:, 2] * X[:, 3] + TAU * rng.normal(size=n_ids)[member]
    return (rng.random(len(member)) < 1 / (1 + np.exp(-eta))) * 1.0, X, member, eta


def renumbered(member):
    """Codes from 0 without gaps."""
    return np.unique(member, return_inverse=True)[1]


class WithEffects(eqx.Module):
    """The loss is the negative marginal log-likelihood a row."""

    network: eqx.nn.MLP
    effects: RandomEffects

    def loss(self, design):
        return -self.effects(jax.vmap(self.network)(design.X), design) / jnp.sum(design.weights)


class Without(eqx.Module):
    """The loss is the negative log-likelihood a row."""

    network: eqx.nn.MLP

    def loss(self, design):
        eta = jax.vmap(self.network)(design.X)
        loss = jnp.sum(design.weights * (jnp.logaddexp(0.0, eta) - design.y * eta))
        return loss / jnp.sum(design.weights)


def train(model, batches, held_out, *, epochs: int, patience: int = 2):
    """The model with the least loss on the members held out, its losses there, epoch by epoch."""
    optimiser = optax.adam(optax.cosine_decay_schedule(0.01, epochs * len(batches)))
    state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, design):
        gradient = eqx.filter_grad(lambda model: model.loss(design))(model)
        updates, state = optimiser.update(gradient, state)
        return eqx.apply_updates(model, updates), state

    loss = eqx.filter_jit(lambda model: model.loss(held_out))
    best, losses = model, [float(loss(model))]
    for epoch in range(epochs):
        for design in batches.epoch(epoch):
            model, state = step(model, state, design)
        losses.append(float(loss(model)))
        if losses[-1] == min(losses):
            best = model
        elif len(losses) - 1 - int(np.argmin(losses)) >= patience:
            break
    return best, losses


def scores(y, probability) -> tuple[float, float]:
    """Log loss and area under the curve."""
    from sklearn.metrics import log_loss, roc_auc_score

    return float(log_loss(y, probability)), float(roc_auc_score(y, probability))


def expected(eta, sd):
    """Mean of the inverse logit of N(eta, sd^2) by Hermite's rule."""
    points, weights = np.polynomial.hermite_e.hermegauss(15)
    return (1 / (1 + np.exp(-(eta[:, None] + sd[:, None] * points)))) @ (weights / weights.sum())


def study(n_ids: int, *, epochs: int = 12, width: int = 32, groups: int = 4000, nodes: int = 9, seed: int = 0) -> dict:
    """tau, and {model: (log loss, AUC)} on the test rows."""
    y, X, member, eta = simulate(n_ids, seed)
    rng = np.random.default_rng(seed + 1)
    stopping = (rng.random(n_ids) < 0.1)[member]
    test = ~stopping & (rng.random(len(y)) < 0.25)
    # Members who are known: those with rows left to train on.
    known = np.zeros(n_ids, bool)
    known[member[~stopping & ~test]] = True
    test &= known[member]
    fitted = ~stopping & ~test
    codes, seen = renumbered(member[fitted]), np.unique(member[fitted])
    batches = GroupBatches(y[fitted], X[fitted], codes, groups=groups)
    held_out, _ = jg.make_design(y[stopping], X[stopping], codes=renumbered(member[stopping]), dtype=np.float32)
    network = eqx.nn.MLP(FEATURES, "scalar", width, 2, activation=jax.nn.silu, key=jax.random.key(seed))
    apply = lambda network, X: np.asarray(jax.jit(jax.vmap(network))(X))
    found, out = {}, {}

    began = time.perf_counter()
    best, losses = train(
        WithEffects(network, RandomEffects(jg.Bernoulli(), nodes=nodes)), batches, held_out, epochs=epochs
    )
    out["seconds"], out["epochs"] = time.perf_counter() - began, len(losses) - 1
    out["tau"] = float(best.effects.factor[0, 0])
    design, layout = jg.make_design(y[fitted], X[fitted], codes=codes, dtype=np.float32)
    mean, sd = best.effects.posterior(jnp.asarray(apply(best.network, design.X)), design)
    at = layout.first[np.searchsorted(seen, member[test])]
    eta_test = apply(best.network, X[test]).astype(float)
    shifted, spread = eta_test + np.asarray(mean, float)[0, at], np.asarray(sd, float)[0, at]
    found["network with member effects"] = scores(y[test], expected(shifted, spread))

    best, _ = train(Without(network), batches, held_out, epochs=epochs)
    chances = 1 / (1 + np.exp(-apply(best.network, X[test]).astype(float)))
    found["network without them"] = scores(y[test], chances)

    table = lambda rows: {"y": y[rows], "member": member[rows]} | {f"x{j}": X[rows, j] for j in range(FEATURES)}
    fit = jg.fit("y ~ x0 + x1 + x2 + x3 + (1 | member)", table(fitted), family="binomial", progress=False)
    found["linear mixed model"] = scores(y[test], np.asarray(fit.predict(table(test), kind="response")))
    found["truth"] = scores(y[test], 1 / (1 + np.exp(-eta[test])))
    return out | {"scores": found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a network with member effects, and what it is to beat")
    parser.add_argument("--ids", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the data, the first weights and the batches")
    options = parser.parse_args()
    told = study(options.ids, epochs=options.epochs, seed=options.seed)
    print(f"tau {told['tau']:.4f} (true {TAU}), {told['epochs']} epochs, {told['seconds']:.0f} s of training")
    for name, (loss, auc) in told["scores"].items():
        print(f"{name:>28}: log loss {loss:.4f}, AUC {auc:.4f}")
