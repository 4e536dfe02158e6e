"""Gaussian models with several grouping factors: dense linear algebra, finite differences, stored fits of lme4."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import block_diag

import jaxglmm as jg
from jaxglmm.design.factor_products import factor_products
from jaxglmm.objectives.gaussian_several import Slopes, expand_factors, split


# --- Numerics ----------------------------------------------------------------------------------------------


@dataclass
class Term:
    codes: np.ndarray
    levels: np.ndarray
    z: np.ndarray
    blocks: tuple[tuple[int, ...], ...]

    def wide(self) -> np.ndarray:
        """Z, dense."""
        out = np.zeros((len(self.codes), len(self.levels), len(self.z)))
        out[np.arange(len(self.codes)), self.codes] = self.z.T
        return out.reshape(len(self.codes), -1)


ONE, TWO, APART = ((0,),), ((0, 1),), ((0,), (1,))
DESIGNS = {
    # Codes of each factor, and how its effects covary; how many factors are eliminated level by level.
    "crossed": (lambda a, random: [(random(7), TWO), (random(11), ONE), (random(4), ONE)], 1),
    "partly nested": (lambda a, random: [(a // 10, ONE), (a, TWO), (a // 4, APART)], 2),
    "nested": (lambda a, random: [(a // 12, ONE), (a, TWO), (a // 4, APART)], 3),
    "nested and crossed": (lambda a, random: [(a // 4, ONE), (a, ONE), (random(3), TWO)], 2),
}


def problem(name):
    n, rng = 120, np.random.default_rng(0)
    make, n_sparse = DESIGNS[name]
    a = np.append(np.arange(24), rng.integers(0, 24, n - 24))
    terms = []
    for codes, blocks in make(a, lambda levels: rng.integers(0, levels, n)):
        size = sum(map(len, blocks))
        z = np.vstack([np.ones(n), *rng.normal(size=(size - 1, n))])
        terms.append(Term(codes.astype(np.int32), np.arange(codes.max() + 1), z, blocks))
    X = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    y, weights = X[:, 1] + rng.normal(size=n), rng.uniform(0.5, 2.0, n)
    products = factor_products(y, X, terms=terms, weights=weights)
    assert products.n_sparse == n_sparse
    return terms, X, y, weights, products


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", DESIGNS)
def test_moments_slopes_and_effects_are_those_of_dense_matrices(name, zero):
    terms, X, y, weights, products = problem(name)
    raw = 0.5 * np.random.default_rng(1).normal(size=len(products.covariance.diagonal))
    if zero:
        raw[np.flatnonzero(products.covariance.diagonal)[1]] = 0.0

    def covariance(raw):
        parts = zip(split(raw, products), terms, strict=True)
        spread = [t.wide() @ np.kron(np.eye(len(t.levels)), T @ T.T) @ t.wide().T for T, t in parts]
        return np.diag(1 / weights) + sum(spread)

    V = np.column_stack([X, y - X @ products.origin])

    def moments(raw):
        return np.linalg.slogdet(covariance(raw))[1] + np.log(weights).sum(), V.T @ np.linalg.solve(covariance(raw), V)

    slopes = Slopes(raw, products)
    (log_det, gram), (log_det1, gram1), _ = slopes.expansion
    np.testing.assert_allclose(log_det, moments(raw)[0], rtol=1e-12)
    np.testing.assert_allclose(gram, moments(raw)[1], atol=1e-11)
    step = 1e-5 * np.eye(len(raw))
    for k in range(len(raw)):
        up, down = moments(raw + step[k]), moments(raw - step[k])
        np.testing.assert_allclose(log_det1[k], (up[0] - down[0]) / 2e-5, atol=2e-6)
        np.testing.assert_allclose(gram1[..., k], (up[1] - down[1]) / 2e-5, atol=2e-6)
    # Conditional covariances of all effects given the data, and their diagonal blocks.
    factors = split(raw, products)
    Z = np.hstack([terms[t].wide() for t in products.order])
    C = block_diag(*(np.kron(np.eye(len(terms[t].levels)), factors[t] @ factors[t].T) for t in products.order))
    E = C - C @ Z.T @ np.linalg.solve(covariance(raw), Z @ C)
    for place, (t, blocks) in enumerate(zip(products.order, slopes.elimination.covariances(), strict=True)):
        S, begin = len(factors[t]), products.bounds[place]
        for g, block in enumerate(blocks):
            at = slice(begin + g * S, begin + (g + 1) * S)
            np.testing.assert_allclose(block, E[at, at], atol=1e-12)


def test_second_derivatives_by_central_differences():
    *_, products = problem("nested and crossed")
    raw = np.array([0.4, 0.7, 0.5, -0.2, 0.3])
    found = expand_factors(Slopes(raw, products)).second
    for k, step in enumerate(1e-4 * np.eye(5)):
        up, down = (Slopes(raw + s * step, products).expansion.first for s in (1, -1))
        np.testing.assert_allclose(found.log_det[k], (up.log_det - down.log_det) / 2e-4, atol=1e-4)
        np.testing.assert_allclose(found.gram[..., k], (up.gram - down.gram) / 2e-4, atol=1e-4)


# --- Stored fits -------------------------------------------------------------------------------------------


@cache
def reference(folder, name, which):
    return next(f for f in json.loads((folder / f"{name}.json").read_text())["fits"] if f["id"] == which)


@cache
def penicillin(folder, reml=False) -> jg.Fit:
    return jg.fit("diameter ~ 1 + (1 | plate) + (1 | sample)", folder / "Penicillin.csv", reml=reml)


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("Penicillin", "crossed_lmer_ml"),
        ("Penicillin", "crossed_lmer_reml"),
        ("Penicillin", "crossed_glmmTMB_ml"),
        ("InstEval", "crossed_lmer_ml"),
    ],
)
def test_stored_fits(reference_dir, name, which):
    record, reml = reference(reference_dir, name, which), which.endswith("reml")
    if name == "Penicillin":
        fit = penicillin(reference_dir, reml)
    else:
        fit = jg.fit(record["formula"], reference_dir / "InstEval.csv.gz", reml=reml)
    assert fit.convergence.converged and not fit.convergence.singular
    assert fit.loglik == pytest.approx(record["logLik"], abs=1e-6)
    se = np.array(record["fixef"]["se"])
    assert np.max(np.abs(np.array(list(fit.fixef.values())) - record["fixef"]["estimate"]) / se) < 1e-5
    if name == "Penicillin":  # lmer's standard errors are given the variances: with balance these are the joint ones
        np.testing.assert_allclose(list(fit.fixef_se.values()), se, rtol=1e-6)
    sds = {v["group"]: np.ravel(v["sd"])[0] for v in record["varcomp"]}
    assert {v["group"]: v["sd"] for v in fit.varcorr} == pytest.approx(sds, rel=1e-6)
    assert fit.dispersion is not None and fit.dispersion["value"] == pytest.approx(record["sigma"], rel=1e-6)
    if "full" in record and name == "Penicillin":  # glmmTMB's order: beta, log residual variance or sd, log sds
        rows = [k for k, p in enumerate(fit.state.estimate.parameters) if p.startswith("log_sd[")]
        found = np.sqrt(np.diag(fit.state.estimate.covariance)[rows])
        full = record["full"]
        expected = [full["vcov"][k][k] ** 0.5 for k, name in enumerate(full["par_names"]) if "theta" in name]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    for effects in record["ranef"] if "lmer" in which else ():
        table = fit.ranef(effects["group"]).set_index("level")
        table.index = table.index.astype(str)
        mine, sd = table.loc[[str(v) for v in effects["levels"]]], np.ravel(effects["cond_sd"])
        assert np.max(np.abs(mine["estimate"] - np.ravel(effects["mode"])) / sd) < 1e-5
        np.testing.assert_allclose(mine["sd"], sd, rtol=1e-5)


# --- What a fit presents -----------------------------------------------------------------------------------


@cache
def classes() -> pd.DataFrame:
    """Weighted scores of pupils in schools, marked by raters; some pupils with one row."""
    rng = np.random.default_rng(3)
    n = 700
    pupil, rater = np.minimum(rng.zipf(1.35, n), 60) - 1, rng.integers(0, 9, n)
    pupil[:60] = np.arange(60)
    x, school = rng.normal(size=n), pupil // 6
    eta = 1 + 0.5 * x + rng.normal(size=10)[school] + (rng.normal(size=60) + 0 * x[0])[pupil]
    eta += (0.6 * rng.normal(size=9))[rater] + (0.4 * rng.normal(size=9))[rater] * x
    weights = rng.uniform(0.5, 2, n)
    return pd.DataFrame(
        {
            "y": eta + rng.normal(size=n) / np.sqrt(weights), "x": x, "w": weights,
            "school": [f"s{v}" for v in school], "pupil": pupil % 6, "rater": rater,
        }
    )  # fmt: skip


@cache
def marked() -> jg.Fit:
    return jg.fit("y ~ x + (1 | school/pupil) + (1 + x | rater)", classes(), weights="w")


def dense_loglik(fit: jg.Fit, data: pd.DataFrame) -> float:
    """At the fit's estimates."""
    beta, sigma = np.array(list(fit.fixef.values())), fit.dispersion["value"]  # pyright: ignore
    V = sigma**2 * np.diag(1 / data["w"])
    z = np.vstack([np.ones(len(data)), data["x"]])
    pupil = data["school"] + ":" + data["pupil"].astype(str)
    for column, sigma_b in zip([data["school"], pupil, data["rater"]], fit.state.column_covariances, strict=True):
        codes = pd.factorize(column)[0]
        part = z[: len(sigma_b)]
        V += (part.T @ sigma_b @ part) * (codes[:, None] == codes[None])
    r = data["y"] - beta[0] - beta[1] * data["x"]
    return -0.5 * (len(r) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + r @ np.linalg.solve(V, r))


