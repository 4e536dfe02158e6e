"""Approximations to the integral over the effects say when they are not close enough, and in which direction."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

import jaxglmm as jg


def simulated(seed, *, groups, rows, sd, intercept, slope=0.5):
    """Binary rows in groups of up to `rows`, as many in each where that is negative."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, rows + 1, groups) if rows > 0 else np.full(groups, -rows)
    g = np.repeat(np.arange(groups), counts)
    x = rng.normal(size=len(g))
    eta = intercept + slope * x + sd * rng.normal(size=groups)[g]
    return {"y": (rng.random(len(g)) < 1 / (1 + np.exp(-eta))).astype(int), "x": x, "g": g}


def brute(data, fit, points=4001):
    """`log_likelihood` at a fit's estimates."""
    return log_likelihood(data, fit.fixef["Intercept"], fit.fixef["x"], fit.varcorr[0]["sd"], points)


def log_likelihood(data, intercept, slope, sd, points):
    """By sums over a fine grid of each group's standardised effect."""
    u = np.linspace(-9, 9, points)
    log_prior = -0.5 * u**2 - 0.5 * np.log(2 * np.pi) + np.log(u[1] - u[0])
    first = np.flatnonzero(np.diff(data["g"], prepend=-1))
    fixed, sign = intercept + slope * data["x"], 2 * data["y"] - 1
    rows = -np.logaddexp(0, -sign[:, None] * (fixed[:, None] + sd * u))
    return float(np.asarray(logsumexp(np.add.reduceat(rows, first) + log_prior, axis=1)).sum())


def fitted(data, **options):
    return jg.fit("y ~ x + (1 | g)", data, family="binomial", **options)


def seen(fit):
    """Gap to more nodes, and how far they would move the parameter that they move most."""
    gap, move = fit.convergence.checked_gap, fit.convergence.checked_move
    assert gap is not None and move is not None
    return gap, move


@pytest.fixture(scope="module")
def wide():
    """Effects of a standard deviation of 10 and one to three rows a group."""
    return simulated(0, groups=400, rows=3, sd=10.0, intercept=1.0, slope=1.0)


def test_rare_events_take_laplace_far_up():
    data = simulated(0, groups=800, rows=-10, sd=1.0, intercept=-7.5)
    laplace, auto = fitted(data, method="laplace"), fitted(data)
    gap, move = seen(laplace)
    assert laplace.convergence.gap == gap < -50 and move < -1
    (text,) = laplace.convergence.warnings
    assert "lower" in text and "down by" in text and "method='agq'" in text and text in str(laplace.summary())
    assert brute(data, laplace) < laplace.loglik - 50
    assert not auto.convergence.warnings and auto.loglik == pytest.approx(brute(data, auto), abs=2e-3)
    assert auto.varcorr[0]["sd"] < 0.4 * laplace.varcorr[0]["sd"]


def test_short_groups_take_laplace_down():
    data = simulated(1, groups=400, rows=3, sd=1.5, intercept=0.0)
    laplace = fitted(data, method="laplace")
    gap, move = seen(laplace)
    assert gap > 0 and move > 0.2
    (text,) = laplace.convergence.warnings
    assert "higher" in text and "up by" in text
    nodes = laplace.convergence.checked_nodes
    held = fitted(data, method="agq", n_agq=nodes, theta={"g": laplace.varcorr[0]["sd"]})
    assert held.loglik >= laplace.loglik + gap  # the same sd with the fixed effects that are best
    assert laplace.loglik + gap == pytest.approx(brute(data, laplace), abs=1e-3)


def test_laplace_is_silent_where_it_is_close():
    data = simulated(2, groups=60, rows=-40, sd=0.7, intercept=0.0)
    laplace = fitted(data, method="laplace")
    gap, move = seen(laplace)
    assert not laplace.convergence.warnings and abs(move) < 0.1
    assert laplace.loglik + gap == pytest.approx(brute(data, laplace), abs=1e-3)


def test_agq_takes_as_many_nodes_as_make_a_difference(wide):
    """The optimum, 10.5364 at -378.45045, was found by Nelder and Mead's method with 1,501 points of a grid."""
    agq = fitted(wide, method="agq")
    assert agq.n_agq is not None and agq.n_agq > 101 and not agq.convergence.warnings
    assert agq.varcorr[0]["sd"] == pytest.approx(10.536, abs=0.02)
    assert agq.loglik == pytest.approx(-378.45045, abs=1e-3)
    assert agq.loglik == pytest.approx(brute(wide, agq), abs=1e-3)


