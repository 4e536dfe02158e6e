"""The fitted object: what it says against lme4, how it shows itself, tables of the caller's kind."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOptionalOperand=false

import copy
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from fitted_models import cbpp, members, sleepstudy, table, visits

import jaxglmm as jg


def stored(folder, data, model):
    fits = json.loads((folder / f"{data}.json").read_text())["fits"]
    return next(fit for fit in fits if fit["id"] == model)


@pytest.mark.reference
def test_sleepstudy_reml_is_lme4s(reference_dir):
    fit, lme4 = sleepstudy(reference_dir, reml=True), stored(reference_dir, "sleepstudy", "slope_lmer_reml")
    assert fit.loglik == pytest.approx(lme4["logLik"], abs=1e-6)
    assert fit.df == lme4["df"] and fit.aic == pytest.approx(lme4["AIC"]) and fit.bic == pytest.approx(lme4["BIC"])
    assert fit.deviance == -2 * fit.loglik
    assert list(fit.fixef.values()) == pytest.approx(lme4["fixef"]["estimate"], rel=1e-7)
    assert list(fit.fixef_se.values()) == pytest.approx(lme4["fixef"]["se"], rel=1e-5)
    assert fit.vcov == pytest.approx(np.array(lme4["vcov"]), rel=1e-4)
    intercept, days = fit.varcorr
    assert (intercept["group"], intercept["name"], days["name"]) == ("Subject", "Intercept", "Days")
    assert [intercept["sd"], days["sd"]] == pytest.approx(lme4["varcomp"][0]["sd"], rel=1e-5)
    assert intercept["corr"]["Days"] == days["corr"]["Intercept"]
    assert fit.dispersion == {"name": "sigma", "value": pytest.approx(lme4["sigma"], rel=1e-6)}
    effects = fit.ranef("Subject")
    assert effects["level"].tolist()[:3] == [308, 308, 309] and effects["term"].tolist()[:2] == ["Intercept", "Days"]
    mode, sd = (np.array(lme4["ranef"][0][key]) for key in ("mode", "cond_sd"))
    assert effects["estimate"].to_numpy().reshape(18, 2) == pytest.approx(mode, abs=1e-4)
    assert effects["sd"].to_numpy().reshape(18, 2) == pytest.approx(sd, rel=1e-4)


@pytest.mark.reference
def test_cbpp_laplace(reference_dir):
    fit, own = cbpp(reference_dir), stored(reference_dir, "cbpp", "herd_own_aghq1")
    assert fit.loglik == pytest.approx(own["logLik"], abs=1e-6)
    assert fit.varcorr[0]["sd"] == pytest.approx(own["varcomp"][0]["sd"][0], rel=1e-5)
    assert fit.modelled.startswith("P(")
    assert fit.groups == {"herd": 15} and fit.n == 56 and fit.method == "laplace" and fit.dispersion is None


def test_posteriors_are_worked_out_once_and_only_when_asked_for(monkeypatch):
    import jaxglmm.estimation

    calls, work_out = [], jaxglmm.estimation.marginal_posterior
    monkeypatch.setattr(jaxglmm.estimation, "marginal_posterior", lambda *a: calls.append(a) or work_out(*a))
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(40), 4)
    y = rng.random(160) < 1 / (1 + np.exp(-rng.normal(size=40)[g]))
    fit = jg.fit("y ~ 1 + (1 | g)", {"y": y.astype(int), "g": g}, family="binomial", method="laplace")
    assert fit.fixef and fit.vcov.any() and fit.varcorr and not calls
    again = pickle.loads(pickle.dumps(fit.state))
    for ask in (fit.predict, fit.ranef, lambda: fit.predict(effects="mode")):
        ask()
    assert len(calls) == 1
    for name in ("mode", "covariance", "mean", "covariance_mean", "n"):
        np.testing.assert_array_equal(getattr(again.posteriors[0], name), getattr(fit.state.posteriors[0], name))


def test_reliability_is_one_minus_the_ratio_of_variances():
    fit = members()
    effects = fit.ranef()
    expected = 1 - effects["sd_mean"] ** 2 / fit.varcorr[0]["variance"]
    np.testing.assert_allclose(effects["reliability"], expected)
    assert effects["reliability"].between(0, 1).all()
    # More visits say more of a member: rank correlation, because the outcomes matter too.
    assert effects["reliability"].corr(effects["n"], method="spearman") > 0.6
    assert effects["n"].sum() == fit.n


@pytest.mark.reference
def test_gaussian_reliability_has_its_closed_form(reference_dir):
    fit = sleepstudy(reference_dir, "Reaction ~ Days + (1 | Subject)", reml=True)
    tau2, sigma2 = fit.varcorr[0]["variance"], fit.dispersion["value"] ** 2
    np.testing.assert_allclose(fit.ranef()["reliability"], tau2 / (tau2 + sigma2 / 10))


def test_a_singular_fit_says_so():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(20), 5)
    y = np.tile([1.0, 2.0, 3.0, 4.0, 5.0], 20) + 0.01 * rng.normal(size=100)  # groups more alike than by chance
    fit = jg.fit("y ~ 1 + (1 | g)", {"y": y, "g": g}, reml=True)
    assert fit.convergence.singular and fit.convergence.score_at_zero <= 0
    assert fit.varcorr == [{"group": "g", "name": "Intercept", "variance": 0.0, "sd": 0.0, "corr": {}}]
    assert fit.df == 3  # the variance at zero counts, as in lme4
    assert (fit.ranef()["reliability"] == 0).all()
    assert "Singular" in fit.summary().text
    limits = fit.confint("profile")
    assert limits["lower"][1] == 0 and limits["upper"][1] > 0
    assert np.isnan(fit.confint("wald")["upper"][1])


def test_covariance_parameters_that_were_held_are_not_counted():
    rng = np.random.default_rng(0)
    data = {"y": rng.normal(size=60), "g": np.repeat(np.arange(12), 5)}
    held, free = jg.fit("y ~ 1 + (1 | g)", data, theta={"g": 0.5}), jg.fit("y ~ 1 + (1 | g)", data)
    assert (held.df, free.df) == (2, 3)
    assert "sd[Intercept|g]" not in held.confint()["parameter"].tolist()


def test_offsets_of_hundreds_under_an_exponential_tail():
    """Newton's steps down such a tail are of one; the start lies where the largest offset is no burden."""
    rng = np.random.default_rng(3)
    n = 200
    o, x = 300 * rng.normal(size=n), rng.normal(size=n)
    y = (rng.random(n) < -np.expm1(-np.exp(np.clip(o - 300 + 0.5 * x, -700, 6)))) * 1.0
    y[:5] = 1.0
    fit = jg.fit("y ~ x + offset(o)", {"y": y, "x": x, "o": o}, family=jg.Binomial("cloglog"))

    def value(beta):
        eta = o + beta[0] + beta[1] * x
        log_success = np.where(eta < -30, eta, np.log(-np.expm1(-np.exp(np.clip(eta, -30, 6)))))
        return np.sum(np.where(y == 1, log_success, -np.exp(np.minimum(eta, 700))))

    best = np.array(list(fit.fixef.values()))
    assert fit.loglik == pytest.approx(value(best), abs=1e-8)
    # The log-likelihood is concave: no direction leads upwards.
    around = [value(best + 1e-3 * np.array(d)) for d in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))]
    assert max(around) < fit.loglik


