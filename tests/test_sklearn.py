"""The estimators: the same numbers as `jaxglmm.fit`, in pipelines and searches, and scikit-learn's own checks."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest

import jaxglmm as jg


sklearn = pytest.importorskip("sklearn")

from sklearn.compose import make_column_transformer  # noqa: E402
from sklearn.model_selection import GridSearchCV, GroupKFold  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from jaxglmm.errors import ConvergenceWarning, DataError  # noqa: E402
from jaxglmm.sklearn import GLMMClassifier, GLMMRegressor  # noqa: E402


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    codes = rng.permutation(np.repeat(np.arange(50), 6))
    X = pd.DataFrame({"age": rng.normal(50, 9, 300), "ward": rng.choice(["a", "b"], 300), "member": codes})
    eta = (X["age"] - 50) / 9 + rng.normal(0, 1, 50)[codes]
    y = np.where(rng.random(300) < 1 / (1 + np.exp(-eta)), "sick", "well")
    return X, y, np.asarray(eta + rng.normal(0, 0.5, 300))


def test_a_classifier_predicts_what_the_fit_predicts(data):
    X, y, _ = data
    model = GLMMClassifier(groups="member", method="laplace").fit(X, y)
    fit = jg.fit("y ~ age + ward + (1 | member)", X.assign(y=(y == "well") * 1), family="binomial", method="laplace")
    new = X.head(5).assign(member=[*X["member"][:4], 999])
    expected = fit.predict(new)
    np.testing.assert_allclose(model.predict_proba(new), np.column_stack([1 - expected, expected]), rtol=1e-9)
    np.testing.assert_allclose(model.decision_function(new), np.log(expected / (1 - expected)), rtol=1e-9)
    assert list(model.predict(new)) == list(np.where(expected > 0.5, "well", "sick"))
    assert list(model.classes_) == ["sick", "well"]
    np.testing.assert_allclose(list(model.fit_.fixef.values()), list(fit.fixef.values()), rtol=1e-8)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(new), model.predict_proba(new))


def test_weights_of_a_classifier_repeat_rows(data):
    X, y, _ = data
    times = np.random.default_rng(0).integers(0, 3, len(y))
    weighted = GLMMClassifier(groups="member", method="laplace").fit(X, y, sample_weight=times)
    rows = np.repeat(np.arange(len(y)), times)
    repeated = GLMMClassifier(groups="member", method="laplace").fit(X.iloc[rows], y[rows])
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6)


def test_weights_of_a_regressor(data):
    """A row counts several times, with groups and without."""
    X, _, y = data
    times = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], 100))
    rows = np.repeat(np.arange(len(y)), times)
    for groups in (None, "member"):
        columns = X[["age", "member"]] if groups else X[["age"]]
        weighted = GLMMRegressor(groups=groups).fit(columns, y, sample_weight=times)
        repeated = GLMMRegressor(groups=groups).fit(columns.iloc[rows], y[rows])
        np.testing.assert_allclose(weighted.predict(columns), repeated.predict(columns), rtol=1e-6)
    polars = GLMMRegressor(groups="member").fit(pl.from_pandas(X[["age", "member"]]), y, sample_weight=times)
    np.testing.assert_allclose(polars.predict(X[["age", "member"]]), weighted.predict(columns), rtol=1e-9)
    with pytest.raises(DataError, match=r"sample_weight 0\.5: .*whole number of times"):
        GLMMRegressor(groups="member").fit(X[["age", "member"]], y, sample_weight=np.full(300, 0.5))
    with pytest.raises(ValueError, match="at least one non-zero"):
        GLMMRegressor().fit(X[["age"]], y, sample_weight=np.zeros(300))


def test_a_regressor_takes_positions_of_an_array_and_tables_of_other_kinds(data):
    X, _, y = data
    numbers = X[["age", "member"]]
    by_name = GLMMRegressor(groups=["member"]).fit(numbers, y)
    fit = jg.fit("y ~ age + (1 | member)", numbers.assign(y=y))
    np.testing.assert_allclose(by_name.predict(numbers), fit.predict(), rtol=1e-9)
    by_position = GLMMRegressor(groups=1).fit(numbers.to_numpy(), y)
    np.testing.assert_allclose(by_position.predict(numbers.to_numpy()), fit.predict(), rtol=1e-9)
    other = GLMMRegressor(groups="member").fit(pl.from_pandas(numbers), y)
    np.testing.assert_allclose(other.predict(pl.from_pandas(numbers)), fit.predict(), rtol=1e-9)


@pytest.mark.parametrize("age", ["a", "Q", "y", "b-foo", "Sprout Length", "a:b"])
def test_columns_keep_their_names(data, age):
    X, _, y = data
    numbers = X[["age", "member"]].rename(columns={"age": age, "member": "g"})
    model = GLMMRegressor(groups="g").fit(numbers, y)
    assert list(model.fit_.fixef) == ["Intercept", age] and list(model.fit_.groups) == ["g"]
    plain = GLMMRegressor(groups="member").fit(X[["age", "member"]], y)
    np.testing.assert_allclose(model.predict(numbers), plain.predict(X[["age", "member"]]), rtol=1e-9)


def test_classes_for_a_regressor_and_three_for_a_classifier(data):
    X, _, y = data
    words = np.array(["low", "middle", "high"])[np.digitize(y, np.quantile(y, [0.3, 0.6]))]
    with pytest.raises(DataError, match=r"y holds classes.*GLMMClassifier"):
        GLMMRegressor().fit(X[["age"]], words)
    with pytest.raises(DataError, match=r"3 classes: wrap it in sklearn\.multiclass.OneVsRestClassifier"):
        GLMMClassifier().fit(X[["age"]], words)


def test_in_a_pipeline_and_a_grid_search(data):
    X, _, y = data
    scaled = make_column_transformer((StandardScaler(), ["age"]), remainder="passthrough")
    scaled.set_output(transform="pandas").verbose_feature_names_out = False
    model = make_pipeline(scaled, GLMMRegressor(groups="member"))
    grid = {"glmmregressor__penalty": [jg.Ridge(0.01), jg.Ridge(100.0)]}
    search = GridSearchCV(model, grid, cv=GroupKFold(3)).fit(X, y, groups=X["member"])
    assert search.best_params_["glmmregressor__penalty"].lam == 0.01
    age = (X["age"] - X["age"].mean()) / X["age"].std(ddof=0)
    fit = jg.fit("y ~ age + ward + (1 | member)", X.assign(y=y, age=age))
    found = GLMMRegressor(groups="member").fit(scaled.fit_transform(X), y)
    np.testing.assert_allclose(list(found.fit_.fixef.values()), list(fit.fixef.values()), atol=1e-8)


def test_columns_without_an_estimate_get_a_small_ridge(data):
    X, _, y = data
    twice = X[["age", "member"]].assign(again=X["age"], one=1.0)
    with pytest.warns(ConvergenceWarning, match=r"no unique finite estimate .*ridge"):
        model = GLMMRegressor(groups="member").fit(twice, y)
    plain = GLMMRegressor(groups="member").fit(twice[["age", "member"]], y)
    np.testing.assert_allclose(model.predict(twice), plain.predict(twice[["age", "member"]]), atol=1e-3)
    effects = model.fit_.fixef
    np.testing.assert_allclose(effects["age"], effects["again"], rtol=1e-4)


def sigma(model):
    assert model.fit_.dispersion is not None
    return model.fit_.dispersion["value"]


def exact_data():
    rng = np.random.default_rng(5)
    sizes = rng.integers(2, 7, 15)
    codes, b, x = np.repeat(np.arange(15), sizes), rng.normal(0, 2, 15), rng.normal(size=sizes.sum())
    return pd.DataFrame({"x": x, "g": codes}), b, codes


def test_a_response_that_columns_fit_exactly_is_fitted_by_least_squares():
    X, *_ = exact_data()
    y = 3 - 2 * X["x"]
    for groups, columns in ((None, X[["x"]]), ("g", X)):
        with pytest.warns(ConvergenceWarning, match="fits the response exactly"):
            model = GLMMRegressor(groups=groups).fit(columns, y)
        np.testing.assert_allclose(model.predict(columns), y, atol=1e-12)
        assert 0 < sigma(model) < 1e-3
    assert model.fit_.varcorr[0]["sd"] == 0
    with pytest.raises(DataError, match="fit the response perfectly"):
        jg.fit("y ~ x", X.assign(y=y))
    with pytest.warns(ConvergenceWarning, match="exactly .*same value"):
        assert (GLMMRegressor().fit(X[["x"]], np.full(len(X), 2.0)).predict(X[["x"]]) == 2).all()


def test_a_response_that_groups_determine_is_fitted_by_their_means():
    """The limit without residual variance: slope within groups, intercept and sd those of the groups' own means."""
    X, b, codes = exact_data()
    y = 1 + 0.5 * X["x"] + b[codes]
    with pytest.warns(ConvergenceWarning, match="fits the response exactly"):
        model = GLMMRegressor(groups="g").fit(X, y)
    np.testing.assert_allclose(model.predict(X), y, atol=1e-6)
    np.testing.assert_allclose(list(model.fit_.fixef.values()), [1 + b.mean(), 0.5], atol=1e-6)
    np.testing.assert_allclose(model.fit_.varcorr[0]["sd"], b.std(), rtol=1e-6)
    new = pd.DataFrame({"x": [1.0], "g": [99]})
    np.testing.assert_allclose(model.predict(new), 1.5 + b.mean(), atol=1e-6)