def test_too_few_nodes_are_told(wide):
    few, many = fitted(wide, method="agq", n_agq=9), fitted(wide, method="agq", n_agq=201)
    assert (few.n_agq, few.convergence.checked_nodes) == (9, 19)
    (text,) = few.convergence.warnings
    assert text.startswith("9 nodes are not enough: with 19 nodes") and "up by" in text
    assert seen(few)[0] > 1 and not many.convergence.warnings
    assert f"{seen(few)[0]:+.2g}" in str(few.summary())


def test_the_end_of_the_ladder_is_told(wide, monkeypatch):
    from jaxglmm.optimise import marginal_fit

    monkeypatch.setitem(marginal_fit.NODE_LADDER, 1, (9, 19))
    fit = fitted(wide)
    (text,) = fit.convergence.warnings
    assert text.startswith("19 nodes, the most that are tried, are not enough: with 39 nodes")
    assert f"{abs(seen(fit)[0]):.3g}" in text


@pytest.mark.parametrize(("effects", "nodes"), [("x", 5), ("x + z", 3), ("x * z", 3)])
def test_several_effects_a_group_are_looked_at(effects, nodes):
    data = simulated(3, groups=60, rows=-6, sd=1.5, intercept=0.0)
    data["z"] = np.random.default_rng(4).normal(size=len(data["g"]))
    fit = jg.fit(f"y ~ x + ({effects} || g)", data, family="binomial", method="laplace")
    assert fit.convergence.checked_nodes == nodes and seen(fit)[0] > 0


def test_what_was_seen_is_saved(wide, tmp_path):
    fit = fitted(wide, method="agq", n_agq=9)
    fit.save(tmp_path / "fit.jg")
    again = jg.load(tmp_path / "fit.jg").convergence
    told = fit.convergence.checked_nodes, fit.convergence.checked_gap, fit.convergence.checked_move
    assert (again.checked_nodes, again.checked_gap, again.checked_move) == told and again.warnings


# --- Many fits at once -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(wide):
    """Three responses on the same rows: one that takes many nodes, one that takes few, one without any effects."""
    rng = np.random.default_rng(5)
    eta = 0.3 * wide["x"] + 0.5 * rng.normal(size=400)[wide["g"]]
    easy, none = rng.random(len(eta)) < 1 / (1 + np.exp(-eta)), rng.random(len(eta)) < 0.5
    columns = {"hard": wide["y"], "easy": easy.astype(int), "none": none.astype(int)}
    return {"x": wide["x"], "g": wide["g"]} | columns


def assert_told_alike(fits, label, alone):
    i, c = fits.labels.tolist().index(label), alone.convergence
    assert fits.n_agq[i] == c.n_agq and fits.checked_nodes[i] == c.checked_nodes
    told = [fits.gap[i], fits.checked_gap[i], fits.checked_move[i]]
    np.testing.assert_allclose(told, [c.gap, c.checked_gap, c.checked_move], rtol=1e-5, atol=1e-7)
    assert fits.warnings.get(label, []) == c.warnings


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("options", [{}, {"n_agq": 9}, {"method": "laplace"}], ids=str)
def test_each_fit_of_many_says_what_it_says_alone(many, options, native, monkeypatch):
    if not native:
        monkeypatch.setattr("jaxglmm.ops.lane_pass.covers", lambda *_: False)
    names = ["hard", "easy", "none"]
    fits = jg.fit_many("~ x + (1 | g)", many, responses=names, family="binomial", **options)
    for name in names:
        alone = jg.fit(f"{name} ~ x + (1 | g)", many, family="binomial", **options)
        assert_told_alike(fits, name, alone)
        assert fits[name].convergence.warnings == alone.convergence.warnings
    if not options:  # Nelder and Mead's optimum, as above
        assert fits.estimate[0, 2] == pytest.approx(10.536, abs=0.02) and not fits.warnings
        return
    assert "hard" in fits.warnings and "none" not in fits.warnings
    summary = fits.summary()
    assert [text != "" for text in summary["warnings"]] == [name in fits.warnings for name in names]
    assert f"{len(fits.warnings)} with warnings" in repr(fits)


