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
