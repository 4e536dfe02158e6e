"""Does a path find the columns that matter, and do the refit's intervals cover? `python -m bench.recovery`.

Members designs of 100 columns of which 10 matter, tau 0.8, quadrature with 9 nodes. One large data set: what is
selected at lambda.min and how far the refit's tau is from the truth. Replicates of a smaller one: how many of the 95 %
intervals of the true columns cover. Those of wrongly selected columns are not valid and not counted.
"""

import argparse

import numpy as np

import jaxglmm as jg
from bench.simulate import members


COLUMNS, MATTER, TAU = 100, 10, 0.8


def replicate(groups: int, seed: int, lambdas: int, cv: int) -> dict:
    """One data set: true columns selected and others, the refit's sd, and how many true columns' intervals cover."""
    arrays = members(groups, columns=COLUMNS + 1, matter=MATTER, seed=seed, tau=TAU)
    data = {"y": arrays["y"], "g": arrays["g"]} | {f"x{j}": arrays["X"][j] for j in range(1, COLUMNS + 1)}
    text = "y ~ " + " + ".join(f"x{j}" for j in range(1, COLUMNS + 1)) + " + (1 | g)"
    options = {"family": "binomial", "method": "agq", "n_agq": 9, "progress": False}
    path = jg.fit_path(text, data, n_lambdas=lambdas, lambda_min_ratio=0.01, cv=cv, **options)
    chosen = set(path.selected()) - {"Intercept"}  # at lambda.min
    refit = path.refit()
    truth = np.linspace(0.1, 0.5, MATTER) * np.where(np.arange(MATTER) % 2, 1.0, -1.0)
    right = [f"x{j}" for j in range(1, MATTER + 1)]
    covered = [
        abs(refit.fixef[name] - value) <= 1.959964 * refit.fixef_se[name]
        for name, value in zip(right, truth, strict=True)
        if name in chosen
    ]
    return {
        "right": len(chosen & set(right)), "wrong": len(chosen - set(right)), "sd": refit.varcorr[0]["sd"],
        "covered": sum(covered), "intervals": len(covered), "kkt": float(path.kkt.max()), "seconds": path.seconds,
    }  # fmt: skip


def main():
    """Print the large data set's result, and the replicates' summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=100_000, help="of the large data set; 0 leaves it out")
    parser.add_argument("--replicates", type=int, default=50)
    parser.add_argument("--replicate-groups", type=int, default=10_000)
    parser.add_argument("--lambdas", type=int, default=30)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    if options.groups:
        found = replicate(options.groups, 0, options.lambdas, options.folds)
        print(f"{options.groups:,} groups: {found}, sd off by {found['sd'] / TAU - 1:+.2%}", flush=True)
    every = []
    for seed in range(1, options.replicates + 1):
        every.append(replicate(options.replicate_groups, seed, options.lambdas, options.folds))
        covered, intervals = (sum(one[key] for one in every) for key in ("covered", "intervals"))
        print(
            f"{seed} of {options.replicates}: right {every[-1]['right']}, wrong {every[-1]['wrong']}, sd "
            f"{every[-1]['sd']:.4f}; so far {covered} of {intervals} cover ({covered / max(intervals, 1):.1%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