@pytest.mark.parametrize("p", [9, 10, 30])
def test_as_many_columns_as_rows(p):
    """Ten rows: nine columns and an intercept pass through them, more nearly so with the least coefficients."""
    rng = np.random.default_rng(6)
    X, y = rng.normal(size=(10, p)), rng.normal(size=10)
    with pytest.warns(ConvergenceWarning):
        model = GLMMRegressor().fit(X, y)
    np.testing.assert_allclose(model.predict(X), y, atol=2e-3)
    scaled = np.column_stack([np.ones(10), (X - X.mean(0)) / X.std(0)])
    factor = 1e-4 * np.var(y) if p > 9 else 0.0
    penalty = 10 * factor * np.diag([0.0] + [1.0] * p)
    beta = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ y)
    np.testing.assert_allclose(model.predict(X), scaled @ beta, atol=1e-7)
    if p > 9:
        residual = y - scaled @ beta
        np.testing.assert_allclose(sigma(model), np.sqrt(np.mean(residual**2)), rtol=1e-4)


def test_what_cannot_be_fitted_is_named(data):
    X, _, numbers = data
    with pytest.raises(DataError, match="'doctor' is not a column of X"):
        GLMMRegressor(groups="doctor").fit(X, numbers)
    with pytest.raises(DataError, match="Only binary classification"):
        GLMMClassifier().fit(X[["age"]], np.arange(300) % 3)
    with pytest.raises(DataError, match="one class only"):
        GLMMClassifier().fit(X[["age"]], np.zeros(300))
    with pytest.raises(DataError, match="GLMMClassifier"):
        GLMMRegressor(family="binomial").fit(X[["age"]], numbers)
    with pytest.raises(DataError, match=r"1 rows of X have missing values.*age"):
        GLMMRegressor().fit(X[["age"]].mask(X["age"] == X["age"].max()), numbers)


@pytest.mark.filterwarnings("ignore")  # separated and collinear data get their penalty with a warning
@pytest.mark.parametrize("estimator", [GLMMRegressor(), GLMMClassifier()], ids=["regressor", "classifier"])
def test_scikit_learns_checks(estimator):
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"} == {}
