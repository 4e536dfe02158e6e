"""The fixed part: R's spelling, names, and columns against independent formulas."""

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import BSpline, CubicSpline

from jaxglmm.errors import DataError, FormulaError
from jaxglmm.formula.fixed import evaluate, make, plan, plan_expression, remake


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    n = 60
    return {
        "x": pd.Series(rng.gamma(2.0, size=n)),
        "k": pd.Series(np.arange(n) % 3.0),
        "f": pd.Series(pd.Categorical.from_codes(np.arange(n) % 3, ["low", "mid", "high"])),
        "b": pd.Series(np.arange(n) % 4 == 0),
        "my.var": pd.Series(rng.normal(size=n)),
        "a b": pd.Series(rng.normal(size=n)),
    }


def columns_of(text, data, full_rank=True):
    recipe, columns = make(plan(text, list(data), full_rank), data, 60)
    return dict(zip(recipe.names, (np.asarray(c, dtype=float) for c in columns), strict=True))


def same_space(A, B):
    """Whether the columns of A and B span the same space."""
    residual = B - A @ np.linalg.lstsq(A, B, rcond=None)[0]
    return np.linalg.matrix_rank(A) == np.linalg.matrix_rank(B) and np.abs(residual).max() < 1e-9 * np.abs(B).max()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1", ["Intercept"]),
        ("0", []),
        ("-1 + x", ["x"]),
        ("x - 1", ["x"]),
        ("I(x^2)", ["Intercept", "I(x^2)"]),
        ("I((x + k)^2)", ["Intercept", "I((x + k)^2)"]),
        ("I(x > 2)", ["Intercept", "I(x > 2)[T.True]"]),
        ("b", ["Intercept", "b[T.True]"]),
        ("f", ["Intercept", "f[T.mid]", "f[T.high]"]),
        ("0 + f", ["f[low]", "f[mid]", "f[high]"]),
        ("factor(k)", ["Intercept", "factor(k)[T.1]", "factor(k)[T.2]"]),
        ("as.factor(k)", ["Intercept", "as.factor(k)[T.1]", "as.factor(k)[T.2]"]),
        ("C(k, levels=[2, 0, 1])", ["Intercept", "C(k, levels=[2, 0, 1])[T.0]", "C(k, levels=[2, 0, 1])[T.1]"]),
        ("relevel(f, ref = 'high')", ["Intercept", "relevel(f, ref='high')[T.low]", "relevel(f, ref='high')[T.mid]"]),
        ("x * f", ["Intercept", "x", "f[T.mid]", "f[T.high]", "x:f[T.mid]", "x:f[T.high]"]),
        ("my.var", ["Intercept", "my.var"]),
        ("log1p(abs(my.var))", ["Intercept", "log1p(abs(my.var))"]),
        ("`a b` + I(`a b`^2)", ["Intercept", "a b", "I(`a b`^2)"]),
        ("(x + k)^2", ["Intercept", "x", "k", "x:k"]),
    ],
)
def test_names(data, text, names):
    assert list(columns_of(text, data)) == names


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("I(x^2)", lambda d: d["x"] ** 2),
        ("I((x + k)^2 * 3)", lambda d: (d["x"] + d["k"]) ** 2 * 3),
        ("I(2^k)", lambda d: 2.0 ** d["k"]),
        ("I(k^-1 + 1)", lambda d: 1 / d["k"] + 1),
        ("I(x > 2)", lambda d: d["x"] > 2),
        ("I((x > 2) & (k < 1))", lambda d: (d["x"] > 2) & (d["k"] < 1)),
        ("ifelse(x > 2, 1L, 0L)", lambda d: d["x"] > 2),
        ("log(`a b`^2)", lambda d: np.log(d["a b"] ** 2)),
        ("I(my.var + 1)", lambda d: d["my.var"] + 1),
        ("center(log(x))", lambda d: np.log(d["x"]) - np.log(d["x"]).mean()),
        ("scale(x)", lambda d: (d["x"] - d["x"].mean()) / d["x"].std(ddof=1)),
        ("log(x, base = 2)", lambda d: np.log2(d["x"])),
        ("np.log(x)", lambda d: np.log(d["x"])),
        ("f == 'mid'", lambda d: d["f"] == "mid"),
    ],
)
def test_values(data, text, value):
    if "==" in text:
        text = "{" + text + "}"
    columns = columns_of(text, data | {"k": data["k"] + 1} if "^-1" in text else data)
    expected = value(data | {"k": data["k"] + 1} if "^-1" in text else data)
    np.testing.assert_allclose(list(columns.values())[-1], np.asarray(expected, dtype=float), rtol=1e-14)


