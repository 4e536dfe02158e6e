"""The encoder: features out of fold against separate fits, rows held out by time, scikit-learn's own checks."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest

import jaxglmm as jg


sklearn = pytest.importorskip("sklearn")

from sklearn.model_selection import KFold, RepeatedKFold  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from jaxglmm.errors import DataError, DataWarning  # noqa: E402
from jaxglmm.folds import effects_near  # noqa: E402
from jaxglmm.sklearn import RandomEffectEncoder  # noqa: E402


def members(n_groups=60, seed=0):
    """Binary rows of members with one to nine rows each, in random order, with a shop beside them."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, n_groups)
    codes = rng.permutation(np.repeat(np.arange(n_groups), sizes))
    effect = rng.normal(0, 1.2, n_groups)
    y = rng.random(len(codes)) < 1 / (1 + np.exp(0.3 - effect[codes]))
    shop = rng.choice(["north", "south", "west"], len(codes))
    return pd.DataFrame({"member": [f"m{c}" for c in codes], "shop": shop}), np.where(y, "yes", "no")


@pytest.fixture(scope="module")
def data():
    return members()


def test_features_of_all_rows_are_the_posterior_of_a_fit(data):
    X, y = data
    encoder = RandomEffectEncoder().set_output(transform="pandas").fit(X[["member"]], y)
    fit = jg.fit("y ~ 1 + (1 | member)", X.assign(y=(y == "yes") * 1.0), family="binomial", n_agq=15)
    effects = fit.ranef("member").set_index("level")
    found = encoder.transform(pd.DataFrame({"member": ["m1", "m7", "nobody", None]}))
    assert list(found.columns) == ["member_mean", "member_sd", "member_reliability", "member_log_count"]
    assert list(encoder.classes_) == ["no", "yes"]
    expected = effects.loc[["m1", "m7"], ["mean", "sd_mean", "reliability"]].to_numpy()
    np.testing.assert_allclose(found.to_numpy()[:2, :3], expected, rtol=1e-7)
    np.testing.assert_allclose(found["member_log_count"][:2], np.log1p(effects.loc[["m1", "m7"], "n"]))
    tau = fit.varcorr[0]["sd"]
    np.testing.assert_allclose(found.to_numpy()[2:], [[0, tau, 0, 0]] * 2, rtol=1e-7)


@pytest.mark.parametrize("family", ["binomial", "gaussian"])
def test_features_of_a_row_are_those_of_a_fit_without_its_fold(data, family):
    X, y = data
    rng = np.random.default_rng(1)
    y = (y == "yes") * 1.0 if family == "binomial" else (y == "yes") + rng.normal(0, 0.5, len(y))
    folds = KFold(3, shuffle=True, random_state=0)
    encoder = RandomEffectEncoder(folds, features=("mean", "sd"))
    found = encoder.fit_transform(X[["member"]], y)
    table = X.assign(y=y)
    train, test = next(folds.split(X))
    fit = jg.fit("y ~ 1 + (1 | member)", table.iloc[train], family=family, n_agq=15 if family == "binomial" else None)
    effects = fit.ranef().set_index("level")[["mean", "sd_mean"]]
    expected = effects.reindex(table["member"].iloc[test]).fillna({"mean": 0, "sd_mean": fit.varcorr[0]["sd"]})
    np.testing.assert_allclose(found[test], expected, atol=1e-7)


def test_no_feature_moves_with_the_response_beside_it(data):
    """Changing a row's response changes the features of other folds' rows, never its own fold's."""
    X, y = data
    folds = KFold(4)
    encode = lambda y: RandomEffectEncoder(folds).fit_transform(X[["member"]], y)
    other = y.copy()
    other[3] = "no" if y[3] == "yes" else "yes"
    held = next(test for _, test in folds.split(X) if 3 in test)
    moved = np.abs(encode(y) - encode(other)).max(axis=1) > 1e-9
    assert not moved[held].any()
    assert moved[np.setdiff1d(np.arange(len(y)), held)].all()


