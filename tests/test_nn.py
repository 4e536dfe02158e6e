"""Random effects as a layer: its likelihood, its posterior, and batches whose gradients add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxglmm as jg
from jaxglmm.design.design import make_design
from jaxglmm.nn import GroupBatches, RandomEffects


@pytest.fixture(scope="module")
def rows():
    """97 groups of 1 to 7 rows, and one of 40."""
    rng = np.random.default_rng(2)
    codes = rng.permutation(np.append(np.repeat(np.arange(97), rng.integers(1, 8, 97)), np.full(40, 97)))
    X = rng.standard_normal((len(codes), 3))
    eta = np.tanh(X[:, 0]) + rng.standard_normal(98)[codes]
    y = (rng.random(len(codes)) < 1 / (1 + np.exp(-eta))) * 1.0
    return {"y": y, "X": X, "codes": codes, "offset": 0.1 * X[:, 1]}


def negative(model, design):
    network, effects = model
    return -effects(jnp.tanh(jnp.matmul(design.X, network, precision="highest")), design)


def test_every_batch_of_an_epoch_is_unbiased():
    """203 groups in batches of 20: over many epochs each place's weighted total of a quantity is that of all groups."""
    codes = np.repeat(np.arange(203), 2)
    size = np.random.default_rng(0).gamma(1.0, size=203)
    batches = GroupBatches(size[codes], np.zeros((406, 1)), codes, groups=20, dtype=np.float64)
    np.testing.assert_allclose(batches.weights, [203 / 20] * 10 + [203 / 3])
    total = lambda design: float(np.sum(design.weights * design.y)) / 2
    found = np.array([[total(design) for design in batches.epoch(s)] for s in range(60)]) * batches.weights
    error = found.std(0) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - size.sum()) < 4 * error).all()
    # The first place alone, exactly: each group is in it with the chance 20/203.
    drawn = np.mean([np.random.default_rng(s).permutation(203)[:20] < 100 for s in range(4000)])
    assert batches.weights[0] * 20 * drawn == pytest.approx(100, rel=0.02)


def test_the_batches_gradients_add_up_to_the_gradient(x64, rows):
    model = (jnp.asarray([0.5, -0.2, 0.1]), RandomEffects(jg.Bernoulli(), nodes=5))
    step = jax.jit(jax.grad(negative))
    whole = step(model, make_design(**rows)[0])
    programs = step._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    batches = GroupBatches(**rows, groups=20, dtype=np.float64)
    assert len(batches) == 5
    for seed in (0, 1):
        each = [step(model, design) for design in batches.epoch(seed)]
        total = jax.tree.map(lambda *g: sum(g), *each)
        for found, wanted in zip(jax.tree.leaves(total), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-10)
    assert len(each) == 5
    assert step._cache_size() == programs + 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_posterior_is_the_fit_s(x64, rows):
    """Mean and sd of one group by the trapezoid rule on a fine grid."""
    design, layout = make_design(**rows)
    effects, eta = RandomEffects(jg.Bernoulli(), nodes=25, sd=1.3), jnp.asarray(0.4 * design.X[:, 0])
    mean, sd = effects.posterior(eta, design)
    b = np.linspace(-9, 9, 4001)
    for group in (0, 97):
        mine = rows["codes"] == group
        x = (0.4 * rows["X"][mine, 0] + rows["offset"][mine])[:, None] + b
        log = np.sum(rows["y"][mine, None] * x - np.logaddexp(0, x), 0) - 0.5 * (b / 1.3) ** 2
        p = np.exp(log - log.max())
        p /= p.sum()
        at = layout.first[group]
        assert float(mean[0, at]) == pytest.approx(p @ b, abs=1e-7)
        assert float(sd[0, at]) == pytest.approx(np.sqrt(p @ b**2 - (p @ b) ** 2), abs=1e-7)


def test_eta_of_another_length_is_refused(x64, rows):
    design, _ = make_design(**rows)
    with pytest.raises(jg.DataError, match="one for each slot"):
        RandomEffects(jg.Bernoulli())(jnp.zeros(3), design)