def test_loglik_is_the_dense_one_and_its_maximum():
    fit, data = marked(), classes()
    assert fit.convergence.converged and fit.convergence.decrement < 1e-10
    assert fit.loglik == pytest.approx(dense_loglik(fit, data), abs=1e-8)
    assert fit.groups == {"school": 10, "school:pupil": 60, "rater": 9}
    assert [(v["group"], v["name"]) for v in fit.varcorr] == [
        ("school", "Intercept"), ("school:pupil", "Intercept"), ("rater", "Intercept"), ("rater", "x"),
    ]  # fmt: skip
    assert fit.df == 2 + 1 + 1 + 3 + 1
    assert fit.convergence.solver == (
        "schur: 2 of 3 factors eliminated level by level, the other 18 effects by a dense Cholesky factorisation"
    )
    text = str(fit.summary().text)
    assert "school:pupil, 60" in text and "Residual" in text
    sds = {v["group"]: v["sd"] for v in fit.varcorr if v["name"] == "Intercept"}
    for group, sd in sds.items():  # at the maximum: moving any variance away lowers the likelihood
        held = dict(zip(fit.groups, fit.state.column_covariances, strict=True))
        for step in (0.99, 1.01):
            moved = held | {group: held[group] * step}
            other = jg.fit(fit.formula, data, weights="w", theta=moved)
            assert other.loglik < fit.loglik and other.df == 3
            assert other.varcorr[0]["sd"] == pytest.approx(sd * step**0.5 if group == "school" else sds["school"])


