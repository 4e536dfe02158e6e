"""Posterior densities for samplers: against integrals on grids, Jacobians by differentiation, and a sampler itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxglmm as jg


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(12), rng.integers(2, 6, 12))
    X = np.stack([np.ones(len(codes)), rng.normal(size=len(codes))], 1)
    eta = 0.5 * X[:, 1] + rng.normal(size=12)[codes]
    return {"y": (rng.random(len(codes)) < 1 / (1 + np.exp(-eta))) * 1.0, "X": X, "codes": codes}


def point_of(density, rng, scale=0.4):
    return jax.tree.map(lambda v: jnp.asarray(v + scale * rng.normal(size=v.shape)), density.start())


def test_the_joint_density_integrates_to_the_marginal_one(x64, rows):
    """Group after group by the trapezoid rule: the two differ by the constant of u ~ N(0, 1)."""
    design, layout = jg.make_design(**rows)
    options = {"beta": jg.NormalPrior(10.0), "sd": jg.HalfStudentPrior(3.0, 2.5)}
    joint = jg.LogDensity(jg.JointLikelihood(jg.Bernoulli()), design, layout, **options)
    marginal = jg.LogDensity(jg.AdaptiveQuadrature(jg.Bernoulli(), 25), design, layout, **options)
    point = point_of(joint, np.random.default_rng(0))
    grid = jnp.linspace(-9, 9, 601)
    # Groups do not meet: all of them move along the grid together, and each one's share is its own difference.
    at = jax.jit(jax.vmap(lambda u, g: joint(point | {"u": joint.start()["u"].at[0, g].set(u)}), (0, None)))
    zero = joint(point | {"u": joint.start()["u"]})
    logs = [jax.nn.logsumexp(at(grid, g) - zero) + jnp.log(grid[1] - grid[0]) for g in range(12)]
    whole = zero + sum(logs) - 12 * 0.5 * np.log(2 * np.pi)
    rest = {k: v for k, v in point.items() if k != "u"}
    np.testing.assert_allclose(marginal(rest), whole, rtol=1e-9)


@pytest.mark.parametrize("S", [1, 2, 3])
def test_the_jacobian_is_that_of_standard_deviations_and_correlations(x64, rows, S):
    z = np.random.default_rng(1).normal(size=(S, len(rows["y"])))
    design, layout = jg.make_design(**rows, z=z)
    density = jg.LogDensity(jg.LaplaceMarginal(jg.Bernoulli()), design, layout, sd=None)
    point = point_of(density, np.random.default_rng(S))

    def natural(theta):
        out = density.constrain(point | {"theta": theta})
        return jnp.concatenate([out["sd"], out["correlation"][np.tril_indices(S, -1)]])

    jacobian = jax.jacobian(natural)(point["theta"])
    likelihood = jg.LaplaceMarginal(jg.Bernoulli())(jg.Params(point["beta"], point["theta"], jnp.zeros(())), design)
    np.testing.assert_allclose(density(point) - likelihood, jnp.linalg.slogdet(jacobian)[1], rtol=1e-10)


def test_priors_and_dispersion(x64, rows):
    rows = rows | {"y": rows["y"] + 0.3 * rows["X"][:, 1] + np.random.default_rng(5).normal(size=len(rows["y"]))}
    design, layout = jg.make_design(**rows)
    flat = jg.LogDensity(jg.LaplaceMarginal(jg.Gaussian()), design, layout, sd=None)
    prior = jg.LogDensity(
        jg.LaplaceMarginal(jg.Gaussian()), design, layout, beta=jg.NormalPrior(2.0), sd=jg.GammaPrior(),
        dispersion=jg.HalfStudentPrior(4.0, 1.0),
    )  # fmt: skip
    point = point_of(flat, np.random.default_rng(2))
    told = prior.constrain(point)
    wanted = jnp.sum(jg.NormalPrior(2.0).log_density(point["beta"])) + jg.GammaPrior().log_density(told["sd"][0])
    wanted += jg.HalfStudentPrior(4.0, 1.0).log_density(told["dispersion"]) + point["log_dispersion"]
    np.testing.assert_allclose(prior(point) - flat(point), wanted, rtol=1e-10)
    back = prior.unconstrain(told["beta"], told["sd"][:, None], jnp.log(told["dispersion"]))
    for name, value in point.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-12)


def test_the_mode_without_priors_is_the_fit(x64, rows):
    design, layout = jg.make_design(**rows)
    objective = jg.AdaptiveQuadrature(jg.Bernoulli(), 9)
    density = jg.LogDensity(objective, design, layout, sd=None)
    found = jg.solve(objective, design)
    point = density.unconstrain(found.beta, found.factor)
    gradient = jax.grad(lambda p: density(p) - p["theta"][0])(point)
    assert max(float(jnp.abs(v).max()) for v in jax.tree.leaves(gradient)) < 1e-5


def test_what_is_refused(x64, rows):
    design, layout = jg.make_design(**rows)
    with pytest.raises(jg.DataError, match="sd: expected"):
        jg.LogDensity(jg.LaplaceMarginal(jg.Bernoulli()), design, layout, sd=jg.NormalPrior(1.0))
    with pytest.raises(jg.DataError, match="objective: expected"):
        jg.LogDensity(jg.Bernoulli(), design, layout)
    plain, layout = jg.make_design(rows["y"], rows["X"])
    with pytest.raises(jg.NotYetError):
        jg.LogDensity(jg.JointLikelihood(jg.Bernoulli()), plain, layout)
    without = jg.LogDensity(jg.LaplaceMarginal(jg.Bernoulli()), plain, layout)
    assert np.isfinite(without(without.start()))


def test_random_walk_metropolis_agrees_with_a_grid(x64, rows):
    """A sampler of a few lines on the marginal density: mean and sd of log tau against the profile on a grid."""
    design, layout = jg.make_design(**rows)
    density = jg.LogDensity(jg.AdaptiveQuadrature(jg.Bernoulli(), 9), design, layout, beta=jg.NormalPrior(1e-3))
    point = density.start()

    def step(state, key):
        point, value = state
        move, accept = jax.random.split(key)
        new = point | {"theta": point["theta"] + 1.2 * jax.random.normal(move, (1,))}
        new_value = density(new)
        taken = jnp.log(jax.random.uniform(accept)) < new_value - value
        kept = jax.tree.map(lambda a, b: jnp.where(taken, a, b), (new, new_value), (point, value))
        return kept, kept[0]["theta"][0]

    keys = jax.random.split(jax.random.key(0), 6000)
    draws = jax.jit(lambda: jax.lax.scan(step, (point, density(point)), keys)[1])()[500:]
    grid = jnp.linspace(-9, 4, 400)
    log = jax.jit(jax.vmap(lambda t: density(point | {"theta": t[None]})))(grid)
    weight = jnp.exp(log - log.max()) / jnp.sum(jnp.exp(log - log.max()))
    mean = jnp.sum(weight * grid)
    sd = jnp.sqrt(jnp.sum(weight * (grid - mean) ** 2))
    assert abs(float(draws.mean() - mean)) < 0.2 * float(sd) and abs(float(draws.std() / sd) - 1) < 0.2


@pytest.mark.parametrize("package", ["blackjax", "numpyro"])
def test_samplers_take_it_as_it_is(x64, rows, package):
    sampler = pytest.importorskip(package, reason=f"{package} is not installed")
    design, layout = jg.make_design(**rows)
    density = jg.LogDensity(jg.JointLikelihood(jg.Bernoulli()), design, layout, beta=jg.NormalPrior(10.0))
    if package == "blackjax":
        nuts = sampler.nuts(density, step_size=0.3, inverse_mass_matrix=jnp.ones(15))
        state = nuts.init(density.start())
        state, _ = jax.jit(nuts.step)(jax.random.key(0), state)
        draw = state.position
    else:
        from numpyro.infer import MCMC, NUTS  # pyright: ignore[reportMissingImports]

        chain = MCMC(NUTS(potential_fn=lambda x: -density(x)), num_warmup=5, num_samples=3, progress_bar=False)
        chain.run(jax.random.key(0), init_params=density.start())
        draw = jax.tree.map(lambda v: v[-1], chain.get_samples())
    told = density.constrain(draw)
    assert told["b"].shape == (1, 12) and np.isfinite(density(draw))
