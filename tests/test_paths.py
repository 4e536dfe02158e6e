"""Paths of penalised fits: glmnet's stored ones, optimality, cross-validation, wide and sparse columns."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import jaxglmm as jg
from jaxglmm.design.wide import DensePart, IndexPart, MatrixPart, WideColumns, index_moments, matrix_moments


CONTRACEPTION = "use ~ age + I(age**2) + urban + livch"


@pytest.mark.reference
@pytest.mark.parametrize("name", ["ridge", "lasso", "elasticnet", "lasso_all"])
def test_glmnet(reference_dir, name):
    saved = json.loads((reference_dir / f"glmnet_Contraception_{name}.json").read_text())
    data = pd.read_csv(reference_dir / "Contraception.csv")
    factors = None if name == "lasso_all" else {"age": 0, "I(age ** 2)": 0, "urban": 0, "livch": 0}
    path = jg.fit_path(
        CONTRACEPTION, data, family="binomial", alpha=saved["alpha"], lambdas=[p["lambda"] for p in saved["path"]],
        factors=factors, standardize=False, dummies=["district"],
    )  # fmt: skip
    np.testing.assert_allclose(path.coef[:, 0], [p["intercept"] for p in saved["path"]], atol=1e-6)
    np.testing.assert_allclose(path.coef[:, 1:], [p["coef"] for p in saved["path"]], atol=1e-6)
    assert path.kkt.max() < 1e-6 and path.converged.all()
    assert path.names[-1] == "district[61]"


@pytest.mark.reference
def test_ridge_at_the_implied_lambda_is_the_joint_mode(reference_dir):
    saved = json.loads((reference_dir / "glmnet_blup_identity.json").read_text())["logistic_joint_mode"]
    data = pd.read_csv(reference_dir / "Contraception.csv")
    fit = jg.fit(
        f"{CONTRACEPTION} + (1 | district)", data, family="binomial", method="joint", theta={"district": saved["tau"]}
    )
    np.testing.assert_allclose([fit.fixef["Intercept"], *list(fit.fixef.values())[1:], *fit.ranef()["estimate"]],
                               [saved["newton_intercept"], *saved["newton_coef"]], atol=1e-9)  # fmt: skip


@pytest.mark.reference
def test_best_linear_unbiased_predictions_are_a_ridge(reference_dir):
    for saved in json.loads((reference_dir / "glmnet_blup_identity.json").read_text())["gaussian"]:
        data = pd.read_csv(reference_dir / saved["data"])
        fit = jg.fit(saved["formula"], data, reml=True)
        group = next(iter(fit.groups))
        X = np.column_stack([np.ones(len(data)), *([data["Days"]] if "Days" in saved["formula"] else [])])
        Z = (data[group].to_numpy()[:, None] == np.unique(data[group])) * 1.0
        response = data[saved["formula"].split(" ~ ")[0]].to_numpy()
        lam = (fit.dispersion or {})["value"] ** 2 / fit.varcorr[0]["variance"]
        D = np.column_stack([X, Z])
        ridge = np.linalg.solve(D.T @ D + np.diag([0.0] * X.shape[1] + [lam] * Z.shape[1]), D.T @ response)
        np.testing.assert_allclose(list(fit.fixef.values()), ridge[: X.shape[1]], rtol=1e-9)
        np.testing.assert_allclose(
            fit.ranef()["estimate"], ridge[X.shape[1] :], rtol=1e-9, atol=1e-9 * np.abs(ridge).max()
        )


@pytest.fixture(scope="module")
def members():
    """400 members with 3 rows, 8 columns of which 3 matter, a categorical of 12 levels."""
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(400), 3)
    X = rng.standard_normal((1200, 8))
    eta = -0.5 + X @ [0.8, -0.6, 0.5, 0, 0, 0, 0, 0] + 0.8 * rng.standard_normal(400)[g]
    table = pd.DataFrame(X, columns=[f"x{j}" for j in range(8)])
    return table.assign(g=g, y=(rng.random(1200) < 1 / (1 + np.exp(-eta))) * 1.0, zip=rng.integers(12, size=1200))


FORMULA = "y ~ " + " + ".join(f"x{j}" for j in range(8)) + " + (1 | g)"


@pytest.fixture(scope="module")
def path(members):
    return jg.fit_path(FORMULA, members, family="binomial", method="laplace", n_lambdas=12, lambda_min_ratio=0.01, cv=4)


def test_a_path_begins_where_the_first_column_enters(path, members):
    assert (path.coef[0, 1:] == 0).all() and (path.coef[1, 1:] != 0).any()
    null = jg.fit("y ~ 1 + (1 | g)", members, family="binomial", method="laplace")
    assert path.theta["g"][0] == pytest.approx(null.varcorr[0]["sd"], abs=1e-5)
    assert path.loglik[0] == pytest.approx(null.loglik, abs=1e-7)
    assert path.df[0] == 2 and path.kkt.max() <= 1e-6


def test_the_first_lambda_is_exact():
    """All coefficients are zero there, and not a hair below."""
    rng = np.random.default_rng(8)
    for case in range(4):
        X, g = rng.standard_normal((200, 3)), np.repeat(np.arange(50), 4)
        data = {"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "g": g, "y": (rng.random(200) < 0.3 + 0.2 * (g % 3)) * 1.0}
        options = {"family": "binomial", "method": "laplace", "alpha": 1.0 - 0.5 * (case % 2)}
        first = jg.fit_path("y ~ a + b + c + (1 | g)", data, n_lambdas=1, **options)
        below = jg.fit_path("y ~ a + b + c + (1 | g)", data, lambdas=first.lambdas * (1 - 1e-6), **options)
        assert (first.coef[0, 1:] == 0).all() and (below.coef[0, 1:] != 0).sum() == 1


def test_each_point_of_a_path_is_the_fit_with_that_penalty(path, members):
    for at in (4, 9):
        penalty = jg.ElasticNet(path.lambdas[at], standardize=True)
        fit = jg.fit(FORMULA, members, family="binomial", method="laplace", penalty=penalty)
        np.testing.assert_allclose(list(fit.fixef.values()), path.coef[at], atol=1e-7)
        assert fit.varcorr[0]["sd"] == pytest.approx(path.theta["g"][at], abs=1e-6)
        assert fit.loglik == pytest.approx(path.loglik[at], abs=1e-7) and fit.df == path.df[at]


def test_the_score_of_held_out_members_is_their_marginal_likelihood(path, members):
    """The fit of the other members, evaluated at the held-out ones by fits with everything held."""
    rng_fold = np.random.default_rng(0)
    order = rng_fold.permutation(400)
    fold = np.empty(400, int)
    fold[order] = np.arange(400) % 4
    held = fold[members.g] == 1
    at = 6
    sd = members.loc[:, "x0":"x7"].std(ddof=0) / members.loc[~held, "x0":"x7"].std(ddof=0)
    training = jg.fit_path(
        FORMULA, members[~held], family="binomial", method="laplace", lambdas=path.lambdas[: at + 1],
        factors=sd.to_dict(),  # the folds of a path are scaled by the columns of all rows
    )  # fmt: skip
    shift = members[held][list(training.names[1:])] @ training.coef[at, 1:]
    rest = members[held].assign(o=shift + training.coef[at, 0])
    alone = jg.fit(
        "y ~ 0 + offset(o) + (1 | g)", rest, family="binomial", method="laplace", theta={"g": training.theta["g"][at]}
    )
    assert path.cv.folds[at, 1] == pytest.approx(alone.loglik / held.sum(), abs=1e-7)


def test_folds_solved_together_are_folds_solved_alone(path, members):
    """Rows held out; each fold against a path of its own, of all rows with weights that leave its rows out."""
    fold = np.random.default_rng(2).integers(3, size=1200)
    sd = lambda w: members.loc[w > 0, "x0":"x7"].std(ddof=0)
    options = {"family": "binomial", "method": "laplace", "lambdas": [0.05, 0.01]}
    found: Any = jg.fit_path(FORMULA, members, cv=fold, **options).cv
    for k in range(3):
        w = (fold != k) * 1.0
        factors = (sd(np.ones(1200)) / sd(w)).to_dict()
        alone = jg.fit_path(FORMULA, members, weights=w, factors=factors, **options)
        shift = members.loc[:, "x0":"x7"] @ alone.coef[1, 1:] + alone.coef[1, 0]
        held = {"family": "binomial", "method": "laplace", "theta": {"g": alone.theta["g"][1]}, "offset": shift}
        every = jg.fit("y ~ 0 + (1 | g)", members, **held).loglik
        assert found.folds[1, k] == pytest.approx((every - alone.loglik[1]) / (fold == k).sum(), abs=1e-7)


def test_cross_validation_finds_what_matters(path):
    assert {"x0", "x1", "x2"} <= set(path.selected(path.cv.one_se))
    assert path.cv.lambda_1se >= path.cv.lambda_min == path.lambdas[path.best]
    assert path.cv.folds.shape == (12, 4)
    refit = path.refit(path.cv.one_se)
    assert {name for name, value in refit.fixef.items() if value} == set(path.selected(path.cv.one_se))
    assert refit.fixef["x0"] == pytest.approx(0.8, abs=4 * refit.fixef_se["x0"])
    assert "left out" in refit.summary().text


def test_a_picture_of_a_path(path, tmp_path):
    path.plot(tmp_path / "path.png")
    assert (tmp_path / "path.png").stat().st_size > 10_000


def test_sparse_and_index_columns_are_dense_ones(members):
    dense = pd.get_dummies(members["zip"], prefix="zip", dtype=float)
    options = {"family": "binomial", "lambdas": [0.02, 0.005, 0.002], "cv": None}
    formula = "y ~ x0 + x1"
    plain = jg.fit_path(f"{formula} + {' + '.join(dense)}", members.join(dense), **options)
    codes = jg.fit_path(formula, members, dummies=["zip"], **options)
    matrix = jg.fit_path(formula, members, X=sparse.csr_matrix(dense.to_numpy()), X_names=dense.columns, **options)
    array = jg.fit_path(formula, members, X=dense.to_numpy(), **options)
    for other in (codes, matrix, array):
        np.testing.assert_allclose(other.coef, plain.coef, atol=1e-8)
    assert codes.names[3] == "zip[0]" and matrix.names == plain.names and array.names[3] == "X0"
    truth = plain.refit(2)
    for other in (codes, matrix):
        refit = other.refit(2)
        chosen = {name: value for name, value in refit.fixef.items() if value}
        assert set(chosen) == set(other.selected(2)) and any("zip" in name for name in chosen)
        np.testing.assert_allclose(list(chosen.values()), [v for v in truth.fixef.values() if v], atol=1e-7)
        assert refit.loglik == pytest.approx(truth.loglik, abs=1e-7)
        new = members.head(4).assign(**dict.fromkeys((*other.names[3:], *dense), 0.0))
        np.testing.assert_allclose(refit.predict(new), truth.predict(new))


def test_wide_columns_agree_with_a_dense_matrix():
    rng = np.random.default_rng(0)
    dense, codes = rng.standard_normal((7, 3)), rng.integers(4, size=7)
    other, w = sparse.csc_matrix(rng.random((7, 5)) * (rng.random((7, 5)) < 0.4)), rng.random(7)
    array = 2000 + rng.standard_normal((7, 2))
    slot = rng.permutation(9)[:7]
    one_hot = (codes[:, None] == np.arange(4)) * 1.0
    whole = np.zeros((9, 14))
    blocks, matrices = [], (other.toarray(), one_hot, array)
    measured = (matrix_moments(other, w), index_moments(codes, 4, w), matrix_moments(array, w))
    for matrix, (mean, sd) in zip(matrices, measured, strict=True):
        np.testing.assert_allclose(mean, w @ matrix / w.sum())
        np.testing.assert_allclose(sd**2, w @ (matrix - mean) ** 2 / w.sum(), atol=1e-12)
        blocks.append((mean, np.where(sd > 0, sd, 1.0)))
    scaled = [dense, *((m - c) / s for m, (c, s) in zip(matrices, blocks, strict=True))]
    whole[slot] = np.column_stack(scaled)
    parts = (
        DensePart(whole[:, :3]), MatrixPart(other, slot, *blocks[0]), IndexPart(codes, slot, *blocks[1]),
        MatrixPart(array, slot, *blocks[2]),
    )  # fmt: skip
    columns = WideColumns(parts, slot, 9)
    v = np.zeros((9, 2))
    v[slot] = rng.standard_normal((7, 2))
    np.testing.assert_allclose(columns.against(v), whole.T @ v, atol=1e-9)
    for chosen in (np.array([1, 4, 9]), np.arange(14), np.array([0]), np.array([8, 11, 13])):
        np.testing.assert_allclose(columns.gather(chosen), whole[:, chosen], atol=1e-9)


def test_a_working_set_gives_what_all_columns_give(members, monkeypatch):
    from jaxglmm.optimise import working_set as module

    rng = np.random.default_rng(3)
    X = rng.standard_normal((1200, 60))
    options = {"family": "binomial", "method": "laplace", "n_lambdas": 8, "lambda_min_ratio": 0.1, "X": X}
    every = jg.fit_path("y ~ x0 + x1 + (1 | g)", members, **options)
    monkeypatch.setattr(module, "_LITTLE_X", 0)
    monkeypatch.setattr(module, "_LITTLE_WORK", 0)
    some = jg.fit_path("y ~ x0 + x1 + (1 | g)", members, **options)
    np.testing.assert_allclose(some.coef, every.coef, atol=1e-7)
    assert some.passes < every.passes and some.kkt.max() <= 1e-6


def test_residual_sums_of_squares_as_glmnet_has_them():
    """The lasso of a Gaussian model: its conditions by hand, with weights; fewer rows than columns."""
    rng = np.random.default_rng(4)
    X, w = rng.standard_normal((40, 60)), rng.random(40)
    y = 2 * X[:, 0] - X[:, 1] + rng.standard_normal(40)
    path = jg.fit_path("y ~ 1", {"y": y, "w": w}, X=X, scale="rss", weights="w", standardize=False, n_lambdas=10)
    for lam, coef, sigma in zip(path.lambdas, path.coef, path.dispersion, strict=True):
        r = y - coef[0] - X @ coef[1:]
        slope = -X.T @ (w * r) / w.sum()
        excess = np.where(coef[1:] != 0, np.abs(slope + lam * np.sign(coef[1:])), np.maximum(np.abs(slope) - lam, 0))
        assert excess.max() < 1e-8 and abs(w @ r) < 1e-7
        assert sigma**2 == pytest.approx(w @ r**2 / 40)


def test_the_end_of_a_path_without_a_penalty(members):
    """At lambda 0 a path is the fit without a penalty, and refuses what that refuses."""
    options = {"family": "binomial", "method": "laplace", "lambdas": [0.05, 0.01, 0.0]}
    path = jg.fit_path("y ~ x0 + x1 + (1 | g)", members, **options)
    fit = jg.fit("y ~ x0 + x1 + (1 | g)", members, family="binomial", method="laplace")
    np.testing.assert_allclose(path.coef[-1], list(fit.fixef.values()), atol=1e-7)
    hard = members.assign(same=members.x0, sign=members.y * 2 - 1, three=3.0)
    for column, error in (("same", jg.DataError), ("sign", jg.SeparationError), ("three", jg.DataError)):
        formula = f"y ~ x0 + {column} + (1 | g)"
        with pytest.raises(error, match=column):
            jg.fit_path(formula, hard, **options)
        before = jg.fit_path(formula, hard, **options | {"lambdas": [0.05, 0.01]})
        assert before.kkt.max() < 1e-8 and np.isfinite(before.coef).all()
    few = members[:30]
    with pytest.raises(jg.DataError, match="30 rows cannot determine 41"):
        jg.fit_path("y ~ 1 + (1 | g)", few, X=np.random.default_rng(0).standard_normal((30, 40)), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 2}, "alpha"),
        ({"n_lambdas": 0}, "n_lambdas"),
        ({"lambdas": [-1.0]}, "lambdas"),
        ({"lambda_min_ratio": 2}, "lambda_min_ratio"),
        ({"cv": 1}, "cv must lie"),
        ({"cv": [1, 2]}, "number of folds, or the fold"),
        ({"cv": 3, "cv_by": "weeks"}, "cv_by"),
        ({"scale": "rss"}, "gaussian"),
        ({"X": np.ones((3, 1))}, "X has 3 rows"),
        ({"X": np.full((1200, 1), np.nan)}, "missing or infinite"),
        ({"X": np.ones((1200, 1)), "X_names": ["a", "b"]}, "X_names"),
        ({"X": np.ones((1200, 1)), "X_names": ["x0"]}, "two columns 'x0'"),
        ({"dummies": ["zap"]}, "zip"),
        ({"factors": {"q": 1}}, "no column 'q'"),
        ({"factors": np.zeros(9)}, "nothing to penalise"),
        ({"method": "joint"}, "theta"),
    ],
)
def test_bad_paths_are_named(members, options, message):
    with pytest.raises(jg.DataError, match=message):
        jg.fit_path(FORMULA, members, family="binomial", **options)