def test_without_fixed_effects():
    data = classes()
    fit = jg.fit("y ~ 0 + (1 | school) + (1 + x | rater)", data, weights="w", reml=True)
    assert fit.fixef == {} and fit.convergence.converged
    ml = jg.fit("y ~ 0 + (1 | school) + (1 + x | rater)", data, weights="w")
    assert fit.loglik == pytest.approx(ml.loglik, abs=1e-9)  # nothing is integrated out


def test_predictions_for_any_subset_of_known_factors():
    fit, data = marked(), classes()
    known = data.iloc[[100]][["x", "school", "pupil", "rater"]]
    beta, x = fit.fixef, float(known["x"].iloc[0])
    effect = {}
    for group in fit.groups:
        table = fit.ranef(group)
        level = f"{known.school.iloc[0]}:{known.pupil.iloc[0]}" if ":" in group else known[group].iloc[0]
        effect[group] = float((table[table["level"] == level]["mean"] * [1, x][: table["term"].nunique()]).sum())
    fixed = beta["Intercept"] + beta["x"] * x
    for new in [(), ("school",), ("rater",), ("school", "rater"), ("pupil",)]:
        rows = known.copy()
        for column in new:
            rows[column] = "new" if column == "school" else 99
        gone = {*new, *({"school:pupil"} if {"school", "pupil"} & set(new) else ())}
        expected = fixed + sum(v for group, v in effect.items() if group not in gone)
        for kind in ("response", "link"):
            np.testing.assert_allclose(fit.predict(rows, kind=kind), expected, rtol=1e-12)
        if new:
            with pytest.raises(jg.DataError, match="levels that the fit has not seen"):
                fit.predict(rows, new_levels="error")
    np.testing.assert_allclose(fit.predict(data), fit.predict(), rtol=1e-10)
    assert np.isnan(fit.predict(known.assign(rater=np.nan)))


