"""Random intercept beside one-hot ridge: the identity, the scores by hand, the figure."""

# pyright: reportOptionalSubscript=false

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm import pooling
from jaxglmm.pooling import _auc, _size_classes, _without_bars


@pytest.fixture(scope="module")
def gaussian():
    """40 groups of 2 to 12 rows."""
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(40), rng.integers(2, 13, size=40))
    x = rng.standard_normal(len(g))
    table = pd.DataFrame({"x": x, "g": g, "y": 1 + 0.5 * x + rng.standard_normal(40)[g] + rng.standard_normal(len(g))})
    return table, jg.compare_shrinkage("y ~ x + (1 | g)", table, folds=3)


def rows(found):
    return found.table.set_index("method")


def test_ridge_at_the_implied_lambda_gives_the_same_effects(gaussian):
    table, found = gaussian
    fit = found.fits["random intercept"]
    lam = rows(found).loc["random intercept", "lambda"]
    X = np.column_stack([np.ones(len(table)), table.x, table.g.to_numpy()[:, None] == np.arange(40)])
    ridge = np.linalg.solve(X.T @ X + np.diag([0.0, 0.0] + [lam] * 40), X.T @ table.y)
    np.testing.assert_allclose(found.groups["shrunken"], ridge[2:], atol=1e-9)
    assert fit.fixef["x"] == pytest.approx(ridge[1], abs=1e-9)
    tau2, sigma2 = fit.varcorr[0]["variance"], fit.dispersion["value"] ** 2
    np.testing.assert_allclose(found.groups["rho"], tau2 / (tau2 + sigma2 / found.groups["n"]), rtol=1e-9)
    own = (table.y - fit.predict(effects="population")).groupby(table.g).mean()
    np.testing.assert_allclose(found.groups["raw"], own, rtol=1e-8)


def test_partial_pooling_predicts_best(gaussian):
    table, found = gaussian
    scores = rows(found)
    assert list(scores.index) == [
        "random intercept", "ridge, lambda implied", "ridge, lambda by cross-validation", "no pooling",
        "complete pooling",
    ]  # fmt: skip
    assert scores.log_loss["random intercept"] < min(scores.log_loss["no pooling"], scores.log_loss["complete pooling"])
    assert scores.slope_all["no pooling"] < scores.slope_all["random intercept"]
    assert scores["lambda"]["no pooling"] == 0 and np.isinf(scores["lambda"]["complete pooling"])
    assert found.size_classes[0][0] == 2 and found.size_classes[-1][1] == table.groupby("g").size().max()
    # The loss of complete pooling by hand: the folds are those of the seed.
    order = np.random.default_rng(0).permutation(len(table))
    fold = np.empty(len(table), int)
    fold[order] = np.arange(len(table)) % 3
    loss = 0.0
    for k in range(3):
        train, test = table[fold != k], table[fold == k]
        slope, intercept = np.polyfit(train.x, train.y, 1)
        sigma2 = np.mean((train.y - intercept - slope * train.x) ** 2)
        loss += np.sum(0.5 * np.log(2 * np.pi * sigma2) + (test.y - intercept - slope * test.x) ** 2 / (2 * sigma2))
    assert scores.log_loss["complete pooling"] == pytest.approx(loss / len(table), rel=1e-9)


def test_the_random_intercept_is_scored_by_its_predictive_density(gaussian):
    """By dense linear algebra: y of a held-out row given the kept ones is normal, at the parameters of the fold."""
    table, found = gaussian
    order = np.random.default_rng(0).permutation(len(table))
    fold = np.empty(len(table), int)
    fold[order] = np.arange(len(table)) % 3
    loss = 0.0
    for k in range(3):
        train, test = table[fold != k], table[fold == k]
        fit = jg.fit("y ~ x + (1 | g)", train)
        (a, b), tau2, sigma2 = fit.fixef.values(), fit.varcorr[0]["variance"], fit.dispersion["value"] ** 2
        same = np.equal.outer(test.g.to_numpy(), train.g.to_numpy())
        V = tau2 * np.equal.outer(train.g.to_numpy(), train.g.to_numpy()) + sigma2 * np.eye(len(train))
        gain = tau2 * same @ np.linalg.inv(V)
        mean = a + b * test.x + gain @ (train.y - a - b * train.x)
        variance = tau2 + sigma2 - np.sum(gain * tau2 * same, 1)
        loss += np.sum(0.5 * np.log(2 * np.pi * variance) + (test.y - mean) ** 2 / (2 * variance))
    assert rows(found).log_loss["random intercept"] == pytest.approx(loss / len(table), rel=1e-6)


