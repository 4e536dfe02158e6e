"""Laplace's approximation and quadrature against sampling: toenail, four fixed effects and one large variance.

    python -m bench.studies.toenail_nuts            (needs numpyro; some ten minutes on one core)

The model is outcome ~ treatment * time + (1 | patient), binary. Priors: each fixed effect N(0, 10^2), tau half-t with
3 degrees of freedom and scale 2.5. Printed are the maximum likelihood estimates and their standard errors by both
approximations, the means and standard deviations of both approximate posteriors, and those of the exact one, in which
the patients' effects are sampled too.
"""

import argparse

import jax
import numpy as np

import jaxglmm as jg
from jaxglmm.demo import toenail


NAMES = ("Intercept", "treatment", "time", "treatment:time", "tau")
NODES = 51


def rows():
    """Response, columns and patients."""
    data = toenail()
    treated = (np.asarray(data["treatment"]) == "terbinafine") * 1.0
    time = np.asarray(data["time"], float)
    X = np.stack([np.ones_like(time), treated, time, treated * time], 1)
    y = (np.asarray(data["outcome"]) == "moderate or severe") * 1.0
    return y, X, np.unique(np.asarray(data["patientID"]), return_inverse=True)[1]


def estimates(data, nodes):
    """Maximum likelihood: estimates and standard errors of beta and tau."""
    y, X, codes = data
    table = {"y": y, "a": X[:, 1], "t": X[:, 2], "g": codes}
    formula = "~ a + t + a:t + (1 | g)"
    fits = jg.fit_many(formula, table, responses=["y"], family="binomial", method="agq", n_agq=nodes, progress=False)
    return fits.estimate[0], fits.se[0]


def sample(density, begin, *, chains, warmup, draws, seed=0):
    """Means and standard deviations of (beta, tau) by NUTS, with split R-hat and effective sample sizes."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
    from numpyro.infer import MCMC, NUTS

    nuts = NUTS(potential_fn=lambda x: -density(x), dense_mass=[("beta", "theta")], target_accept_prob=0.9)
    chain = MCMC(
        nuts, num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method="sequential", progress_bar=False
    )
    keys = jax.random.split(jax.random.key(seed), chains)
    spread = lambda v: np.stack([v + 0.1 * np.asarray(jax.random.normal(k, v.shape, v.dtype)) for k in keys])
    chain.run(jax.random.key(seed + 1), init_params=jax.tree.map(spread, begin))
    found = chain.get_samples(group_by_chain=True)
    values = np.concatenate([found["beta"], np.exp(found["theta"])], axis=2)
    flat = values.reshape(-1, values.shape[2])
    return flat.mean(0), flat.std(0), split_gelman_rubin(values).max(), effective_sample_size(values).min()


def main(chains=4, warmup=500, draws=1000):
    """Print the table."""
    data = rows()
    columns = {}
    for name, nodes in (("Laplace", 1), (f"{NODES} nodes", NODES)):
        columns[f"{name}, estimate"] = estimates(data, nodes)
    with jax.enable_x64(True):
        y, X, codes = data
        design, layout = jg.make_design(y, X, codes=codes)
        priors = {"beta": jg.NormalPrior(10.0), "sd": jg.HalfStudentPrior(3.0, 2.5)}
        objectives = {
            "Laplace, posterior": jg.LaplaceMarginal(jg.Bernoulli()),
            f"{NODES} nodes, posterior": jg.AdaptiveQuadrature(jg.Bernoulli(), NODES),
            "NUTS on all effects": jg.JointLikelihood(jg.Bernoulli()),
        }
        for name, objective in objectives.items():
            density = jg.LogDensity(objective, design, layout, **priors)
            beta, _ = columns[f"{NODES} nodes, estimate"]
            begin = density.unconstrain(beta[:-1], np.array([[beta[-1]]]))
            *columns[name], rhat, size = sample(density, begin, chains=chains, warmup=warmup, draws=draws)
            print(f"{name}: split R-hat at most {rhat:.3f}, effective draws at least {size:.0f}", flush=True)
    print(f"{'':>24}" + "".join(f"{name:>18}" for name in NAMES))
    for name, (center, spread) in columns.items():
        print(f"{name:>24}" + "".join(f"{c:>10.3f} ({s:.3f})" for c, s in zip(center, spread, strict=True)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option, value in (("chains", 4), ("warmup", 500), ("draws", 1000)):
        parser.add_argument(f"--{option}", type=int, default=value)
    main(**vars(parser.parse_args()))