def test_save_simulate_and_share_of_variance(tmp_path):
    fit = marked()
    fit.save(tmp_path / "model")
    same = jg.load(tmp_path / "model")
    np.testing.assert_array_equal(same.predict(classes()), fit.predict(classes()))
    for group in fit.groups:
        pd.testing.assert_frame_equal(same.ranef(group), fit.ranef(group))
    with pytest.raises(jg.DataError, match="name one of 'school', 'school:pupil', 'rater'"):
        fit.ranef()
    draws = fit.simulate(400, seed=1)
    variance = [v["variance"] for v in fit.varcorr]
    total = sum(variance[:3]) + variance[3] * np.mean(classes()["x"] ** 2)
    shares = [fit.icc(group) for group in fit.groups]
    assert fit.dispersion is not None
    assert sum(shares) < 1 and shares[0] == pytest.approx(
        variance[0] / (total + fit.dispersion["value"] ** 2 + 2 * _between(fit)), rel=1e-10
    )
    spread = draws - fit.predict(effects="population")[:, None]
    expected = fit.dispersion["value"] ** 2 / classes()["w"].to_numpy() + sum(variance[:3])
    expected = expected + variance[3] * classes()["x"] ** 2 + 2 * _correlated(fit) * classes()["x"]
    assert np.mean(np.square(spread).mean(1) / expected) == pytest.approx(1, abs=0.05)


def _correlated(fit):
    return fit.state.column_covariances[2][0, 1]


def _between(fit):
    return _correlated(fit) * np.mean(classes()["x"])


def test_profile_intervals_are_those_of_lme4(reference_dir):
    """confint(profile(lmer(..., REML = FALSE), delta = 0.2)) of lme4 1.1-31, whose interpolation leaves about 1e-6."""
    found = penicillin(reference_dir).confint("profile").set_index("parameter")
    expected = {
        "Intercept": (21.26660889, 24.67783555),
        "sd[Intercept|plate]": (0.63356518, 1.18210333),
        "sd[Intercept|sample]": (1.09583148, 3.55632051),
        "sigma": (0.48584556, 0.62945343),
    }
    assert set(found.index) == set(expected)
    for name, ends in expected.items():
        assert tuple(found.loc[name, ["lower", "upper"]]) == pytest.approx(ends, rel=1e-5)


def test_intervals_tests_and_comparison():
    fit = marked()
    profile, wald = fit.confint(), fit.confint("wald")
    assert not profile[["lower", "upper"]].isna().any(axis=None) and "profile" in set(profile["method"])
    names = ["Intercept", "x", "sd[Intercept|school]", "sd[Intercept|school:pupil]", "sd[Intercept|rater]"]
    assert list(wald["parameter"]) == [*names, "cor[x,Intercept|rater]", "sd[x|rater]", "sigma"]
    assert ((wald["lower"] < wald["estimate"]) & (wald["estimate"] < wald["upper"])).all()
    smaller = jg.fit("y ~ x + (1 | school) + (1 + x | rater)", classes(), weights="w")
    table = jg.anova(smaller, fit)
    assert table["chisq"].iloc[1] > 50 and "half chi2(1)" in table["reference"].iloc[1]
    assert np.isfinite(fit.test("x").p).all()


