"""Every stored fit of one grouping factor, from its CSV file, against what other programs found."""

import functools
import json

import numpy as np
import pytest

import jaxglmm as jg


# Data set, id of the stored fit, what to pass.
CASES = [
    ("cbpp", "herd_own_aghq1", {"method": "laplace"}),
    ("cbpp", "herd_glmmTMB_laplace", {"method": "laplace"}),
    ("cbpp", "herd_own_aghq25", {"method": "agq", "n_agq": 25}),
    ("cbpp", "herd_own_aghq101", {"method": "agq", "n_agq": 101}),
    ("Contraception", "intercept_own_aghq1", {"method": "laplace"}),
    ("Contraception", "intercept_own_aghq25", {"method": "agq", "n_agq": 25}),
    ("Contraception", "urban_slope_glmmTMB_laplace", {"method": "laplace"}),
    ("bacteria", "intercept_own_aghq1", {"method": "laplace"}),
    ("bacteria", "intercept_own_aghq25", {"method": "agq", "n_agq": 25}),
    ("bacteria", "intercept_own_aghq101", {"method": "agq", "n_agq": 101}),
    ("toenail", "intercept_own_aghq1", {"method": "laplace"}),
    *(("toenail", f"intercept_own_aghq{k}", {"method": "agq", "n_agq": k}) for k in (11, 25, 51, 101)),
    ("epil", "poisson_own_aghq1", {"method": "laplace"}),
    ("epil", "poisson_own_aghq25", {"method": "agq", "n_agq": 25}),
    ("epil", "nbinom2_own_aghq1", {"method": "laplace"}),
    ("epil", "nbinom2_glmmTMB_laplace", {"method": "laplace"}),
    ("epil", "nbinom2_own_aghq25", {"method": "agq", "n_agq": 25}),
    ("sleepstudy", "gamma_intercept_own_aghq1", {"method": "laplace"}),
    ("sleepstudy", "gamma_intercept_own_aghq25", {"method": "agq", "n_agq": 25}),
    *(
        ("sleepstudy", f"{model}_{engine}", {"reml": engine.endswith("reml")})
        for model in ("slope", "slope_uncorrelated", "intercept")
        for engine in ("lmer_reml", "lmer_ml", "glmmTMB_ml")
    ),
    ("Dyestuff", "intercept_lmer_reml", {"reml": True}),
    ("Dyestuff", "intercept_lmer_ml", {}),
    ("Dyestuff", "intercept_glmmTMB_ml", {}),
]
FAMILIES = {"nbinom2": "negativebinomial"}