def test_leaving_out_single_rows_is_the_posterior_of_the_other_rows(data):
    X, y = data
    with pytest.warns(DataWarning, match="fall as the row's own response rises"):
        found = RandomEffectEncoder("loo").fit_transform(X[["member"]], y)
    fit = jg.fit("y ~ 1 + (1 | member)", X.assign(y=(y == "yes") * 1.0), family="binomial", n_agq=15)
    counts = X["member"].map(X["member"].value_counts()).to_numpy()
    assert (counts == 1).any()
    np.testing.assert_allclose(found[counts == 1, 0], 0, atol=1e-12)  # nothing is known of a member without rows
    row = int(np.flatnonzero(counts > 3)[0])
    eta, tau = next(iter(fit.fixef.values())), fit.varcorr[0]["sd"]
    others = (X["member"] == X["member"][row]).to_numpy() & (np.arange(len(y)) != row)
    b = np.linspace(-9 * tau, 9 * tau, 4001)  # brute force
    sign = np.where(y[others] == "yes", 1, -1)
    density = np.exp(-0.5 * (b / tau) ** 2 - np.logaddexp(0, -sign[:, None] * (eta + b)).sum(0))
    mean = np.sum(b * density) / np.sum(density)
    sd = np.sqrt(np.sum((b - mean) ** 2 * density) / np.sum(density))
    np.testing.assert_allclose(found[row], [mean, sd, 1 - sd**2 / tau**2, np.log(counts[row])], rtol=1e-7)