def test_each_stratum_says_what_it_says_alone(wide, tmp_path):
    part = wide["g"] % 2
    table = wide | {"part": part, "y": np.where(part == 1, wide["y"], (wide["x"] > 0) ^ (wide["g"] % 3 == 0))}
    call = lambda: jg.fit_each("y ~ x + (1 | g)", table, by="part", family="binomial", n_agq=9, out=tmp_path / "out")
    fits, again = call(), call()  # the second reads what the first has written
    for k in (0, 1):
        alone = fitted({name: v[part == k] for name, v in table.items()}, n_agq=9)
        assert_told_alike(fits, k, alone)
        assert_told_alike(again, k, alone)
    assert fits.warnings


def test_groups_of_more_rows_than_the_library_takes_with_nodes():
    data = simulated(0, groups=60, rows=-70, sd=1.0, intercept=-7.0)
    call = {"family": "binomial", "method": "laplace"}
    fits = jg.fit_many("~ x + (1 | g)", data, responses=["y"], **call)
    assert_told_alike(fits, "y", jg.fit("y ~ x + (1 | g)", data, **call))


def test_refits_with_too_few_nodes_are_counted(wide):
    fit = fitted({name: v[wide["g"] < 150] for name, v in wide.items()}, n_agq=9)
    replicates, folds = fit.bootstrap(8, seed=0), fit.cross_validate(3, seed=0)
    assert replicates.warnings and f"{len(replicates.warnings)} with warnings" in repr(replicates)
    assert set(folds.warnings) == {0, 1, 2} and folds.warnings[0][0].startswith("9 nodes are not enough")


# --- Penalties, priors and paths ---------------------------------------------------------------------------


PENALISED = {
    "ridge": {"penalty": jg.Ridge(1e-9)},
    "lasso": {"penalty": jg.Lasso(1e-3)},
    "prior": {"prior": {"beta": jg.NormalPrior(100.0)}},
}


@pytest.mark.parametrize("kind", PENALISED)
def test_penalised_fits_go_by_the_rule_of_all_fits(wide, kind):
    few, auto = fitted(wide, n_agq=9, **PENALISED[kind]), fitted(wide, **PENALISED[kind])
    (text,) = few.convergence.warnings
    assert text.startswith("9 nodes are not enough: with 19 nodes") and "up by" in text
    laplace = fitted(wide, method="laplace", **PENALISED[kind])
    assert laplace.convergence.gap == seen(laplace)[0] < -5 and "Laplace" in laplace.convergence.warnings[0]
    assert not auto.convergence.warnings and auto.n_agq == 159
    assert auto.loglik == pytest.approx(brute(wide, auto), abs=1e-3)
    # What 19 nodes say at the fit by nine is near what is right.
    assert seen(few)[0] == pytest.approx(brute(wide, few) - few.loglik, rel=0.15)
    if kind != "lasso":  # as good as none
        assert auto.varcorr[0]["sd"] == pytest.approx(10.536, abs=0.02)


def test_held_covariances_are_looked_at(wide):
    held = {"theta": {"g": 10.0}}
    for extra in ({}, {"penalty": jg.Ridge(1e-9)}):
        few, auto = fitted(wide, n_agq=9, **held, **extra), fitted(wide, **held, **extra)
        assert few.convergence.warnings[0].startswith("9 nodes are not enough") and "moves x" in str(few.summary())
        assert not auto.convergence.warnings and auto.loglik == pytest.approx(brute(wide, auto), abs=2e-3)


def test_penalties_with_several_factors_tell_of_laplace():
    data = simulated(1, groups=300, rows=3, sd=1.5, intercept=0.0)
    data["h"] = data["g"] % 7
    fit = jg.fit("y ~ x + (1 | g) + (1 | h)", data, family="binomial", penalty=jg.Ridge(1e-6))
    plain = jg.fit("y ~ x + (1 | g) + (1 | h)", data, family="binomial", method="laplace")
    assert seen(fit)[0] == pytest.approx(seen(plain)[0], rel=1e-3)
    assert seen(fit)[1] == pytest.approx(seen(plain)[1], rel=0.1)  # there the other factor is held at zero
    assert fit.convergence.warnings[0].startswith("Laplace's approximation is not close enough here")
    assert "penalty or a prior" in fit.convergence.warnings[0]


