"""Inference against R, against closed forms and against brute force.

R's numbers: R 4.3 with lme4, lmerTest and clubSandwich, on the stored cbpp.csv and sleepstudy.csv; glmer with bobyqa,
tolPwrss = 1e-12 and rhoend = 1e-10.
"""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOptionalOperand=false

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from fitted_models import CBPP, cbpp, members, of_columns, sleepstudy, table, visits
from scipy import optimize, stats

import jaxglmm as jg
from jaxglmm.inference.coordinates import raw_covariance
from jaxglmm.inference.intervals import wald
from jaxglmm.inference.likelihood import Likelihood
from jaxglmm.inference.parameters import parameters, value


def limits(fit, method, **options):
    out = fit.confint(method, **options)
    return dict(zip(out["parameter"], out[["lower", "upper"]].to_numpy(), strict=True))


# --- Intervals ---------------------------------------------------------------------------------------------

# confint(m, method = "profile") of lmer(Reaction ~ Days + (Days | Subject), REML = FALSE, or TRUE, which R refits).
SLEEPSTUDY_PROFILE = {
    "sd[Intercept|Subject]": (14.38148112, 37.71601874),
    "cor[Days,Intercept|Subject]": (-0.48150044, 0.68498614),
    "sd[Days|Subject]": (3.80116476, 8.75336666),
    "sigma": (22.89826622, 28.85799732),
    "Intercept": (237.68069547, 265.12951469),
    "Days": (7.35865330, 13.57591874),
}
# The same of lmer(Reaction ~ Days + (1 | Subject), REML = FALSE).
INTERCEPT_PROFILE = {
    "sd[Intercept|Subject]": (26.007120, 52.935984),
    "sigma": (27.813847, 34.591050),
    "Intercept": (231.992326, 270.817883),
    "Days": (8.886551, 12.048021),
}
# confint(g, method = "profile") of glmer(cbind(incidence, size - incidence) ~ period + (1 | herd), binomial).
CBPP_PROFILE = {
    "sd[Intercept|herd]": (0.3460732, 1.09997465),
    "Intercept": (-1.9012120, -0.94775401),
    "period[T.2]": (-1.6167833, -0.40776307),
    "period[T.3]": (-1.8010244, -0.51153607),
    "period[T.4]": (-2.5007506, -0.80075532),
}
# confint(g, method = "Wald")
CBPP_WALD = {
    "Intercept": (-1.854168342, -0.9428957761),
    "period[T.2]": (-1.593340278, -0.3913253108),
    "period[T.3]": (-1.768869737, -0.4884747288),
    "period[T.4]": (-2.418072589, -0.7425552895),
}


@pytest.mark.reference
@pytest.mark.parametrize("reml", [False, True])
def test_gaussian_profiles_are_rs(reference_dir, reml):
    found = limits(sleepstudy(reference_dir, reml=reml), "profile")
    assert set(found) == set(SLEEPSTUDY_PROFILE)
    for name, expected in SLEEPSTUDY_PROFILE.items():
        np.testing.assert_allclose(found[name], expected, rtol=5e-5, err_msg=name)


@pytest.mark.reference
def test_intercept_profiles_are_rs(reference_dir):
    found = limits(sleepstudy(reference_dir, "Reaction ~ Days + (1 | Subject)"), "profile")
    for name, expected in INTERCEPT_PROFILE.items():
        np.testing.assert_allclose(found[name], expected, rtol=5e-5, err_msg=name)


@pytest.mark.reference
def test_binomial_profiles_are_rs(reference_dir):
    found = limits(cbpp(reference_dir), "profile")
    for name, expected in CBPP_PROFILE.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, err_msg=name)


@pytest.mark.reference
def test_wald_intervals_are_rs(reference_dir):
    fit = cbpp(reference_dir)
    found = limits(fit, "wald")
    for name, expected in CBPP_WALD.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)
    sd, se = fit.varcorr[0]["sd"], np.sqrt(fit.state.estimate.covariance[4, 4])
    np.testing.assert_allclose(
        found["sd[Intercept|herd]"], sd * np.exp(np.array([-1.959964, 1.959964]) * se), rtol=1e-6
    )


