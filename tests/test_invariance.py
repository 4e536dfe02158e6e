"""What must not matter does not: order and names of rows and levels, units of columns, rows that count nowhere, copies
written as weights, a file in place of a table. Every public number is compared, over a catalogue of models."""

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg


LAPLACE, NODES = {"method": "laplace"}, {"method": "agq", "n_agq": 9}
MODELS = {
    "linear": ("y ~ x + z", "gaussian", {}),
    "Gaussian": ("y ~ x + z + (1 | g)", "gaussian", {}),
    "Gaussian slopes, REML": ("y ~ x + z + (x | g)", "gaussian", {"reml": True}),
    "Gaussian, crossed": ("y ~ x + (1 | g) + (1 | h)", "gaussian", {}),
    "Gaussian, nested slopes": ("y ~ x + (1 | c) + (x || g)", "gaussian", {"reml": True}),
    "logit, nodes": ("event ~ x + z + (1 | g)", "binomial", NODES),
    "probit, slopes": ("event ~ x + (x | g)", jg.Binomial(link="probit"), LAPLACE),
    "logit, nested": ("event ~ x + (1 | c/g)", "binomial", LAPLACE),
    "Poisson, no groups": ("count ~ x + z", "poisson", {}),
    "Poisson, crossed": ("count ~ x + (1 | g) + (1 | h)", "poisson", LAPLACE),
    "negative binomial": ("count ~ x + (1 | g)", "negativebinomial", LAPLACE),
    "gamma": ("time ~ x + (1 | g)", jg.Gamma(link="log"), NODES),
    "beta": ("share ~ x + (1 | g)", "beta", LAPLACE),
}
TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}


def table() -> pd.DataFrame:
    """360 rows, 24 groups in 6 classes, 8 others that cross them."""
    rng = np.random.default_rng(11)
    g = np.repeat(np.arange(24), 15)
    h = rng.integers(0, 8, 360)
    x, z = rng.normal(size=360), rng.uniform(-1, 1, 360)
    b, s, u, v = rng.normal(size=24), rng.normal(size=24), rng.normal(size=8), rng.normal(size=6)
    eta = 0.3 + 0.5 * x - 0.4 * z + 0.8 * b[g] + 0.5 * s[g] * x + 0.6 * u[h] + 0.7 * v[g % 6]
    mu = np.exp(0.5 * eta)
    share = 1 / (1 + np.exp(-eta))
    return pd.DataFrame(
        {
            "x": x, "z": z, "g": [f"g{k:02d}" for k in g], "h": [f"h{k}" for k in h], "c": [f"c{k}" for k in g % 6],
            "y": eta + 0.7 * rng.normal(size=360), "event": 1.0 * (rng.random(360) < share),
            "count": rng.poisson(mu * rng.gamma(2.0, 0.5, 360)), "time": mu * rng.gamma(3.0, 1 / 3, 360),
            "share": np.clip(rng.beta(5 * share, 5 * (1 - share)), 0.01, 0.99), "w": np.ones(360),
        }
    )  # fmt: skip


def fitted(model: str, data, **more):
    formula, family, options = MODELS[model]
    return jg.fit(formula, data, family=family, **options, **more)


def numbers(fit, rows, names=lambda level: level) -> dict[str, np.ndarray]:
    """Every public number of a fit, with predictions for `rows`; levels sorted by what `names` makes of them."""
    out = {
        "likelihood": [fit.loglik, fit.aic, fit.bic, fit.df],
        "fixef": [fit.fixef[name] for name in sorted(fit.fixef)],
        "se": [fit.fixef_se[name] for name in sorted(fit.fixef)],
        "sd": [term["sd"] for term in fit.varcorr],
        "corr": [value for term in fit.varcorr for value in term["corr"].values()],
        "dispersion": [] if fit.dispersion is None else [fit.dispersion["value"]],
    }
    for kind in ("response", "link"):
        for effects in ("conditional", "mode", "marginal", "population"):
            out[f"{kind}, {effects}"] = fit.predict(rows, kind=kind, effects=effects)
    intervals = pd.DataFrame(fit.predict(rows, interval=0.9))
    out |= {f"interval, {name}": intervals[name] for name in intervals}
    for group in fit.groups:
        effects = pd.DataFrame(fit.ranef(group))
        effects["level"] = [names(level) for level in effects["level"]]
        effects = effects.sort_values(["term", "level"], kind="stable")
        for name in ("n", "estimate", "sd", "mean", "sd_mean", "sd_eb", "reliability"):
            out[f"ranef({group}), {name}"] = effects[name]
    return {name: np.asarray(value, float) for name, value in out.items()}