def test_a_path_names_the_lambdas_whose_nodes_are_too_few(wide):
    X = np.random.default_rng(1).normal(size=(len(wide["y"]), 2))
    call = lambda **options: jg.fit_path(
        "y ~ x + (1 | g)", wide, family="binomial", X=X, n_lambdas=3, lambda_min_ratio=1e-2, **options
    )
    few, auto = call(n_agq=9), call()
    (text,) = few.warnings
    assert text.startswith(f"at lambda {few.lambdas[0]:.3g} to {few.lambdas[-1]:.3g} (3 of the 3")
    assert "9 nodes are not enough" in text and "with warnings" in repr(few)
    assert auto.n_agq == 159 and not auto.warnings and auto.converged.all()
    # Without the further columns the last solution is a point of the plain model: its value there is brute force's.
    alone = jg.fit_path("y ~ x + (1 | g)", wide, family="binomial", lambdas=[1e-3, 1e-9])
    plain = fitted(wide)
    assert not alone.warnings and alone.theta["g"][-1] == pytest.approx(plain.varcorr[0]["sd"], rel=1e-4)
    assert alone.loglik[-1] == pytest.approx(brute(wide, plain), abs=1e-3)


def test_a_path_is_silent_where_its_nodes_are_enough():
    data = simulated(2, groups=60, rows=-40, sd=0.7, intercept=0.0)
    for options in ({}, {"method": "laplace"}):
        path = jg.fit_path("y ~ x + (1 | g)", data, family="binomial", n_lambdas=3, **options)
        assert not path.warnings and "warnings" not in repr(path)


# --- Factors that quadrature does not reach ----------------------------------------------------------------


def crossed(sd):
    """150 levels of h with three rows each, crossed with 160 levels of g that hardly vary."""
    rng = np.random.default_rng(0)
    g, h = rng.permutation(np.arange(450) % 160), rng.permutation(np.arange(450) % 150)
    x = rng.normal(size=450)
    eta = 0.5 * x + 0.05 * rng.normal(size=160)[g] + sd * rng.normal(size=150)[h]
    return {"y": (rng.random(450) < 1 / (1 + np.exp(-eta))).astype(int), "x": x, "g": g, "h": h}


def test_laplace_over_a_second_factor_is_told():
    data, call = crossed(1.8), {"family": "binomial"}
    fit = jg.fit("y ~ x + (1 | g) + (1 | h)", data, **call)
    (text,) = fit.convergence.warnings
    assert "'g' and 'h', each with the others at their modes" in text and "log_sd[Intercept|h] up" in text
    # With next to nothing of g the likelihood is that of h alone, whose integrals a grid knows.
    held = jg.fit("y ~ x + (1 | g) + (1 | h)", data, theta={"g": 1e-3, "h": 1.8}, method="laplace", **call)
    alone = jg.fit("y ~ x + (1 | h)", data, theta={"h": 1.8}, method="laplace", **call)
    order = np.argsort(data["h"], kind="stable")
    rows = {"y": data["y"][order], "x": data["x"][order], "g": data["h"][order]}
    assert seen(held)[0] == pytest.approx(brute(rows, alone) - alone.loglik, abs=2e-3)


def test_where_the_largest_factor_is_integrated_the_second_is_looked_at():
    rng = np.random.default_rng(2)
    data = crossed(1.8)
    eta = 0.5 * data["x"] + 1.5 * rng.normal(size=160)[data["g"]] + 1.5 * rng.normal(size=150)[data["h"]]
    data["y"] = (rng.random(450) < 1 / (1 + np.exp(-eta))).astype(int)
    fit = jg.fit("y ~ x + (1 | g) + (1 | h)", data, family="binomial", method="agq")
    assert fit.n_agq is not None and fit.n_agq > 1
    (text,) = fit.convergence.warnings
    assert "effect of 'h', each" in text and "higher" in text and "most levels" in text


def test_a_second_factor_with_many_rows_a_level_is_silent():
    rng = np.random.default_rng(3)
    g, h = np.arange(2000) % 100, np.arange(2000) // 100
    eta = 0.5 * rng.normal(size=100)[g] + 0.5 * rng.normal(size=20)[h]
    y = (rng.random(2000) < 1 / (1 + np.exp(-eta))).astype(int)
    fit = jg.fit("y ~ 1 + (1 | g) + (1 | h)", {"y": y, "g": g, "h": h}, family="binomial")
    assert not fit.convergence.warnings


