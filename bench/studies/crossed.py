"""Bias and coverage of crossed logistic fits by simulation: `python -m bench.studies.crossed`.

The grid of the suite `crossed` with two factors of 100 levels, each in 100 rows, as many as there are pairs; five
standard normal columns whose coefficients are 0.5, and both standard deviations 0.5. Of the fits by Laplace's
approximation: the bias of the slopes, the share of their nominal 95 % intervals (Wald's, from the joint observed
information) that cover, the relative bias of the standard deviations, and the share of intervals for their logarithms
that cover. Each has its Monte-Carlo standard error beside it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import jaxglmm as jg
from bench.peers.ours import formula, table
from bench.suites.crossed import grid


TRUTH, NORMAL = 0.5, 1.959963984540054


def replicate(effects: int, seed: int, each: int = 100) -> dict[str, list[float]]:
    """Estimates and standard errors of the slopes, and of the logarithms of the two standard deviations."""
    arrays = grid(effects, seed, each)
    fit = jg.fit(formula(arrays, {}), table(arrays), family="binomial", method="laplace", progress=False)
    slopes = [name for name in fit.names if name != "Intercept"]
    errors = np.sqrt(np.diag(fit.state.estimate.covariance))
    return {
        "slope": [fit.fixef[name] for name in slopes],
        "slope_se": [fit.fixef_se[name] for name in slopes],
        "sd": [row["sd"] for row in fit.varcorr],
        "log_sd_se": errors[len(fit.names) :].tolist(),
    }


def summarise(found: list[dict]) -> dict[str, dict]:
    """What the replicates say, each a list or a number `value` with its Monte-Carlo standard error `se`.

    An interval for log sd is taken not to cover where the estimate is zero.
    """
    part = {name: np.array([one[name] for one in found]) for name in found[0]}
    mean = lambda v: {"value": v.mean(0).tolist(), "se": (v.std(0, ddof=1) / np.sqrt(len(v))).tolist()}
    inside = np.abs(part["slope"] - TRUTH) <= NORMAL * part["slope_se"]
    with np.errstate(divide="ignore"):
        log_inside = np.abs(np.log(part["sd"] / TRUTH)) <= NORMAL * part["log_sd_se"]
    return {
        "bias of slopes": mean(part["slope"] - TRUTH),
        "coverage of slopes": mean(inside.mean(1)),
        "relative bias of sds": mean(part["sd"] / TRUTH - 1),
        "coverage of log sds": mean(log_inside.mean(1)),
    }


def main() -> None:
    """Run the simulation and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effects", type=int, default=200, help="levels of both factors together (200)")
    parser.add_argument("--each", type=int, default=100, help="rows of each level (100)")
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("bench-results/crossed-study.json"))
    arguments = parser.parse_args()
    began = time.perf_counter()
    found = [replicate(arguments.effects, seed, arguments.each) for seed in range(arguments.replicates)]
    summary = summarise(found)
    for name, of in summary.items():
        value, se = np.atleast_1d(of["value"]).round(4), np.atleast_1d(of["se"]).round(4)
        print(f"{name:22} {' '.join(f'{v} +- {s}' for v, s in zip(value, se, strict=True))}")
    print(f"{len(found)} replicates in {time.perf_counter() - began:.0f} s")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