def test_full_rank_false_keeps_every_dummy(data):
    assert list(columns_of("f + b", data, full_rank=False)) == [
        "Intercept", "f[low]", "f[mid]", "f[high]", "b[False]", "b[True]",
    ]  # fmt: skip


def test_small_integers_do_not_overflow():
    from jaxglmm.formula.frame import model_frame

    class Any:
        name = "gaussian"

        def check_response(self, *_):
            pass

    frame = model_frame(
        "y ~ I(a^2) + I(a - u)", {"y": [1.0, 2], "a": np.int8([100, 50]), "u": np.uint8([200, 3])}, family=Any()
    )
    assert frame.X[:, 1].tolist() == [10000, 2500]
    assert frame.X[:, 2].tolist() == [-100, 47]


def test_natural_spline_spans_r_space(data):
    # R's ns(x, df = 4): natural cubic splines with inner knots at the quartiles, boundary knots at the range
    x = np.asarray(data["x"])
    made = np.column_stack(list(columns_of("ns(x, df = 4)", data).values()))
    knots = np.quantile(x, np.linspace(0, 1, 5))
    truth = CubicSpline(knots, np.eye(5), bc_type="natural")(x)
    assert made.shape == (60, 5)
    assert same_space(truth, made)


def test_natural_spline_is_linear_outside(data):
    recipe, _ = make(plan("ns(x, df = 4)", list(data)), data, 60)
    high = data["x"].max()
    new = {"x": pd.Series(high + np.arange(4.0))}
    columns = np.column_stack(remake(recipe, new, 4)[1:])
    np.testing.assert_allclose(np.diff(columns, 2, axis=0), 0, atol=1e-11)


def test_b_spline(data):
    x = np.asarray(data["x"])
    made = np.column_stack(list(columns_of("bs(x, df = 5)", data).values())[1:])
    inner = np.quantile(x, [1 / 3, 2 / 3])
    knots = np.r_[[x.min()] * 4, inner, [x.max()] * 4]
    truth = BSpline.design_matrix(np.clip(x, None, np.nextafter(x.max(), 0)), knots, 3).toarray()[:, 1:]
    np.testing.assert_allclose(made, truth, atol=1e-10)


