"""What a million groups cost beyond their fit: ranks, r-values, a caterpillar plot, an encoder. One process, in a row.

Binary rows, three a group on average, five columns; everything is called once before at a smaller size, so that
imports and most compilations are behind.

    python -m bench.group_effects --groups 1000000
"""

import argparse
import time
from pathlib import Path

import numpy as np

import jaxglmm as jg


def rows_of(groups: int, rng) -> dict[str, np.ndarray]:
    """Sizes 1 + NegativeBinomial(2, 1/2), in random order."""
    member = rng.permutation(np.repeat(np.arange(groups), 1 + rng.negative_binomial(2, 0.5, groups)))
    X = {f"x{j}": rng.standard_normal(len(member)) for j in range(5)}
    eta = -0.5 + rng.standard_normal(groups)[member] + 0.3 * sum(X.values())
    return X | {"member": member, "y": (rng.random(len(member)) < 1 / (1 + np.exp(-eta))) * 1.0}


def measure(groups: int, encoder: bool, picture: Path | None) -> dict[str, float]:
    """Wall seconds of each step."""
    data, found = rows_of(groups, np.random.default_rng(0)), {}

    def timed(name, work):
        began = time.perf_counter()
        out = work()
        found[name] = time.perf_counter() - began
        return out

    formula = "y ~ x0 + x1 + x2 + x3 + x4 + (1 | member)"
    fit = timed("fit", lambda: jg.fit(formula, data, family="binomial"))
    timed("rank", lambda: fit.rank())
    timed("rank with r-values", lambda: fit.rank(r_values=True))
    if encoder:
        from jaxglmm.sklearn import RandomEffectEncoder

        ids, y = data["member"][:, None], data["y"]
        null = {"member": data["member"], "y": y}
        alone = lambda: jg.fit("y ~ 1 + (1 | member)", null, family="binomial", n_agq=15)
        alone()  # compiles for this size
        alone = timed("fit of the IDs alone", alone)
        timed("their posteriors", lambda: alone.state.posteriors[0])
        timed("encoder, 5 folds", lambda: RandomEffectEncoder(cv=5, random_state=0).fit_transform(ids, y))
    if picture is not None:
        from jaxglmm.plots import caterpillar

        timed("caterpillar", lambda: caterpillar(fit, path=picture))
    return found


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--encoder", action="store_true")
    parser.add_argument("--picture", type=Path, help="file for the caterpillar plot")
    options = parser.parse_args()
    measure(20_000, options.encoder, None)
    for name, seconds in measure(options.groups, options.encoder, options.picture).items():
        print(f"{name}: {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