def of_rows(fit, rows, x, z, unit=1.0) -> dict[str, np.ndarray]:
    """What combines coefficients: a contrast, marginal coefficients and a fit after more rows; robust errors of x."""
    weights = {name: {"Intercept": 1.0, "x": x, "z": z}[name] for name in fit.fixef}
    test, L = fit.test(weights), np.array([weights[name] for name in fit.names])
    marginal = pd.DataFrame(fit.marginal_coefficients(rows)).set_index("name")["estimate"]
    out = {"contrast": [test.estimate[0], test.se[0], *([] if test.df is None else test.df)]}
    out["marginal"] = [marginal[list(weights)] @ L]
    if len(fit.groups) == 1:
        if fit.family.name != "beta":
            j = fit.names.index("x")
            out["cluster"] = [unit * np.sqrt(fit.vcov("cluster")[j, j])]
        later = pd.DataFrame(fit.update(rows.iloc[:30]).predict(rows.iloc[:60], interval=0.9))
        out |= {f"later, {name}": later[name] for name in later}
    return {name: np.asarray(value, float) for name, value in out.items()}


def assert_same(found, wanted, leave=(), tolerance=TOLERANCE):
    assert found.keys() == wanted.keys()
    for name in wanted:
        if not name.startswith(tuple(leave)):
            np.testing.assert_allclose(found[name], wanted[name], err_msg=name, **tolerance)


@pytest.fixture(scope="module")
def data():
    return table()


@pytest.fixture(scope="module")
def plain(data):
    """Fits of the table as it is, and their numbers."""
    made = {}

    def of(model):
        if model not in made:
            fit = fitted(model, data)
            made[model] = fit, numbers(fit, data)
        return made[model]

    return of


@pytest.mark.parametrize("model", MODELS)
def test_order_of_rows_and_names_of_levels(data, plain, model):
    _, wanted = plain(model)
    order = np.random.default_rng(0).permutation(len(data))
    renamed = data.copy()
    for group in "ghc":
        renamed[group] = [f"{97 - int(level[1:]):02d}" for level in data[group]]
    fit = fitted(model, renamed.iloc[order])
    back = lambda level: ":".join(f"{97 - int(part):02d}" for part in str(level).split(":"))
    assert_same(numbers(fit, renamed, back), wanted)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("means", [(8.0, -2e5), (1e6, -1e6)])
def test_units_of_columns(data, plain, model, means, tmp_path):
    """Predictions, intervals and likelihoods, and those of the saved fit; `means` are of x and z in their sds.

    With independent slopes a shift of their column is another model.
    """
    fit, wanted = plain(model)
    shift = 0.0 if "||" in MODELS[model][0] else means[0]
    x, z = (lambda v: 250 * (shift + v)), (lambda v: 1e-3 * (0.58 * means[1] + v))
    other = data.assign(x=x(data["x"]), z=z(data["z"]))
    found = numbers(again := fitted(model, other), other)
    of_coefficients = ("likelihood" if MODELS[model][2].get("reml") else "none", "fixef", "se", "sd", "corr", "ranef")
    assert_same(found, wanted, of_coefficients)
    again.save(tmp_path / "model")
    assert_same(numbers(jg.load(tmp_path / "model"), other), found, tolerance={"rtol": 1e-13, "atol": 1e-13})
    assert_same(of_rows(again, other, x(0.3), z(0.2), 250), of_rows(fit, data, 0.3, 0.2))
    np.testing.assert_allclose(again.fixef["x"] * 250, fit.fixef["x"], rtol=1e-7)
    np.testing.assert_allclose(again.fixef_se["x"] * 250, fit.fixef_se["x"], rtol=1e-7)
    slopes = lambda f, unit: [unit * term["sd"] for term in f.varcorr if term["name"] == "x"]
    np.testing.assert_allclose(slopes(again, 250), slopes(fit, 1), rtol=1e-7)
    if MODELS[model][2].get("reml"):  # a density of contrasts: det X'X changes by the units
        units = np.log(250) + (np.log(1e-3) if "z" in fit.fixef else 0.0)
        np.testing.assert_allclose(again.loglik + units, fit.loglik, rtol=1e-9)