@functools.cache
def stored(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def model_of(folder, name, record, **options):
    about = stored(folder, name)
    formula = record["formula"].replace("diag(Days | Subject)", "(Days || Subject)")
    levels = {c: v["levels"] for c, v in about["columns"].items() if v["type"] == "factor" and c in formula}
    return jg.fit(
        formula,
        folder / about["csv"],
        family=FAMILIES.get(record["family"], record["family"]),
        levels=levels,
        **options,
    )


@pytest.mark.parametrize(("name", "which", "options"), CASES, ids=[f"{n}-{w}" for n, w, _ in CASES])
def test_agrees(reference_dir, name, which, options):
    record = next(f for f in stored(reference_dir, name)["fits"] if f["id"] == which)
    fit = model_of(reference_dir, name, record, **options)
    assert fit.convergence.converged and not fit.convergence.singular
    # Laplace's approximation is good for all of them but the toenail trial: 4.56 where the standard deviation is 4.02.
    assert bool(fit.convergence.warnings) == ((name, options) == ("toenail", {"method": "laplace"}))
    assert fit.loglik == pytest.approx(record["logLik"], abs=1e-6)
    se = np.array(record["full"]["beta_se"] if "full" in record else record["fixef"]["se"])
    assert np.max(np.abs(np.array(list(fit.fixef.values())) - record["fixef"]["estimate"]) / se) < 1e-4
    own = which.split("_")[-2] == "own" or "own" in which
    if own or "full" in record or record["method"] == "REML":
        np.testing.assert_allclose(list(fit.fixef_se.values()), se, rtol=1e-4)
    sds = np.concatenate([np.ravel(v["sd"]) for v in record["varcomp"]])
    np.testing.assert_allclose([v["sd"] for v in fit.varcorr], sds, rtol=1e-5)
    if len(sds) == 2 and "uncorrelated" not in which:
        correlation = record["varcomp"][0]["cor"][0][1]
        assert next(iter(fit.varcorr[0]["corr"].values())) == pytest.approx(correlation, abs=1e-5)
    if record.get("dispersion") or record["family"] == "gaussian":
        assert fit.dispersion is not None
        expected = record.get("dispersion") or record["sigma"]
        assert fit.dispersion["value"] == pytest.approx(expected, rel=1e-5)
    if "log_sd_se" in record:
        row = next(k for k, p in enumerate(fit.state.estimate.parameters) if p.startswith("log_sd["))
        assert np.sqrt(fit.state.estimate.covariance[row, row]) == pytest.approx(record["log_sd_se"], rel=1e-4)
    # Conditional modes; their sds where the other program gives them at fixed parameters.
    effects = record["ranef"][0]
    table = fit.ranef(effects["group"])
    table = table.assign(level=table["level"].astype(str))
    for k, column in enumerate(dict.fromkeys(table["term"])):
        mine = table[table["term"] == column].set_index("level").loc[[str(v) for v in effects["levels"]]]
        sd = np.array([np.atleast_1d(v)[k] for v in effects["cond_sd"]])
        modes = np.array([np.atleast_1d(v)[k] for v in effects["mode"]])
        assert np.max(np.abs(mine["estimate"].to_numpy() - modes) / sd) < 1e-4
        if own or "lmer" in which:
            np.testing.assert_allclose(mine["sd"], sd, rtol=1e-4)


def test_auto_climbs_until_nodes_make_no_difference(reference_dir):
    """The toenail trial needs many nodes; the fit says how far Laplace is from quadrature."""
    record = next(f for f in stored(reference_dir, "toenail")["fits"] if f["id"] == "intercept_own_aghq101")
    fit = model_of(reference_dir, "toenail", record)
    assert fit.method == "agq" and fit.n_agq is not None and fit.n_agq >= 39
    assert fit.loglik == pytest.approx(record["logLik"], abs=2e-3)
    assert fit.varcorr[0]["sd"] == pytest.approx(record["varcomp"][0]["sd"][0], rel=1e-3)
    laplace = next(f for f in stored(reference_dir, "toenail")["fits"] if f["id"] == "intercept_own_aghq1")
    # The gap is taken at the quadrature optimum, where Laplace's value is below its own maximum.
    assert fit.convergence.gap > record["logLik"] - laplace["logLik"] > 2


def test_joint_likelihood_is_the_ridge(reference_dir):
    """method="joint" at a held sd is L2-penalised logistic regression on one-hot districts."""
    ridge = json.loads((reference_dir / "glmnet_blup_identity.json").read_text())["logistic_joint_mode"]
    record = next(f for f in stored(reference_dir, "Contraception")["fits"] if f["id"] == "intercept_own_aghq1")
    fit = model_of(reference_dir, "Contraception", record, method="joint", theta={"district": ridge["tau"]})
    coefficients = np.array([ridge["newton_intercept"], *ridge["newton_coef"]])
    p = len(fit.fixef)
    np.testing.assert_allclose(list(fit.fixef.values()), coefficients[:p], atol=1e-8)
    np.testing.assert_allclose(fit.ranef()["estimate"], coefficients[p:], atol=1e-8)


def test_gaussian_blup_is_the_ridge(reference_dir):
    """Conditional modes are the ridge solution at lambda = sigma^2 / tau^2."""
    for ridge in json.loads((reference_dir / "glmnet_blup_identity.json").read_text())["gaussian"]:
        fit = jg.fit(ridge["formula"], reference_dir / ridge["data"], reml=True)
        np.testing.assert_allclose(list(fit.fixef.values()), ridge["ridge_beta"], rtol=1e-7)
        np.testing.assert_allclose(fit.ranef()["estimate"], ridge["ridge_u"], atol=1e-6)