def test_laplace_over_parents_with_few_rows_is_told():
    rng = np.random.default_rng(0)
    member = np.repeat(np.arange(300), 2)
    parent = member % 150
    eta = 0.1 * rng.normal(size=300)[member] + 1.8 * rng.normal(size=150)[parent]
    data = {"y": (rng.random(600) < 1 / (1 + np.exp(-eta))).astype(int), "m": member, "h": parent}
    fit = jg.fit("y ~ 1 + (1 | h / m)", data, family="binomial")
    assert any("effect of 'h', each" in text and "higher" in text for text in fit.convergence.warnings)


def test_laplace_that_was_not_looked_at_is_said_in_the_summary():
    data = simulated(2, groups=60, rows=-40, sd=0.7, intercept=0.0)
    fit, text = fitted(data, method="laplace"), "was not looked at with quadrature nodes"
    assert text not in str(fit.summary())
    fit.convergence.checked_nodes = None  # as of a fit with more effects than are looked at
    assert text in str(fit.summary())
    assert text not in str(jg.fit("x ~ 1 + (1 | g)", data).summary())


def test_comparisons_say_what_more_nodes_change(wide):
    """A statistic whose two likelihoods are approximated is off by twice the difference of their errors."""
    note = "more quadrature nodes at the same parameters change chisq by"
    call = {"family": "binomial", "n_agq": 9}
    few = jg.fit("y ~ 1 + (1 | g)", wide, **call), jg.fit("y ~ x + (1 | g)", wide, **call)
    (text,) = [text for text in jg.anova(*few)["reference"] if note in text]
    assert f"{2 * (seen(few[1])[0] - seen(few[0])[0]):+.2g}" in text
    auto = jg.fit("y ~ 1 + (1 | g)", wide, family="binomial"), fitted(wide)
    assert not any(note in text for text in jg.anova(*auto)["reference"])


def sd_limits(fit):
    table = fit.confint("profile", parameters="sd[Intercept|g]")
    return float(table["lower"][0]), float(table["upper"][0])


@pytest.mark.parametrize("options", [{}, {"n_agq": 9}], ids=str)
def test_profiles_take_the_nodes_that_their_ends_need(options):
    """Twice the drop of the maximum over the coefficients is the chi-square quantile at both ends: brute force."""
    data = simulated(1, groups=60, rows=3, sd=5.0, intercept=0.5)
    fit = fitted(data, **options)

    def maximum(function, start):
        return -minimize(lambda v: -function(*v), start, method="BFGS").fun

    def profile(sd):
        start = np.array(list(fit.fixef.values())) * sd / fit.varcorr[0]["sd"]
        return maximum(lambda a, b: log_likelihood(data, a, b, sd, 801), start)

    start = [*fit.fixef.values(), np.log(fit.varcorr[0]["sd"])]
    best = maximum(lambda a, b, log_sd: log_likelihood(data, a, b, np.exp(log_sd), 801), start)
    assert [2 * (best - profile(end)) for end in sd_limits(fit)] == pytest.approx([3.8415, 3.8415], abs=0.06)


def test_a_profile_with_too_few_nodes_is_told(wide, monkeypatch):
    monkeypatch.setattr("jaxglmm.optimise.node_ladder.NODE_LADDER", {1: (9, 19)})
    fit = fitted(wide, n_agq=19)
    with pytest.warns(jg.ConvergenceWarning, match=r"^19 nodes, .*'sd\[Intercept\|g\]': 39 nodes move") as told:
        sd_limits(fit)
    assert told[0].filename == __file__


def test_a_second_maximum_that_more_nodes_deny_is_told():
    """With 9 nodes one start ends higher, at twice the standard deviation of the maximum (16.01 by brute force)."""
    data = simulated(2, groups=100, rows=3, sd=10.0, intercept=0.5, slope=1.0)
    fit = fitted(data, n_agq=9)
    with pytest.warns(
        jg.ConvergenceWarning, match=r"above the fit by 9 nodes .*: with 19 nodes it lies .* n_agq"
    ) as told:
        starts = fit.multistart(10, seed=0)
    assert told[0].filename == __file__ and not starts.is_best
    top = int(np.argmax(starts.loglik))
    assert starts.sd[top, 0] > 25
    best = fitted(data)
    assert brute(data, best) > log_likelihood(data, best.fixef["Intercept"], best.fixef["x"], starts.sd[top, 0], 4001)
