"""Numbers too large to compute with are refused by name; large ones that can be computed with are fitted."""

import numpy as np
import pytest

import jaxglmm as jg


FAMILIES = ("gaussian", "poisson", "gamma", "negativebinomial")


def table(**changed):
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(20), 5)
    data = {"g": g, "x": rng.normal(size=100), "w": np.ones(100), "o": np.zeros(100)}
    data["y"] = rng.poisson(np.exp(0.7 + 0.3 * data["x"] + 0.5 * rng.normal(size=20)[g])) + 1.0
    for name, value in changed.items():
        data[name] = np.where(np.arange(100) == 4, value, data[name])
    return data


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("formula", ["y ~ x", "y ~ x + (1 | g)", "y ~ x + (x | g)"])
@pytest.mark.parametrize(
    ("name", "value", "found"),
    [("x", 1e160, "1e.160"), ("x", -1e200, "-1e.200"), ("w", 1e30, "1e.30"), ("o", 1e160, "1e.160")],
)
def test_what_cannot_be_computed_with_is_named(family, formula, name, value, found):
    options = {"weights": "w", "offset": "o"}
    match = f"{'weights' if name == 'w' else 'the offset' if name == 'o' else repr(name)}.* is {found} in row 4 "
    with pytest.raises(jg.DataError, match=match):
        jg.fit(formula, table(**{name: value}), family=family, **options)


def test_responses():
    with pytest.raises(jg.DataError, match=r"response 'y' is 1e.17 in row 4 .*not exact in float64"):
        jg.fit("y ~ x + (1 | g)", table(y=1e17), family="poisson")
    with pytest.raises(jg.DataError, match=r"response 'y' is 1e.170 in row 4 "):
        jg.fit("y ~ x + (1 | g)", table(y=1e170))


def test_large_scales_are_no_fault():
    data = table()
    plain = jg.fit("y ~ x + (1 | g)", data)
    far = jg.fit("y ~ x + (1 | g)", data | {"x": 1e40 * data["x"], "y": 1e30 * data["y"]})
    assert far.fixef["x"] == pytest.approx(1e-10 * plain.fixef["x"], rel=1e-8)
    assert far.varcorr[0]["sd"] == pytest.approx(1e30 * plain.varcorr[0]["sd"], rel=1e-8)
    assert far.loglik == pytest.approx(plain.loglik - 100 * np.log(1e30), rel=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name", "factor", "found"), [("x", 1e-160, r"column 'x' is .*e-160"), ("w", 1e-300, "weights is 1e-300")]
)
def test_numbers_too_small_for_their_squares_are_named(family, name, factor, found):
    data = table()
    with pytest.raises(jg.DataError, match=f"{found} in row .*multiply it by a constant"):
        jg.fit("y ~ x + (1 | g)", data | {name: factor * data[name]}, family=family, weights="w")


@pytest.mark.parametrize("size", [1e-80, 1e-20, 1e-9])
@pytest.mark.parametrize("family", ["poisson", "binomial"])
def test_weights_that_add_up_to_nothing_are_refused(family, size):
    """A search that asks how far it is in standard errors ends where it begins: intercepts of 104 and 0 at 1e-60."""
    data = table() | {"w": np.full(100, size), "s": np.arange(100) % 2}
    y = "y" if family == "poisson" else "b"
    data["b"] = (data["y"] > np.median(data["y"])) * 1.0
    data["y"] = np.round(np.abs(data["y"]))
    for formula in (f"{y} ~ x", f"{y} ~ x + (1 | g)"):
        with pytest.raises(jg.DataError, match=f"weights add up to .* and {family} rows count by them"):
            jg.fit(formula, data, family=family, weights="w")
    each = jg.fit_each(f"{y} ~ x", data, by="s", family=family, weights="w")
    assert len(each.failed) == 2 and all("weights add up to" in reason for reason in each.failed.values())


def test_gaussian_weights_are_relative():
    data = table() | {"w": 1e-12 * (1 + np.arange(100) % 3)}
    plain = jg.fit("y ~ x + (1 | g)", data | {"w": 1.0 + np.arange(100) % 3}, weights="w")
    small = jg.fit("y ~ x + (1 | g)", data, weights="w")
    assert small.fixef["x"] == pytest.approx(plain.fixef["x"], rel=1e-9)
    assert small.varcorr[0]["sd"] == pytest.approx(plain.varcorr[0]["sd"], rel=1e-7)