@pytest.mark.parametrize("response, family", [("y", "gaussian"), ("count", "poisson")])
def test_units_without_an_intercept(data, response, family, tmp_path):
    """The dummies of a factor have a constant in their span: a column's mean is theirs to take up."""
    formula = f"{response} ~ 0 + c + x + (1 | g)"
    other = data.assign(x=250 * (1e6 + data["x"]))
    one, two = (jg.fit(formula, rows, family=family) for rows in (data, other))
    wanted, found = numbers(one, data), numbers(two, other)
    assert_same(found, wanted, ("fixef", "se"))
    np.testing.assert_allclose(two.fixef["x"] * 250, one.fixef["x"], rtol=1e-8)
    two.save(tmp_path / "model")
    assert_same(numbers(jg.load(tmp_path / "model"), other), found, tolerance={"rtol": 1e-13, "atol": 1e-13})


@pytest.mark.parametrize("model", MODELS)
def test_rows_of_weight_zero(data, plain, model):
    _, wanted = plain(model)
    more = data.iloc[::7].assign(w=0.0, g="another", h="another", c="another")
    more[["y", "event", "count", "time", "share"]] = [50.0, 1.0, 900, 70.0, 0.5]
    found = fitted(model, pd.concat([data.iloc[:100], more, data.iloc[100:]]), weights="w")
    assert_same(numbers(found, data), wanted)


@pytest.mark.parametrize("model", ["Poisson, no groups", "Poisson, crossed", "negative binomial", "gamma", "beta"])
def test_copies_are_weights(data, model):
    """Every other row twice, or with weight 2."""
    twice = np.arange(len(data)) % 2 == 1
    copies = fitted(model, data.iloc[np.repeat(np.arange(len(data)), 1 + twice)])
    weights = fitted(model, data.assign(w=1.0 + twice), weights="w")
    leave = ["ranef"]  # counts rows: a weight of two is one row of them
    assert_same(numbers(weights, data), numbers(copies, data), leave)
    for group in copies.groups:
        one, two = (pd.DataFrame(fit.ranef(group)) for fit in (copies, weights))
        for name in ("estimate", "sd", "mean", "sd_mean", "reliability"):
            np.testing.assert_allclose(np.asarray(one[name]), np.asarray(two[name]), rtol=1e-8, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_saved_and_loaded(data, plain, model, tmp_path):
    fit, wanted = plain(model)
    fit.save(tmp_path / "model")
    assert_same(numbers(jg.load(tmp_path / "model"), data), wanted, tolerance={"rtol": 1e-13, "atol": 1e-13})


@pytest.mark.parametrize("model", ["Gaussian slopes, REML", "logit, nested", "gamma"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_is_its_table(data, plain, model, ending, tmp_path):
    path = tmp_path / f"rows.{ending}"
    data.to_csv(path, index=False) if ending == "csv" else data.to_parquet(path)
    _, wanted = plain(model)
    assert_same(numbers(fitted(model, str(path)), str(path)), wanted, tolerance={"rtol": 1e-10, "atol": 1e-10})


def test_a_factor_written_as_two_that_are_the_same_groups_is_refused(data):
    for formula, family in (("y ~ x + (1 | g/twin)", "gaussian"), ("event ~ x + (1 | g/twin)", "binomial")):
        with pytest.raises(jg.DataError, match=r"g"):
            jg.fit(formula, data.assign(twin="only"), family=family)