@pytest.mark.parametrize(
    ("formula", "theta"),
    [("y ~ x", np.inf), ("y ~ x", {"g": 1.0}), ("y ~ x", {}), ("y ~ x + (1 | g)", {"g": 1.0, "h": 2.0})],
)
@pytest.mark.parametrize("how", [{}, {"penalty": jg.Ridge(1.0)}, {"penalty": jg.Lasso(0.1)}, {"path": True}])
def test_theta_that_no_grouping_factor_takes_is_refused(formula, theta, how):
    """It is no dispersion of the family: nothing is held that the formula does not have."""
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=40), "y": rng.poisson(2.0, 40) * 1.0, "g": np.arange(40) // 4}
    fit = jg.fit_path if "path" in how else jg.fit
    options = {k: v for k, v in how.items() if k != "path"}
    with pytest.raises(jg.DataError, match="theta must map every grouping factor"):
        fit(formula, data, family="negativebinomial", theta=theta, **options)


@pytest.mark.reference
def test_vcov_is_an_array_and_a_function(reference_dir):
    fit = cbpp(reference_dir)
    assert fit.vcov.shape == (4, 4) and isinstance(fit.vcov, np.ndarray)
    assert type(fit.vcov("model")) is np.ndarray and type(fit.vcov @ np.ones(4)) is np.ndarray
    assert type(fit.vcov + 1) is np.ndarray and isinstance(fit.vcov[0, 0], float)
    assert np.array_equal(copy.deepcopy(fit.vcov), fit.vcov) and np.array_equal(
        pickle.loads(pickle.dumps(fit.vcov)), fit.vcov
    )
    assert np.sqrt(np.diag(fit.vcov)).tolist() == list(fit.fixef_se.values())
    with pytest.raises(jg.DataError, match="'sandwich'"):
        fit.vcov("sandwich")