@pytest.mark.reference
def test_wald_intervals_of_correlated_effects_follow_the_delta_method(reference_dir):
    """Against numerical derivatives of log sd and atanh cor in the log-Cholesky parameters."""
    fit = sleepstudy(reference_dir)
    covariance, L = fit.state.estimate.covariance[2:5, 2:5], fit.state.estimate.factors[0]

    def derived(theta):  # of effects of centred columns
        factor = fit.state.basis @ np.array([[np.exp(theta[0]), 0], [theta[1], np.exp(theta[2])]])
        sigma = factor @ factor.T
        sd = np.sqrt(np.diag(sigma))
        return np.array([np.log(sd[0]), np.arctanh(sigma[0, 1] / sd.prod()), np.log(sd[1])])

    at = np.array([np.log(L[0, 0]), L[1, 0], np.log(L[1, 1])])
    J = np.array([(derived(at + h) - derived(at - h)) / 2e-6 for h in 1e-6 * np.eye(3)]).T
    reach = 1.6448536 * np.sqrt(np.diag(J @ covariance @ J.T))
    found = limits(fit, "wald", level=0.9)
    names = ("sd[Intercept|Subject]", "cor[Days,Intercept|Subject]", "sd[Days|Subject]")
    for name, middle, half, back in zip(names, derived(at), reach, (np.exp, np.tanh, np.exp), strict=True):
        np.testing.assert_allclose(found[name], back([middle - half, middle + half]), rtol=1e-6, err_msg=name)


def test_profiles_of_a_linear_model_in_closed_form():
    rng = np.random.default_rng(5)
    n, x = 40, rng.normal(size=40)
    fit = jg.fit("y ~ x", {"y": 1 + x + rng.normal(size=n), "x": x})
    found, sigma2 = limits(fit, "profile", level=0.99), fit.dispersion["value"] ** 2
    target = stats.chi2.ppf(0.99, 1)
    # 2 (L^ - L(v)) = n log(RSS(v)/RSS), RSS(v) - RSS = (v - b)^2 / [(X'X)^-1]_jj
    unit = np.linalg.inv(np.cov(x, bias=True).reshape(1, 1) * n)[0, 0]
    half = np.sqrt(sigma2 * n * unit * np.expm1(target / n))
    np.testing.assert_allclose(found["x"], fit.fixef["x"] + np.array([-half, half]), rtol=1e-5)
    for end in found["sigma"]:
        ratio = sigma2 / end**2
        np.testing.assert_allclose(n * (ratio - 1 - np.log(ratio)), target, rtol=1e-4)


