"""Features of IDs in a second stage: does leakage hurt, and does leaving folds out cure it?

Two-stage simulation: members with about three rows each and a strong effect, four other informative features, a
boosted second stage. The ID becomes a feature in five ways; the oracle knows the members' effects. Training scores
beside test scores show who was flattered by the response in its own feature.

    python -m bench.studies.encoder --ids 100000 --seeds 5 --out encoder-study
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


WAYS = ("without the ID", "in sample", "leave one out", "out of fold", "TargetEncoder", "oracle")


def simulate(n_ids: int, seed: int):
    """Rows (table, y, effect) of members with sizes 1 + NegativeBinomial(2, 1/2); a third of the rows are for tests."""
    rng = np.random.default_rng(seed)
    sizes = 1 + rng.negative_binomial(2, 0.5, n_ids)
    codes = rng.permutation(np.repeat(np.arange(n_ids), sizes))
    n = len(codes)
    effect = rng.normal(0, 1.5, n_ids)[codes]
    X = pd.DataFrame(rng.normal(0, 1, (n, 4)), columns=["a", "b", "c", "d"])
    eta = -0.5 + effect + 0.8 * X["a"] - 0.6 * X["b"] * (X["c"] > 0) + 0.5 * np.sin(2 * X["d"])
    y = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int)
    return X, codes, np.asarray(y), effect, rng.random(n) < 1 / 3


def features(way, codes, y, effect, test, seed):
    """Features (training rows, test rows) of the ID; None without them."""
    from sklearn.preprocessing import TargetEncoder

    from jaxglmm.sklearn import RandomEffectEncoder

    train = ~test
    ids = codes[:, None]
    if way == "without the ID":
        return np.zeros((train.sum(), 0)), np.zeros((test.sum(), 0))
    if way == "oracle":
        return effect[train, None], effect[test, None]
    if way == "TargetEncoder":
        encoder = TargetEncoder(cv=5, random_state=seed)
        return encoder.fit_transform(ids[train], y[train]), encoder.transform(ids[test])
    encoder = RandomEffectEncoder("loo" if way == "leave one out" else 5, random_state=seed)
    if way == "in sample":
        encoder.fit(ids[train], y[train])
        return encoder.transform(ids[train]), encoder.transform(ids[test])
    return encoder.fit_transform(ids[train], y[train]), encoder.transform(ids[test])


def study(n_ids: int, seeds: int) -> list[dict]:
    """One record a seed and way: training and test log loss and AUC."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import log_loss, roc_auc_score

    found = []
    for seed in range(seeds):
        X, codes, y, effect, test = simulate(n_ids, seed)
        for way in WAYS:
            first, second = features(way, codes, y, effect, test, seed)
            parts = {"train": np.hstack([X[~test], first]), "test": np.hstack([X[test], second])}
            model = HistGradientBoostingClassifier(random_state=seed).fit(parts["train"], y[~test])
            record = {"seed": seed, "way": way}
            for part, rows in (("train", ~test), ("test", test)):
                p = model.predict_proba(parts[part])[:, 1]
                record |= {f"{part}_log_loss": log_loss(y[rows], p), f"{part}_auc": roc_auc_score(y[rows], p)}
            print(json.dumps(record), flush=True)
            found.append(record)
    return found


def draw(found: list[dict], path) -> None:
    """Training and test scores of each way, one point a seed."""
    import matplotlib.pyplot as plt

    table = pd.DataFrame(found)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axis, score, label in zip(axes, ("log_loss", "auc"), ("log loss (less is better)", "AUC"), strict=True):
        for part, color, marker in (("train", "tab:orange", "o"), ("test", "tab:blue", "D")):
            rows = [WAYS.index(way) for way in table["way"]]
            axis.plot(table[f"{part}_{score}"], rows, marker, color=color, alpha=0.6)
        axis.set_xlabel(label)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_yticks(range(len(WAYS)), WAYS)
    axes[0].invert_yaxis()
    axes[1].legend(["training rows", "test rows"], loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_leak(path) -> None:
    """The mean of 12 members' effects in each of their 20 rows, rows of either response apart: without the row itself,
    and without its fold."""
    import warnings

    from matplotlib.figure import Figure

    from jaxglmm.sklearn import RandomEffectEncoder

    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(400), 20)
    y = (rng.random(8000) < 1 / (1 + np.exp(-rng.normal(0, 1, 400)[codes]))).astype(int)
    shown = codes < 12
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axis, cv, title in zip(
        figure.subplots(1, 2, sharey=True), ("loo", 5), ("without the row itself", "without its fold"), strict=True
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean = RandomEffectEncoder(cv, features=("mean",), random_state=0).fit_transform(codes[:, None], y)[:, 0]
        for value, color, shift in ((0, "#c8553d", -0.12), (1, "#20639b", 0.12)):
            rows = shown & (y == value)
            axis.plot(
                codes[rows] + shift, mean[rows], "o", ms=4, alpha=0.6, color=color, label=f"rows with y = {value}"
            )
        axis.set(title=title, xlabel="member", xticks=range(12))
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("mean of the member's effect")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("encoder-study"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw_leak(arguments.out / "leave-one-out.png")
    found = study(arguments.ids, arguments.seeds)
    (arguments.out / "encoder.json").write_text(json.dumps(found, indent=1))
    draw(found, arguments.out / "encoder.png")
    means: Any = pd.DataFrame(found).drop(columns="seed").groupby("way").mean()
    print(means.loc[list(WAYS)].round(4).to_string())


if __name__ == "__main__":
    main()