def test_tables_are_of_the_callers_kind():
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    data = {"y": rng.normal(size=30), "g": np.repeat(list("abcdef"), 5).astype(object)}
    kinds = {
        pd.DataFrame: pd.DataFrame(data),
        polars.DataFrame: polars.DataFrame({name: v.tolist() for name, v in data.items()}),
        pyarrow.Table: pyarrow.table({name: v.tolist() for name, v in data.items()}),
    }
    for kind, given in kinds.items():
        fit = jg.fit("y ~ 1 + (1 | g)", given)
        effects = fit.ranef("g")
        assert isinstance(effects, kind) and isinstance(fit.confint(), kind)
        assert effects["level"].to_pylist() if kind is pyarrow.Table else list(effects["level"]) == list("abcdef")
    assert isinstance(jg.fit("y ~ 1 + (1 | g)", data).ranef(), pd.DataFrame)


def test_unknown_factor_lists_the_known_ones():
    with pytest.raises(jg.DataError, match=r"no grouping factor 'memmber'.*'member'"):
        members().ranef("memmber")


def test_to_dict_has_the_keys_of_the_command_line_and_is_json():
    fit = members()
    plain = fit.to_dict()
    assert list(plain) == [
        "formula", "family", "method", "n_agq", "n", "groups", "loglik", "aic", "bic", "df", "fixef", "fixef_se",
        "varcorr", "dispersion", "convergence",
    ]  # fmt: skip
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["family"] == "binomial" and plain["n_agq"] == 25 and plain["groups"] == {"member": 40}
    assert plain["convergence"]["gap"] == fit.convergence.gap


def test_summary_says_what_was_fitted():
    text = str(members().summary())
    for part in (
        "adaptive Gauss-Hermite quadrature, 25 nodes",
        "sick ~ x + arm + offset(effort) + (1 | member)",
        "binomial (logit link)",
        "Modelled: P(sick = yes)",
        "1 dropped for missing values: x 1",
        "groups: member, 40",
        "Std.Dev.",
        "z value",
        "arm[T.placebo]",
        "against Laplace",
        "Converged",
    ):
        assert part in text, part
    assert "\x1b" not in text  # piped: no terminal codes


def test_summary_has_html_and_rich_forms(monkeypatch):
    summary = members().summary()
    page = summary._repr_html_()
    assert page.count("<table") == 2 and "P(&gt;|z|)" in page
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" in str(summary) and "arm[T.placebo]" in str(summary)


@pytest.mark.reference
def test_gaussian_summary_has_t_and_degrees_of_freedom(reference_dir):
    text = sleepstudy(reference_dir, reml=True).summary().text
    assert "t value" in text and "17.0" in text and "Residual" in text and "REML log-likelihood" in text
    assert "0.07" in text  # the correlation


def test_a_model_without_random_effects():
    data = visits().dropna()
    fit = jg.fit("sick ~ x + arm", data, family="binomial")
    assert fit.groups == {} and fit.varcorr == [] and fit.method == "glm" and fit.df == 3
    assert "Generalized linear model" in fit.summary().text and "Random effects" not in fit.summary().text
    for effects in ("conditional", "mode", "marginal", "population"):
        np.testing.assert_array_equal(fit.predict(effects=effects), fit.fitted)
    with pytest.raises(jg.DataError, match="no random effects"):
        fit.ranef()


@pytest.mark.reference
def test_everything_held_is_numpy(reference_dir):
    fit = cbpp(reference_dir)
    state = fit.state
    for posterior in state.posteriors:
        for value in vars(posterior).values():
            assert value is None or (type(value) is np.ndarray and value.dtype in (np.float64, np.int64))
    assert all(isinstance(v, float) for v in (*fit.fixef.values(), *fit.fixef_se.values(), fit.loglik))
    assert "cbind" in repr(fit) and len(table(reference_dir, "cbpp")) == fit.n