def test_poly(data):
    made = np.column_stack(list(columns_of("poly(x, 3)", data).values()))
    np.testing.assert_allclose(made[:, 1:].T @ made[:, 1:], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(made[:, 1:].sum(axis=0), 0, atol=1e-12)
    assert same_space(np.vander(np.asarray(data["x"]), 4), made)
    raw = columns_of("poly(x, 2, raw = T)", data)
    np.testing.assert_allclose(list(raw.values())[2], data["x"] ** 2)


def test_remake_uses_the_old_state(data):
    text = "bs(x, df = 4, extrapolation = 'clip') + poly(x, 2) + center(log(x)) + scale(k):f + C(k)"
    recipe, columns = make(plan(text, list(data)), data, 60)
    half = {name: value.iloc[:30].reset_index(drop=True) for name, value in data.items()}
    for old, new in zip(columns, remake(recipe, half, 30), strict=True):
        assert np.asarray(old, dtype=float)[:30].tobytes() == np.asarray(new, dtype=float).tobytes()


def test_unseen_level_of_c(data):
    recipe, _ = make(plan("C(k)", list(data)), data, 60)
    with pytest.raises(DataError, match=r"'C\(k\)' has the level 7"):
        remake(recipe, {"k": pd.Series([0.0, 7.0])}, 2)


def test_outside_of_the_spline(data):
    recipe, _ = make(plan("bs(x, df = 4)", list(data)), data, 60)
    with pytest.raises(DataError, match="extrapolation"):
        remake(recipe, {"x": pd.Series([1e3])}, 1)


def test_levels_that_leave_data_out(data):
    with pytest.raises(FormulaError, match="levels= lacks '2'"):
        make(plan("C(k, levels=[0, 1])", list(data)), data, 60)


def test_one_level(data):
    with pytest.raises(DataError, match="only the level 0"):
        columns_of("C(k)", data | {"k": pd.Series(np.zeros(60))})


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lgo(x)", FormulaError, "unknown function 'lgo'.*Did you mean 'log'"),
        ("X", DataError, "Did you mean 'x'"),
        ("log(nothing)", DataError, "uses 'nothing'"),
        ("x k", FormulaError, "cannot be read"),
        ("I(x", FormulaError, "never closed"),
        ("offset(x):f", FormulaError, "term of its own"),
        ("I(x > 1 & k < 3)", FormulaError, "in parentheses"),
        ("I(1 < x < 3)", FormulaError, "as two"),
        ("I(x %in% c(1, 2))", FormulaError, "isin"),
        ("log(f)", FormulaError, "log"),
        ("__import__('os').system('true')", FormulaError, "cannot be read|unknown function|may not"),
        ("I(__import__('os').system('true'))", FormulaError, "unknown function|may not"),
        ("x.to_csv('stolen')", FormulaError, "to_csv"),
        ("I(x.__class__)", FormulaError, "__class__"),
        ("np.load(x)", FormulaError, "np.load"),
        ("I((lambda: 1)())", FormulaError, "Lambda"),
        ("I([z for z in x])", FormulaError, "ListComp"),
        ("log(x, k, my.var)", FormulaError, "log"),
        ("sqrt(x, k)", FormulaError, "too many arguments"),
        ("np.exp(x, k)", FormulaError, "too many arguments"),
        ("np.exp(x, out = k)", FormulaError, "'out'"),
        ("np.clip(x, 0, 1, k)", FormulaError, "too many arguments"),
        ("x.clip(0, 1, inplace = True)", FormulaError, "'inplace'"),
        ("ns(x)", FormulaError, "df of at least 2"),
        ("open('a')", FormulaError, "unknown function 'open'"),
    ],
)
def test_errors(data, text, error, message):
    with pytest.raises(error, match=message):
        make(plan(text, list(data)), data, 60)


def test_expression(data):
    value = evaluate(plan_expression("log(my.var^2) - center(x)", list(data)), data)
    truth = np.log(data["my.var"] ** 2) - (data["x"] - data["x"].mean())
    np.testing.assert_allclose(np.asarray(value), truth, rtol=1e-12)


def test_columns_named_like_python_keywords():
    """R knows no such words: `yield`, `class` and `lambda` are ordinary columns there."""
    rng = np.random.default_rng(3)
    values = {name: pd.Series(rng.gamma(2.0, size=60)) for name in ("yield", "class", "lambda")}
    plain = {name[0]: column for name, column in values.items()}
    made = columns_of("yield + class:lambda + I(lambda^2) + log(class)", values)
    expected = columns_of("y + c:l + I(l^2) + log(c)", plain)
    assert list(made) == ["Intercept", "yield", "I(lambda^2)", "log(class)", "class:lambda"]
    for column, other in zip(made.values(), expected.values(), strict=True):
        assert np.array_equal(column, other)
    assert np.array_equal(evaluate(plan_expression("yield", list(values)), values), values["yield"])