@pytest.mark.parametrize("factor", [1e-320, 1e-300, 1e-200])
def test_a_response_too_small_for_its_squares_is_named(factor):
    data = table()
    small = data | {"y": factor * data["y"], "s": np.arange(100) % 2}
    told = "response 'y' is .* and smaller in all others, below 1e-100 in size"
    with pytest.raises(jg.DataError, match=told):
        jg.fit("y ~ x + (1 | g)", small)
    many = jg.fit_many("~ x + (1 | g)", small, responses=["y"])
    each = jg.fit_each("y ~ x + (1 | g)", small, by="s")
    for reasons in (many.failed, each.failed):
        assert reasons and all("below 1e-100 in size" in reason for reason in reasons.values())


@pytest.mark.parametrize("family", ["poisson", "binomial"])
def test_weights_that_are_more_copies_than_whole_numbers_go(family):
    data = table() | {"s": np.arange(100) % 2, "w": np.full(100, 1e30), "b": np.tile([0.25, 0.5, 0.5, 0.75], 25)}
    y = "b" if family == "binomial" else "y"
    told = "weights is 1e.30 in row .* not exact in float64"
    with pytest.raises(jg.DataError, match=told):
        jg.fit(f"{y} ~ x + (1 | g)", data, family=family, weights="w")
    each = jg.fit_each(f"{y} ~ x + (1 | g)", data, by="s", family=family, weights="w")
    assert len(each.failed) == 2 and all("not exact in float64" in reason for reason in each.failed.values())


@pytest.mark.parametrize("change", [{"x": 1e160}, {"o": 1e308}, {"y": 1e200}])
def test_strata_and_responses_of_such_numbers_are_refused_alone(change, capfd):
    """Row 4 is in stratum 0; the other one is fitted as it is without it."""
    data, plain = table(**change), table()
    data["s"] = plain["s"] = np.arange(100) % 2
    options = {"by": "s", "offset": "o"}
    fits, wanted = (jg.fit_each("y ~ x + (1 | g)", d, **options) for d in (data, plain))
    assert set(fits.failed) == {0} and "in row 4 " in fits.failed[0]
    assert fits.loglik[1] == wanted.loglik[1]
    if "y" in change:
        many = jg.fit_many("~ x + (1 | g)", data | {"y2": plain["y"]}, responses=["y", "y2"])
        assert set(many.failed) == {"y"} and "in row 4 " in many.failed["y"] and np.isfinite(many.loglik[1])
    assert capfd.readouterr() == ("", "")  # LAPACK writes of NaN


@pytest.mark.parametrize(
    "formula", ["y ~ x + (1 | g)", "y ~ x + (x | g)", "y ~ x + (1 | g) + (1 | h)", "y ~ x + (1 | h/g)"]
)
@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_held_standard_deviations_beyond_all_scales_are_named(family, formula):
    data = table() | {"h": np.arange(100) // 20}
    for sd in (1e7, 1e200, np.inf):
        theta = {g: sd for g in ("g", "h", "h:g") if g in {"y ~ x + (1 | h/g)": ("h", "h:g")}.get(formula, ("g", "h"))}
        theta = {g: v for g, v in theta.items() if g in formula or ":" in g}
        theta = {g: [v, 1.0] if "(x |" in formula else v for g, v in theta.items()}
        with pytest.raises(jg.DataError, match="theta"):
            jg.fit(formula, data, family=family, theta=theta)


def test_large_held_standard_deviations_are_computed():
    """Of 1,000: the density of y ~ N(X beta, sigma^2 I + 1e6 ZZ'), by numpy."""
    data = table()
    fit = jg.fit("y ~ x + (1 | g)", data, theta={"g": 1000.0})
    X, y = np.column_stack([np.ones(100), data["x"]]), data["y"]
    sigma = fit.state.estimate.dispersion or 0.0
    V = sigma**2 * np.eye(100) + 1e6 * (data["g"][:, None] == data["g"])
    r = y - X @ np.array(list(fit.fixef.values()))
    dense = -0.5 * (r @ np.linalg.solve(V, r) + np.linalg.slogdet(V)[1] + 100 * np.log(2 * np.pi))
    assert fit.loglik == pytest.approx(dense, abs=1e-7)
    tiny = jg.fit("y ~ x + (1 | g)", data, theta={"g": 1e-300})
    assert tiny.loglik == pytest.approx(jg.fit("y ~ x", data).loglik, abs=1e-10)


def test_a_search_that_does_not_end_says_what_stands_out():
    with pytest.raises(jg.ConvergenceError, match=r"the offset from 0 to 1e\+99.* of 'x' in row"):
        jg.fit("y ~ x + (x | g)", table(o=1e99), family="poisson", offset="o")
    each = jg.fit_each(
        "y ~ x + (1 | g)", table(o=1e99) | {"s": np.arange(100) % 2}, by="s", family="poisson", offset="o"
    )
    assert "the offset from 0 to 1e+99" in each.failed[0]