def test_ranef_of_all_factors_is_one_table_on_disk(tmp_path):
    """Levels are text where one factor's are text and another's are numbers."""
    from jaxglmm.commands import _write_ranef

    _write_ranef(marked(), tmp_path / "ranef.parquet")
    table = pd.read_parquet(tmp_path / "ranef.parquet")
    assert table["group"].value_counts().to_dict() == {"school:pupil": 60, "rater": 18, "school": 10}
    assert set(table.loc[table["group"] == "rater", "level"]) == {str(v) for v in range(9)}


def test_beyond_a_dense_matrix_ml_is_that_of_other_responses(reference_dir, monkeypatch):
    for module in ("problem", "estimation"):
        monkeypatch.setattr(f"jaxglmm.{module}.DENSE_LIMIT", 3)
    formula, data = "diameter ~ 1 + (1 | plate) + (1 | sample)", reference_dir / "Penicillin.csv"
    fit, exact = jg.fit(formula, data), penicillin(reference_dir)
    assert fit.method == "ml" and not fit.convergence.warnings and fit.convergence.solver.startswith("schur: crossed")
    assert fit.loglik == pytest.approx(exact.loglik, abs=1e-8)
    np.testing.assert_allclose([v["sd"] for v in fit.varcorr], [v["sd"] for v in exact.varcorr], rtol=1e-5)
    np.testing.assert_allclose(fit.state.estimate.covariance, exact.state.estimate.covariance, rtol=1e-3, atol=1e-6)
    with pytest.raises(jg.NotYetError, match="REML is computed from a dense matrix of order 3 at most"):
        jg.fit(formula, data, reml=True)


def test_cluster_scores_need_one_factor_around_the_others():
    with pytest.raises(jg.DataError, match="with crossed factors there are none"):
        marked().vcov("cluster")
    fit = jg.fit("y ~ x + (1 | school/pupil)", classes(), weights="w")
    data = classes()
    beta, sigma = np.array(list(fit.fixef.values())), fit.dispersion["value"]  # pyright: ignore
    X, r = np.column_stack([np.ones(len(data)), data["x"]]), data["y"] - beta[0] - beta[1] * data["x"]
    bread, meat = np.zeros((2, 2)), np.zeros((2, 2))
    sds = [v["sd"] for v in fit.varcorr]
    for _, rows in data.groupby("school"):
        at = rows.index
        same = rows["pupil"].to_numpy()[:, None] == rows["pupil"].to_numpy()
        inverse = np.linalg.inv(np.diag(sigma**2 / rows["w"]) + sds[0] ** 2 + sds[1] ** 2 * same)
        bread += X[at].T @ inverse @ X[at]
        score = X[at].T @ inverse @ r[at]
        meat += np.outer(score, score)
    expected = 10 / 9 * np.linalg.inv(bread) @ meat @ np.linalg.inv(bread)
    np.testing.assert_allclose(fit.vcov("cluster"), expected, rtol=1e-8)


def test_a_factor_without_variance_is_at_zero():
    """Raters that do not differ at all: their sd is zero, the rest is the fit without them."""
    data = classes().assign(idle=np.tile(np.arange(7), 100))
    fit = jg.fit("y ~ x + (1 | school:pupil) + (1 | idle)", data, weights="w")
    alone = jg.fit("y ~ x + (1 | school:pupil)", data, weights="w")
    assert fit.convergence.singular and fit.convergence.score_at_zero < 0  # pyright: ignore[reportOptionalOperand]
    assert fit.varcorr[1]["sd"] == 0 and fit.df == alone.df + 1
    assert fit.loglik == pytest.approx(alone.loglik, abs=1e-8)
    np.testing.assert_allclose(list(fit.fixef_se.values()), list(alone.fixef_se.values()), rtol=1e-5)
    assert not fit.ranef("idle")["estimate"].any()
