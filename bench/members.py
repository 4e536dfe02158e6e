"""Time of one evaluation on the members design: native and plain, with and without the Hessian.

    python bench/members.py [groups] [--plain] [--nodes K]

Random-intercept logistic regression: group sizes 1 + NegativeBinomial(2, 1/2) (mean 3), 20 standard normal columns of
which the first is constant, coefficients 0.3 N(0, 1), intercept -1, standard deviation of the groups 0.8.
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxglmm.design.design import make_design
from jaxglmm.model.families import get_family
from jaxglmm.objectives.evaluate import evaluate
from jaxglmm.optimise.marginal_fit import padded_nodes


def members(groups: int, columns: int = 20, seed: int = 0, tau: float = 0.8):
    """Rows of the members design, grouped: y, X, codes, coefficients."""
    rng = np.random.default_rng(seed)
    counts = 1 + rng.negative_binomial(2, 0.5, size=groups)
    codes = np.repeat(np.arange(groups), counts)
    X = rng.standard_normal((len(codes), columns))
    X[:, 0] = 1.0
    beta = 0.3 * rng.standard_normal(columns)
    beta[0] = -1.0
    eta = X @ beta + tau * rng.standard_normal(groups)[codes]
    y = (rng.random(len(codes)) < 1 / (1 + np.exp(-eta))).astype(float)
    return y, X, codes, beta


def timed(design, psi, nodes, second, runs=5):
    """Seconds of a pass with cold and with warm modes; the first run compiles and is not counted."""
    family, zero = get_family("binomial"), jnp.zeros_like(design.terms[0].z)

    def once(start):
        began = time.perf_counter()
        found = jax.block_until_ready(evaluate(family, design, nodes, psi, start, second=second))
        return time.perf_counter() - began, found

    _, found = once(zero)
    cold = statistics.median(once(zero)[0] for _ in range(runs))
    return cold, statistics.median(once(found.modes)[0] for _ in range(runs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="?", type=int, default=100_000)
    parser.add_argument("--plain", action="store_true", help="time the plain pass too")
    parser.add_argument("--nodes", type=int, default=1)
    options = parser.parse_args()
    with jax.enable_x64(True):
        y, X, codes, beta = members(options.groups)
        design = jax.device_put(make_design(y, X, codes=codes)[0])
        psi, nodes = jnp.asarray([*beta, 0.8, 0.0]), padded_nodes(options.nodes, 1)
        print(f"{options.groups} groups, {len(y)} rows, load {os.getloadavg()[0]:.1f}")
        for kernels in ["native", "plain"] if options.plain else ["native"]:
            os.environ["JAXGLMM_KERNELS"] = kernels
            for second in (False, True):
                cold, warm = timed(design, psi, nodes, second)
                what = "with Hessian" if second else "gradient    "
                print(f"{kernels:7} {what}  modes from zero {cold:.4f} s  warm {warm:.4f} s", flush=True)


if __name__ == "__main__":
    main()