def test_the_edge_of_the_grid_is_told(gaussian, monkeypatch):
    table, found = gaussian
    assert not found.at_edge
    monkeypatch.setattr(pooling, "_GRID", np.array([3.0, 4.0]))
    with pytest.warns(jg.DataWarning, match="3 times the estimated one, is at the edge of the grid from 3 to 4"):
        assert jg.compare_shrinkage("y ~ x + (1 | g)", table, folds=3).at_edge


def test_a_figure_of_the_groups(gaussian, tmp_path):
    gaussian[1].plot(tmp_path / "pooling.png")
    assert (tmp_path / "pooling.png").stat().st_size > 10_000


def test_area_under_the_curve():
    y, score = np.array([0, 0, 1, 1, 0.0, 1]), np.array([0.1, 0.4, 0.35, 0.8, 0.4, 0.4])
    pairs = [(a > b) + 0.5 * (a == b) for a in score[y == 1] for b in score[y == 0]]
    assert _auc(y, score, np.ones(6)) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("sizes", "classes"),
    [
        ([7] * 30 + [1, 3, 5], [(1, 5), (7, 7)]),  # most groups of the largest size
        ([4] * 9, [(4, 4)]),
        ([1] * 12 + [2] * 6 + [12], [(1, 1), (2, 2), (12, 12)]),
    ],
)
def test_classes_by_size(sizes, classes):
    codes = np.repeat(np.arange(len(sizes)), sizes)
    of_row, found = _size_classes(codes)
    assert found == classes
    for c, (low, high) in enumerate(classes):
        np.testing.assert_array_equal(of_row == c, (np.repeat(sizes, sizes) >= low) & (np.repeat(sizes, sizes) <= high))


def test_a_formula_without_its_bars():
    assert _without_bars("y ~ a * b + (1 | g) + I(c + d)", ()) == "y ~ a * b + I(c + d)"
    assert _without_bars("y ~ (1 | g)", ()) == "y ~ 1"


def test_other_random_parts_are_refused(gaussian):
    table, _ = gaussian
    with pytest.raises(jg.DataError, match="one random intercept"):
        jg.compare_shrinkage("y ~ x + (x | g)", table)
    with pytest.raises(jg.DataError, match="estimated as zero"):
        flat = table.assign(y=np.random.default_rng(7).standard_normal(len(table)))
        flat["y"] -= flat.groupby("g").y.transform("mean")
        jg.compare_shrinkage("y ~ x + (1 | g)", flat)


def test_hardly_any_shrinkage_is_no_sign_of_an_infinite_variance():
    """However large the standard deviation that is held: the fit is the one-hot ridge by dense Newton."""
    rng = np.random.default_rng(1)
    g, y = np.repeat(np.arange(12), 10), rng.integers(0, 2, 120)
    fit = jg.fit("y ~ 1 + (1 | g)", {"y": y, "g": g}, family="binomial", method="joint", theta={"g": 300.0})
    Z = np.column_stack([np.ones(120), g[:, None] == np.arange(12)])
    ridge, coef = np.diag([0.0] + [300.0**-2] * 12), np.zeros(13)
    for _ in range(30):
        mean = 1 / (1 + np.exp(-Z @ coef))
        hessian = Z.T @ ((mean * (1 - mean))[:, None] * Z) + ridge
        coef += np.linalg.solve(hessian, Z.T @ (y - mean) - ridge @ coef)
    np.testing.assert_allclose(fit.ranef("g")["estimate"], coef[1:], atol=1e-6)
    assert fit.convergence.converged