def test_leaving_out_single_rows_encodes_the_response():
    """Within an ID the feature falls strictly as the row's own response rises; out of fold it does not tell."""
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(200), 20)
    y = rng.random(4000) < 1 / (1 + np.exp(-rng.normal(0, 1, 200)[codes]))
    mixed = np.isin(codes, [g for g in range(200) if 0 < y[codes == g].sum() < 20])
    assert mixed.mean() > 0.9
    told = {}
    for cv in ("loo", 5):
        encoder = RandomEffectEncoder(cv, features=("mean",), random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean = encoder.fit_transform(codes[:, None], y)[:, 0]
        middle = np.array([0.5 * (mean[codes == g].min() + mean[codes == g].max()) for g in range(200)])
        # What a learner that can tell IDs apart makes of one split within each.
        told[cv] = np.mean((mean < middle[codes])[mixed] == y[mixed])
    assert told["loo"] == 1
    assert told[5] < 0.8


def test_theta_of_all_rows_may_serve_the_folds(data):
    X, y = data
    encoder = RandomEffectEncoder(KFold(3), theta="full", features=("sd", "log_count"))
    found = encoder.fit_transform(X[["member"]], y)
    unseen = found[:, 1] == 0
    assert unseen.any()
    np.testing.assert_allclose(found[unseen, 0], encoder.tau_["member"], rtol=1e-6)


def test_by_time_only_earlier_rows_count(data):
    X, y = data
    day = np.arange(len(y)) % 50
    found = RandomEffectEncoder(cv=4, time="day", features=("mean", "log_count")).fit_transform(
        X[["member"]].assign(day=pd.Timestamp("2026-01-01") + pd.to_timedelta(day, unit="D")), y
    )
    blocks = np.searchsorted(np.unique(np.sort(day)[[len(y) * k // 5 for k in range(1, 5)]]), day, side="right")
    assert (found[blocks == 0] == 0).all()
    last = blocks == 4
    earlier = X["member"][~last].value_counts()
    np.testing.assert_allclose(found[last, 1], np.log1p(X["member"][last].map(earlier).fillna(0)))


def test_several_columns_and_tables_of_other_kinds(data):
    X, y = data
    frame = pl.from_pandas(X)
    encoder = RandomEffectEncoder(random_state=0).set_output(transform="polars")
    found = encoder.fit_transform(frame, y)
    assert isinstance(found, pl.DataFrame) and found.shape == (len(y), 8)
    again = RandomEffectEncoder(random_state=0).fit_transform(X.astype("category"), y)
    np.testing.assert_array_equal(found.to_numpy(), again)
    codes = np.unique(X["member"], return_inverse=True)[1]
    array = RandomEffectEncoder(random_state=0).fit_transform(codes[:, None], y)
    np.testing.assert_allclose(array, again[:, :4], atol=1e-9)


@pytest.mark.parametrize("names", [[0, 1, 2], ["low", "middle", "high"], [1.0, 2.0, 5.0]])
def test_more_than_two_classes_are_encoded_one_against_the_rest(data, names):
    X, _ = data
    rng = np.random.default_rng(8)
    lean = dict(zip(sorted(set(X["member"])), rng.normal(size=X["member"].nunique()), strict=True))
    score = X["member"].map(lean).to_numpy() + rng.normal(size=len(X))
    y = np.array(names)[np.digitize(score, [-0.5, 0.6])]
    encoder = RandomEffectEncoder(cv=3, random_state=0, method="laplace", n_agq=None)
    found = encoder.fit_transform(X[["member"]], y)
    assert list(encoder.classes_) == sorted(names)
    assert list(encoder.get_feature_names_out())[::4] == [f"member_{label}_mean" for label in sorted(names)]
    assert list(encoder.tau_) == [f"member_{label}" for label in sorted(names)]
    for k, label in enumerate(sorted(names)):
        alone = RandomEffectEncoder(cv=3, random_state=0, method="laplace", n_agq=None)
        alone.fit(X[["member"]], y == label)
        np.testing.assert_allclose(
            encoder.transform(X[["member"]])[:, 4 * k : 4 * k + 4], alone.transform(X[["member"]]), rtol=1e-8
        )
    assert found.shape == (len(y), 12) and np.isfinite(found).all()
    if isinstance(names[0], str):
        with pytest.raises(DataError, match=r"holds classes, such as .*gaussian models numbers"):
            RandomEffectEncoder(family="gaussian").fit(X[["member"]], y)


def test_many_whole_numbers_are_asked_about(data):
    X, _ = data
    y = np.random.default_rng(9).poisson(30, len(X))
    with pytest.raises(DataError, match=r"values that read as classes.*family='gaussian'"):
        RandomEffectEncoder().fit(X[["member"]], y)
    assert RandomEffectEncoder(family="gaussian").fit(X[["member"]], y).tau_["member"] >= 0


def test_what_cannot_be_encoded_is_named(data):
    X, y = data
    with pytest.raises(DataError, match="holds some rows out twice"):
        RandomEffectEncoder(RepeatedKFold(n_splits=2, n_repeats=2)).fit_transform(X, y)
    with pytest.raises(DataError, match="features must be some of"):
        RandomEffectEncoder(features=("median",)).fit(X, y)
    with pytest.raises(DataError, match="time='week' is not a column of X"):
        RandomEffectEncoder(time="week").fit_transform(X, y)
    with pytest.warns(DataWarning, match="column 'own'.*says? nothing about a variance between IDs"):
        RandomEffectEncoder().fit(pd.DataFrame({"own": np.arange(len(y))}), y)
    determined = (X["member"].str[-1] > "4") * 1.0
    with pytest.warns(DataWarning, match="every ID gets its own mean"):
        encoder = RandomEffectEncoder(family="gaussian").fit(X[["member"]], determined)
    assert np.ptp(encoder.transform(X[["member"]])[:, 0]) == 1


# `fit_transform` is out of fold by design, so that it is not `fit` and `transform` (scikit-learn's own encoder by the
# response has the same exception).
EXPECTED = {
    name: "fit_transform is out of fold"
    for name in ("check_transformer_general", "check_transformer_data_not_an_array")
}


@pytest.mark.filterwarnings("ignore")  # the checks' data are degenerate, and said to be so
def test_scikit_learns_checks_of_a_transformer():
    results = check_estimator(
        RandomEffectEncoder(cv=2, method="laplace", n_agq=None), expected_failed_checks=EXPECTED, on_fail=None
    )
    assert {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"} == {}


@pytest.mark.parametrize("theta", ["fold", "full"])
def test_folds_of_many_ids_begin_at_the_fit_of_all_rows(theta, monkeypatch):
    """... and end within a few thousandths of a standard error of the fits that begin anew."""
    X, y = members(3000, seed=2)
    encode = lambda: RandomEffectEncoder(KFold(3), theta=theta, features=("mean", "sd")).fit_transform(X[["member"]], y)
    found, refits = [], []
    monkeypatch.setattr(
        "jaxglmm.encoder.effects_near", lambda *a, **k: refits.append(effects_near(*a, **k)) or refits[-1]
    )
    found.append(encode())
    assert all(refits)
    monkeypatch.setattr("jaxglmm.encoder.effects_near", lambda *a, **k: None)
    found.append(encode())
    tau = [refit.tau for refit in refits]
    assert np.ptp(tau) == 0 if theta == "full" else np.ptp(tau) > 0.001
    np.testing.assert_allclose(*found, atol=3e-4)  # a standard error of tau is 0.03
    assert np.abs(found[0] - found[1]).max() > 0


def test_a_fold_whose_start_says_little_is_fitted_anew(data):
    """60 members leave a standard deviation near zero possible, and so does a fold of very few rows."""
    X, y = data
    table = X.assign(y=(y == "yes") * 1.0)
    problem = jg.fit("y ~ 1 + (1 | member)", table, family="binomial", n_agq=15)
    assert effects_near(problem._problem, np.ones(len(y)), problem.state.estimate, held=False) is None
    X, y = members(3000, seed=2)
    many = jg.fit("y ~ 1 + (1 | member)", X.assign(y=(y == "yes") * 1.0), family="binomial", n_agq=15)
    few = (np.arange(len(y)) < 300) * 1.0
    assert effects_near(many._problem, few, many.state.estimate, held=False) is None
    assert effects_near(many._problem, few, many.state.estimate, held=True) is not None