def test_a_dispersion_profile_against_scipy():
    rng = np.random.default_rng(6)
    x = rng.normal(size=150)
    y = rng.negative_binomial(2.0, 2 / (2 + np.exp(1 + 0.5 * x)))
    found = limits(jg.fit("y ~ x", {"y": y, "x": x}, family="negativebinomial"), "profile", parameters=["theta", "x"])

    def deviance(beta, theta):
        mu = np.exp(beta[0] + beta[1] * x)
        return -2 * stats.nbinom.logpmf(y, theta, theta / (theta + mu)).sum()

    best = optimize.minimize(lambda v: deviance(v[:2], np.exp(v[2])), [1, 0.5, 0.7], tol=1e-12).fun
    for theta in found["theta"]:
        held = optimize.minimize(lambda b, t=theta: deviance(b, t), [1, 0.5], tol=1e-12).fun
        np.testing.assert_allclose(held - best, stats.chi2.ppf(0.95, 1), rtol=1e-4)
    for slope in found["x"]:
        held = optimize.minimize(lambda v, b=slope: deviance([v[0], b], np.exp(v[1])), [1, 0.7], tol=1e-12).fun
        np.testing.assert_allclose(held - best, stats.chi2.ppf(0.95, 1), rtol=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize("first", [None, 1])
def test_the_likelihood_in_natural_coordinates(reference_dir, first):
    """Value and zero gradient at the estimate; derivatives elsewhere by differences."""
    fit = sleepstudy(reference_dir)
    with jax.enable_x64(True):
        likelihood = Likelihood(fit.state, fit._problem, first)
        x = likelihood.at.x
        value, gradient, hessian = likelihood(x)
        assert value == pytest.approx(fit.loglik, abs=1e-9) and np.abs(gradient * x).max() < 1e-6
        if first is None:
            np.testing.assert_allclose(np.linalg.inv(-hessian), raw_covariance(fit.state), rtol=1e-6, atol=1e-12)
        x = 1.1 * x
        steps = 1e-5 * np.diag(np.abs(x))
        value, gradient, hessian = likelihood(x)
        up, down = ([likelihood(x + sign * h) for h in steps] for sign in (1, -1))
    size = 2e-5 * np.abs(x)
    by_difference = np.array([u[0] - d[0] for u, d in zip(up, down, strict=True)]) / size
    np.testing.assert_allclose(gradient, by_difference, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())
    by_difference = np.array([u[1] - d[1] for u, d in zip(up, down, strict=True)]) / size[:, None]
    np.testing.assert_allclose(hessian, by_difference, rtol=1e-5, atol=1e-6 * np.abs(hessian).max())


def test_a_correlation_of_one_has_intervals():
    rng = np.random.default_rng(3)
    g, x = np.repeat(np.arange(25), 6), rng.normal(size=150)
    b = rng.normal(size=25)[g]
    fit = jg.fit("y ~ x + (x | g)", {"y": b * (1 + 0.5 * x) + rng.normal(size=150), "x": x, "g": g})
    assert fit.convergence.singular and fit.varcorr[0]["corr"]["x"] == pytest.approx(1)
    found = limits(fit, "profile")
    assert found["cor[x,Intercept|g]"][1] == 1 and 0 < found["cor[x,Intercept|g]"][0] < 1
    for name in ("sd[Intercept|g]", "sd[x|g]"):
        low, high = found[name]
        assert 0 < low < next(row["sd"] for row in fit.varcorr if row["name"] in name) < high


def test_intervals_of_a_fit_without_an_end(reference_dir):
    """Standard errors may be of any size there: limits go to the ends of their scales and nothing is raised."""
    data = table(reference_dir, "sleepstudy")
    fit = jg.fit("Reaction ~ Days + (Days | Subject)", data, throw=False, max_iterations=1)
    assert not fit.convergence.converged
    for size in (1.0, 1e8, 1e300):
        estimate = dataclasses.replace(fit.state.estimate, covariance=fit.state.estimate.covariance * size)
        state = dataclasses.replace(fit.state, estimate=estimate)
        for parameter in parameters(state):
            low, high = wald(state, parameter, 1.96)
            assert np.isnan([low, high]).all() or low <= value(parameter, state) <= high
            if parameter.kind in ("sd", "dispersion") and size > 1 and not np.isnan(low):
                assert (low, high) == (0.0, np.inf)


def test_bad_interval_options():
    fit = members()
    with pytest.raises(jg.DataError, match="'wald', 'profile'; found 'boot'"):
        fit.confint("boot")
    with pytest.raises(jg.DataError, match="level must be a level within"):
        fit.confint(level=95)
    with pytest.raises(jg.DataError, match=r"no parameter 'z'.*'x'"):
        fit.confint(parameters=["z"])
    assert fit.confint(parameters="x")["parameter"].tolist() == ["x"]


# --- Tests -------------------------------------------------------------------------------------------------


@pytest.mark.reference
def test_t_and_f_are_lmertests(reference_dir):
    """coef(summary(m)) and contestMD(m, L) of lmer(Reaction ~ Days + late + (Days | Subject)), late = Days > 5."""
    data = table(reference_dir, "sleepstudy").assign(late=lambda d: (d["Days"] > 5).astype(float))
    fit = jg.fit("Reaction ~ Days + late + (Days | Subject)", data, reml=True)
    rows = fit.test(np.eye(3))
    np.testing.assert_allclose(rows.se, [7.085202834, 1.890312246, 7.480182379], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(rows.df), [19.73528179, 36.93880194, 143.00010742], rtol=1e-4)
    np.testing.assert_allclose(rows.statistic, [35.4156399579, 5.6818618106, -0.2511032556], rtol=1e-5)
    np.testing.assert_allclose(rows.p, [2.467090964e-19, 1.702690698e-06, 0.8020947396], rtol=1e-3)
    joint = fit.test(["Days", "late"]).joint
    assert joint["kind"] == "F" and joint["df"] == 2
    assert joint["statistic"] == pytest.approx(22.95788208, rel=1e-5)
    assert joint["df_denominator"] == pytest.approx(29.17247985, rel=1e-4)
    assert joint["p"] == pytest.approx(1.025440139e-06, rel=1e-3)


@pytest.mark.reference
def test_z_and_chi_squared(reference_dir):
    fit = cbpp(reference_dir)
    L = np.eye(4)[1:]
    result = fit.test(["period[T.2]", {"period[T.3]": 1}, [0, 0, 0, 1]])
    beta, V = fit.state.estimate.beta, np.asarray(fit.vcov)
    np.testing.assert_array_equal(result.contrasts, L)
    np.testing.assert_allclose(result.p, 2 * stats.norm.sf(np.abs(L @ beta / np.sqrt(np.diag(L @ V @ L.T)))))
    W = L @ beta @ np.linalg.solve(L @ V @ L.T, L @ beta)
    assert result.joint["statistic"] == pytest.approx(W) and result.joint["p"] == pytest.approx(stats.chi2.sf(W, 3))
    # Redundant rows add nothing; a right-hand side at the estimate leaves nothing.
    assert fit.test([*np.eye(4)[1:], [0, 1, 1, 0]]).joint["df"] == 3
    assert fit.test("period[T.2]", rhs=fit.fixef["period[T.2]"]).p[0] == pytest.approx(1)


def test_bad_contrasts():
    fit = members()
    for contrasts, message in (
        ("z", r"no coefficient 'z'.*Intercept"),
        ({"x": 1, "zz": 1}, "no coefficient 'zz'"),
        ([1.0, 2.0], r"each of the 3 coefficients .*shape \(2,\)"),
        ({"x": 0}, "contrast 0 is zero"),
        ([], "empty"),
    ):
        with pytest.raises(jg.DataError, match=message):
            fit.test(contrasts)


@pytest.mark.reference
def test_anova_of_nested_models(reference_dir):
    formulas = ("Reaction ~ Days", "Reaction ~ Days + (1 | Subject)", "Reaction ~ Days + (Days | Subject)")
    fits = [sleepstudy(reference_dir, formula) for formula in formulas]
    result = jg.anova(fits[2], fits[0], fits[1])
    assert result["formula"].tolist() == list(formulas) and result["df"].tolist() == [3, 4, 6]
    loglik = [fit.loglik for fit in fits]
    np.testing.assert_allclose(result["chisq"][1:], 2 * np.diff(loglik))
    assert result["p"][1] == pytest.approx(0.5 * stats.chi2.sf(result["chisq"][1], 1))
    assert result["p"][2] == pytest.approx(np.mean(stats.chi2.sf(result["chisq"][2], [1, 2])))
    assert result["reference"][2] == "half chi2(1), half chi2(2): one variance at zero"
    fixed = jg.anova(sleepstudy(reference_dir, "Reaction ~ 1 + (1 | Subject)"), fits[1])
    assert fixed["reference"][1] == "chi2(1)"
    assert fixed["p"][1] == pytest.approx(stats.chi2.sf(fixed["chisq"][1], 1))
    with pytest.raises(jg.DataError, match="two or more"):
        jg.anova(fits[0])


@pytest.mark.reference
def test_anova_of_approximate_likelihoods(reference_dir):
    glm, mixed = cbpp(reference_dir, CBPP.split(" + (")[0]), cbpp(reference_dir)
    result = jg.anova(glm, mixed)
    assert result["p"][1] == pytest.approx(0.5 * stats.chi2.sf(2 * (mixed.loglik - glm.loglik), 1))
    with pytest.raises(jg.DataError, match="quadrature"):
        jg.anova(mixed, cbpp(reference_dir, method="agq"))


@pytest.mark.reference
def test_anova_refuses_what_cannot_be_compared(reference_dir):
    reml = sleepstudy(reference_dir, reml=True)
    with pytest.raises(jg.DataError, match=r"REML.*different fixed.*reml=False"):
        jg.anova(sleepstudy(reference_dir, "Reaction ~ 1 + (Days | Subject)", reml=True), reml)
    with pytest.raises(jg.DataError, match="one fit is by REML"):
        jg.anova(sleepstudy(reference_dir), reml)
    same_fixed = jg.anova(sleepstudy(reference_dir, "Reaction ~ Days + (1 | Subject)", reml=True), reml)
    assert np.isfinite(same_fixed["p"][1])
    data = table(reference_dir, "sleepstudy")
    fewer = jg.fit("Reaction ~ 1", data.iloc[:-1])
    other = jg.fit("Reaction ~ 1", data.assign(Reaction=data["Reaction"] + 1))
    gamma = jg.fit("Reaction ~ 1", data, family="gamma")
    for fit, message in ((fewer, "different rows"), (other, "different responses"), (gamma, "different families")):
        with pytest.raises(jg.DataError, match=message):
            jg.anova(sleepstudy(reference_dir, "Reaction ~ Days"), fit)


# --- Cluster-robust covariance -----------------------------------------------------------------------------


@pytest.mark.reference
def test_gaussian_cluster_covariance_is_clubsandwichs(reference_dir):
    """vcovCR(m, type = "CR1") of lmer(Reaction ~ Days + (1 | Subject)) without six rows of subject 308."""
    data = table(reference_dir, "sleepstudy")
    data = data[~((data["Subject"] == 308) & (data["Days"] > 3))]
    fit = jg.fit("Reaction ~ Days + (1 | Subject)", data, reml=True)
    expected = [[46.529347340, -1.328788239], [-1.328788239, 2.174074117]]
    np.testing.assert_allclose(fit.vcov("cluster"), expected, rtol=1e-6)


@pytest.mark.reference
def test_cluster_covariance_is_the_sandwich_of_group_scores(reference_dir):
    """Scores by automatic differentiation of each herd's own likelihood."""
    fit = cbpp(reference_dir)
    frame, x = fit._problem.frame, np.append(fit.state.estimate.beta, fit.varcorr[0]["sd"])
    longest = np.bincount(frame.terms[0].codes).max()

    def own(g):
        rows = np.flatnonzero(frame.terms[0].codes == g)
        filled = np.append(rows, np.repeat(rows[:1], longest - len(rows)))  # to one length, by rows of weight 0
        weights = np.where(np.arange(longest) < len(rows), frame.weights[filled], 0.0)
        return frame.y[filled], frame.X[filled], weights

    def loglik(x, y, X, weights):
        """Laplace's approximation, its mode by Newton from 0 (differentiated through its last steps)."""
        eta, tau = X @ x[:4], x[4]
        l = lambda u: jnp.sum(weights * (y * (eta + tau * u) - jnp.logaddexp(0.0, eta + tau * u))) - 0.5 * u**2
        u = jnp.zeros(())
        for _ in range(12):
            u = u - jax.grad(l)(u) / jax.grad(jax.grad(l))(u)
        return l(u) - 0.5 * jnp.log(-jax.grad(jax.grad(l))(u))

    groups = [own(g) for g in range(15)]
    with jax.enable_x64(True):
        stacked = [jnp.asarray(np.stack(part)) for part in zip(*groups, strict=True)]
        scores = np.asarray(jax.jit(jax.vmap(jax.grad(loglik), (None, 0, 0, 0)))(jnp.asarray(x[:5]), *stacked))
    assert np.abs(scores.sum(0)).max() < 1e-6
    bread = of_columns(fit, raw_covariance(fit.state))[:5, :5]
    expected = 15 / 14 * bread @ scores.T @ scores @ bread
    np.testing.assert_allclose(fit.vcov("cluster"), expected[:4, :4], rtol=1e-7)


def test_cluster_covariance_of_long_groups():
    """Groups of more than 32 rows take another way through the group sums; the answer must not."""
    rng = np.random.default_rng(8)
    g = np.repeat(np.arange(12), [2, 5, 40, 3, 70, 33, 8, 4, 6, 36, 9, 34])
    x, b = rng.normal(size=len(g)), rng.normal(size=12)
    y = rng.poisson(np.exp(0.5 + 0.3 * x + 0.5 * b[g]))
    fit = jg.fit("y ~ x + (1 | g)", {"y": y, "x": x, "g": g}, family="poisson", method="laplace")
    at, mode = fit.state.estimate, fit.state.posteriors[0].mode[:, 0]
    tau = at.factors[0][0, 0]
    mu = np.exp(at.beta[0] + at.beta[1] * x + mode[g])
    # MATH of one scalar effect: dL/deta_i = s_i - (q/2) t_i, and dL/dtau, with w = a = mu.
    total = lambda v: np.bincount(g, v)
    S, W = total(y - mu), total(mu)
    D = 1 + tau**2 * W
    q, u = tau**2 / D, mode / tau
    d_eta = (y - mu) - 0.5 * q[g] * (mu - (q * W)[g] * mu)
    along = (S - tau * u * W) / D
    d_tau = u * S - 0.5 * (2 * tau * W + tau**2 * W * (u + tau * along)) / D
    scores = np.stack([total(d_eta), total(d_eta * x), d_tau], 1)
    bread = of_columns(fit, raw_covariance(fit.state))[:3, :3]
    expected = 12 / 11 * bread @ scores.T @ scores @ bread
    np.testing.assert_allclose(fit.vcov("cluster"), expected[:2, :2], rtol=1e-6)


def test_cluster_covariance_needs_clusters():
    with pytest.raises(jg.DataError, match="needs a grouping factor"):
        jg.fit("x ~ effort", visits().dropna()).vcov("cluster")


# --- Residuals ---------------------------------------------------------------------------------------------


@pytest.mark.reference
def test_residuals_are_rs(reference_dir):
    fit = cbpp(reference_dir)
    deviance = [-1.4380319308, 0.9887432314, 2.3569979808, -0.9368580307]
    pearson = [-1.339861684, 1.075125968, 2.879615856, -0.677264047]
    np.testing.assert_allclose(fit.residuals("deviance")[:4], deviance, rtol=1e-6)
    np.testing.assert_allclose(fit.residuals("pearson")[:4], pearson, rtol=1e-6)
    data = table(reference_dir, "cbpp")
    np.testing.assert_allclose(fit.residuals(), data["incidence"] / data["size"] - fit.fitted)
    over = fit.overdispersion
    assert over["df"] == 52 and over["ratio"] == over["chi2"] / 52  # test_diagnostics has its value
    with pytest.raises(jg.DataError, match="'quantile'; found 'working'"):
        fit.residuals("working")


def test_quantile_residuals_are_standard_normal():
    rng = np.random.default_rng(9)
    x = rng.normal(size=2000)
    fit = jg.fit("y ~ x", {"y": rng.poisson(np.exp(0.2 + 0.5 * x)), "x": x}, family="poisson")
    r = fit.residuals("quantile", seed=3)
    assert stats.kstest(r, "norm").pvalue > 0.01
    np.testing.assert_array_equal(r, fit.residuals("quantile", seed=3))
    assert (r != fit.residuals("quantile", seed=4)).any()


@pytest.mark.reference
def test_gaussian_pearson_residuals_are_scaled_residuals(reference_dir):
    fit = sleepstudy(reference_dir)
    np.testing.assert_allclose(fit.residuals("pearson"), fit.residuals() / fit.dispersion["value"])


@pytest.mark.reference
def test_intraclass_correlation(reference_dir):
    tau2 = members().varcorr[0]["variance"]
    assert members().icc() == pytest.approx(tau2 / (tau2 + np.pi**2 / 3))
    fit = sleepstudy(reference_dir, "Reaction ~ Days + (1 | Subject)")
    tau2, sigma2 = fit.varcorr[0]["variance"], fit.dispersion["value"] ** 2
    assert fit.icc("Subject") == pytest.approx(tau2 / (tau2 + sigma2))
    slopes = sleepstudy(reference_dir)
    Z = np.stack([np.ones(180), table(reference_dir, "sleepstudy")["Days"]])
    between = np.einsum("an,ab,bn->n", Z, slopes.state.column_covariances[0], Z).mean()
    assert slopes.icc() == pytest.approx(between / (between + slopes.dispersion["value"] ** 2))


def test_poisson_intraclass_correlation_is_log_normal():
    rng = np.random.default_rng(8)
    g = np.repeat(np.arange(30), 5)
    y = rng.poisson(np.exp(1 + 0.5 * rng.normal(size=30)[g]))
    fit = jg.fit("y ~ 1 + (1 | g)", pd.DataFrame({"y": y, "g": g}), family="poisson", method="laplace")
    tau2 = fit.varcorr[0]["variance"]
    assert fit.icc() == pytest.approx(tau2 / (tau2 + np.log1p(1 / y.mean())))
