"""Formula and table to arrays: kinds of table, levels, missing values, responses, errors."""

import numpy as np
import pandas as pd
import pytest

from jaxglmm.errors import DataError, DataWarning, FormulaError
from jaxglmm.formula.frame import model_frame
from jaxglmm.model.families import get_family


GAUSSIAN, BINOMIAL, POISSON = get_family("gaussian"), get_family("binomial"), get_family("poisson")
N = 12


def raw():
    rng = np.random.default_rng(0)
    return {
        "y": rng.normal(size=N),
        "x": rng.normal(size=N),
        "k": np.arange(N) % 3,
        "t": np.array(list("abc" * 4)),
        "b": np.arange(N) % 2 == 0,
        "g": np.repeat(["g10", "g2", "g1"], 4),
        "h": np.repeat([10, 2, 1, 7], 3),
    }


def with_gaps():
    data = {k: v.tolist() for k, v in raw().items()}
    data["x"][3] = data["t"][4] = data["h"][5] = data["b"][6] = data["k"][7] = None
    return data


def tables():
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    return {
        "dict": (lambda d: d, "dict"),
        "lists": (lambda d: {k: list(v) for k, v in d.items()}, "dict"),
        "series": (lambda d: {k: pl.Series(v) for k, v in d.items()}, "dict"),
        "pandas": (pd.DataFrame, "pandas"),
        "pandas-object": (lambda d: pd.DataFrame(d).astype({"t": "object", "g": "object"}), "pandas"),
        "pandas-category": (lambda d: pd.DataFrame(d).astype({"t": "category", "g": "category"}), "pandas"),
        "pandas-nullable": (lambda d: pd.DataFrame(d).convert_dtypes(), "pandas"),
        "pandas-arrow": (lambda d: pd.DataFrame(d).convert_dtypes(dtype_backend="pyarrow"), "pandas"),
        "polars": (pl.DataFrame, "polars"),
        "polars-lazy": (lambda d: pl.DataFrame(d).lazy(), "polars"),
        "polars-category": (
            lambda d: pl.DataFrame(d).with_columns(pl.col("t").cast(pl.Categorical), pl.col("g").cast(pl.Categorical)),
            "polars",
        ),
        "pyarrow": (pa.table, "pyarrow"),
        "pyarrow-dictionary": (lambda d: pa.Table.from_pandas(pd.DataFrame(d).astype({"t": "category"})), "pyarrow"),
    }


def content(frame):
    return (
        frame.names,
        frame.X.tobytes(),
        frame.y.tobytes(),
        frame.rows.tolist(),
        frame.dropped_by,
        [(t.group, t.levels.tolist(), t.codes.tobytes(), t.names, t.z.tobytes(), t.blocks) for t in frame.terms],
    )


FORMULA = "y ~ x * t + b + C(k) + I(x^2) + (1 + x + t | g) + (1 | h) + (x || g:h) + (t || k)"


def test_terms():
    frame = model_frame(FORMULA, raw(), family=GAUSSIAN)
    g, h, gh, k = frame.terms
    assert frame.X.flags.c_contiguous and frame.X.shape == (N, len(frame.names))
    assert (g.group, g.levels.tolist(), g.blocks) == ("g", ["g1", "g10", "g2"], ((0, 1, 2, 3),))
    assert g.names == ("Intercept", "x", "t[T.b]", "t[T.c]")
    assert g.codes.dtype == np.int32 and g.z.flags.c_contiguous
    assert (g.levels[g.codes] == raw()["g"]).all()
    assert h.levels.tolist() == [1, 2, 7, 10]
    assert gh.levels.tolist() == ["g1:1", "g1:7", "g10:2", "g10:10", "g2:1", "g2:2"]
    assert gh.blocks == ((0,), (1,)) and gh.names == ("Intercept", "x")
    joined = [f"{a}:{b}" for a, b in zip(raw()["g"], raw()["h"], strict=True)]
    assert gh.levels[gh.codes].tolist() == joined
    # as lme4: || takes terms apart, and a factor's dummies stay together, all of them
    assert k.names == ("Intercept", "t[a]", "t[b]", "t[c]") and k.blocks == ((0,), (1, 2, 3))


@pytest.mark.parametrize("kind", ["lists", "series", "pandas", "pandas-object", "pandas-category", "pandas-nullable",
                                  "pandas-arrow", "polars", "polars-lazy", "polars-category", "pyarrow",
                                  "pyarrow-dictionary"])  # fmt: skip
def test_every_kind_of_table_gives_the_same(kind):
    build, native = tables()[kind]
    frame = model_frame(FORMULA, build(raw()), family=GAUSSIAN)
    assert content(frame) == content(model_frame(FORMULA, raw(), family=GAUSSIAN))
    assert frame.native == native
    X, _ = frame.spec.fixed_matrix(build(raw()))
    assert X.tobytes() == frame.X.tobytes()
    gaps = "y ~ x * t + b + C(k) + (1 | h) + (x || g:h)"
    frame = model_frame(gaps, build(with_gaps()), family=GAUSSIAN)
    assert content(frame) == content(model_frame(gaps, with_gaps(), family=GAUSSIAN))
    assert frame.rows.tolist() == [0, 1, 2, 8, 9, 10, 11] and frame.n_dropped == 5
    assert frame.dropped_by == {"x": 1, "t": 1, "k": 1, "b": 1, "h": 1}
    X, _ = frame.spec.fixed_matrix(build(with_gaps()))
    assert np.isnan(X).all(axis=1).tolist() == [i in (3, 4, 6, 7) for i in range(N)]
    z, labels, codes = frame.spec.effect_matrix(1, build(with_gaps()))
    assert np.isnan(z).any(axis=0).tolist() == [i == 3 for i in range(N)]
    assert labels.tolist()[:6] == ["g10:10", "g10:10", "g10:10", "g10:2", "g2:2", None]
    assert codes[:6].tolist() == [2, 2, 2, -1, -1, -1]  # g10:2 and g2:2 only stand in incomplete rows


def test_structured_array():
    array = np.array([(1.0, 2, "a"), (2.0, 3, "b"), (0.5, 9, "a")], dtype=[("y", "f8"), ("x", "i4"), ("g", "U1")])
    frame = model_frame("y ~ x + (1 | g)", array, family=GAUSSIAN)
    assert frame.X[:, 1].tolist() == [2, 3, 9] and frame.terms[0].codes.tolist() == [0, 1, 0]


# levels


def test_category_order_is_kept_and_unused_levels_go():
    table = pd.DataFrame({"y": [1.0, 2, 3], "f": pd.Categorical(["b", "c", "b"], categories=["c", "a", "b"])})
    frame = model_frame("y ~ f + (1 | f)", table, family=GAUSSIAN)
    assert frame.names == ("Intercept", "f[T.b]") and frame.terms[0].levels.tolist() == ["c", "b"]


def test_cut():
    table = pd.DataFrame({"y": [1.0, 2, 3], "a": [1.0, 9, 5]}).assign(f=lambda d: pd.cut(d["a"], [0, 3, 6, 10]))
    assert model_frame("y ~ f", table, family=GAUSSIAN).names == ("Intercept", "f[T.(3, 6]]", "f[T.(6, 10]]")


def test_polars_enum_order_and_categorical_sorted():
    pl = pytest.importorskip("polars")
    pl.Series(["z", "q"], dtype=pl.Categorical)  # physical numbers depend on what the process saw before
    table = pl.DataFrame({"y": [1.0, 2, 3], "e": ["b", "c", "b"], "s": ["z", "b", "z"]}).with_columns(
        pl.col("e").cast(pl.Enum(["c", "a", "b"])), pl.col("s").cast(pl.Categorical)
    )
    frame = model_frame("y ~ e + s", table, family=GAUSSIAN)
    assert frame.names == ("Intercept", "e[T.b]", "s[T.z]")


def test_levels_argument():
    data = {"y": np.arange(6.0), "t": list("abcabc"), "p": [1, 2, 10, 1, 2, 10], "g": [3, 1, 2, 3, 1, 2]}
    order = {"t": ["c", "a", "b"], "p": "categorical", "g": ["2", "3", "1"]}
    frame = model_frame("y ~ t + p + (1 | g)", data, family=GAUSSIAN, levels=order)
    assert frame.names == ("Intercept", "t[T.a]", "t[T.b]", "p[T.2]", "p[T.10]")
    assert frame.terms[0].levels.tolist() == [2, 3, 1]
    X, _ = frame.spec.fixed_matrix({"t": ["b"], "p": [10]})
    assert X.tolist() == [[1, 0, 1, 0, 1]]


def test_levels_argument_errors():
    data = {"y": np.arange(3.0), "t": list("abc")}
    with pytest.raises(DataError, match="lacks 'c'"):
        model_frame("y ~ t", data, family=GAUSSIAN, levels={"t": ["a", "b"]})
    with pytest.raises(DataError, match=r"levels= uses 'T'.*Did you mean 't'"):
        model_frame("y ~ t", data, family=GAUSSIAN, levels={"T": ["a"]})
    with pytest.raises(DataError, match="list of levels"):
        model_frame("y ~ t", data, family=GAUSSIAN, levels={"t": "a,b,c"})
    with pytest.raises(DataError, match="twice"):
        model_frame("y ~ t", data, family=GAUSSIAN, levels={"t": ["a", "b", "c", "a"]})
    with pytest.warns(DataWarning, match="no row has the level 'd'"):
        model_frame("y ~ t", data, family=GAUSSIAN, levels={"t": ["d", "a", "b", "c"]})


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([10, 9, 2], [2, 9, 10]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        ([10**15, 5, -3], [-3, 5, 10**15]),
        ([1.5, -2.0, 0.0], [-2.0, 0.0, 1.5]),
        ([3.0, 1.0, np.nan], [1, 3]),
        ([True, False, True], [False, True]),
        (["b", None, "a"], ["a", "b"]),
        (np.array(["2020-02-01", "2020-01-01", "NaT"], dtype="M8[D]"), None),
    ],
)
def test_group_levels(values, levels):
    frame = model_frame("y ~ 1 + (1 | g)", {"y": np.arange(3.0), "g": values}, family=GAUSSIAN)
    term = frame.terms[0]
    if levels is not None:
        assert term.levels.tolist() == levels
        assert [type(v) for v in term.levels.tolist()] == [type(v) for v in levels]
    assert (term.levels[term.codes] == pd.Series(values).to_numpy()[frame.rows]).all()


def test_codes_against_numpy():
    rng = np.random.default_rng(3)
    for ids in (rng.integers(0, 500, 3000), rng.integers(-(10**12), 10**12, 300)[rng.integers(0, 300, 3000)]):
        for values in (ids, ids.astype(str), pd.Series(ids).astype("category"), ids + 0.5):
            term = model_frame("y ~ (1 | g)", {"y": np.ones(3000), "g": values}, family=GAUSSIAN).terms[0]
            unique, inverse = np.unique(ids, return_inverse=True)
            assert (term.codes == inverse).all() and len(term.levels) == len(unique)


# random effects


def test_joined_bars():
    frame = model_frame("y ~ x + ((1 | g) + (0 + x | g))", raw(), family=GAUSSIAN)
    (term,) = frame.terms
    assert term.names == ("Intercept", "x") and term.blocks == ((0,), (1,))
    assert (term.z[1] == raw()["x"]).all()


def test_nested():
    frame = model_frame("y ~ 1 + (1 | g/h)", raw(), family=GAUSSIAN)
    assert [t.group for t in frame.terms] == ["g", "g:h"]


def test_repeated_effect():
    with pytest.raises(FormulaError, match="'Intercept' twice"):
        model_frame("y ~ x + (1 | g) + (x | g)", raw(), family=GAUSSIAN)
    with pytest.raises(FormulaError, match="no effect"):
        model_frame("y ~ x + (0 | g)", raw(), family=GAUSSIAN)


def test_no_fixed_effects():
    frame = model_frame("y ~ 0 + (1 | g)", raw(), family=GAUSSIAN)
    assert frame.X.shape == (N, 0) and frame.names == ()
    assert frame.spec.fixed_matrix(raw())[0].shape == (N, 0)


# responses


def test_two_levels():
    data = {"o": ["none or mild", "moderate or severe", "none or mild"], "b": [True, False, True], "x": [0, 1, 2]}
    frame = model_frame("o ~ x", data, family=BINOMIAL)
    assert frame.modelled == "P(o = none or mild)" and frame.y.tolist() == [1, 0, 1]
    order = ["none or mild", "moderate or severe"]
    frame = model_frame("o ~ x", data, family=BINOMIAL, levels={"o": order})
    assert frame.modelled == "P(o = moderate or severe)" and frame.y.tolist() == [0, 1, 0]
    table = pd.DataFrame(data).assign(o=lambda d: pd.Categorical(d["o"], categories=order))
    assert model_frame("o ~ x", table, family=BINOMIAL).y.tolist() == [0, 1, 0]
    frame = model_frame("b ~ x", data, family=BINOMIAL)
    assert frame.modelled == "P(b = True)" and frame.y.tolist() == [1, 0, 1]
    frame = model_frame("(x > 0) ~ 1", data, family=BINOMIAL)
    assert frame.modelled == "P(x > 0)" and frame.y.tolist() == [0, 1, 1]
    frame = model_frame("x ~ 1", {"x": [2, 1, 2]}, family=BINOMIAL, levels={"x": "categorical"})
    assert frame.modelled == "P(x = 2)" and frame.y.tolist() == [1, 0, 1]
    assert model_frame("x ~ 1", {"x": [1, 0, 1]}, family=BINOMIAL).modelled is None


def test_counts():
    data = {"s": [1, 0, 3], "size": [4, 0, 3], "w": [1.0, 1.0, 2.0]}
    frame = model_frame("cbind(s, size - s) ~ 1", data, family=BINOMIAL)
    # The row without a trial counts nowhere.
    assert frame.y.tolist() == [0.25, 1] and frame.weights.tolist() == [4, 3]
    assert (frame.rows.tolist(), frame.weightless.tolist(), frame.n_dropped, frame.total) == ([0, 2], [1], 0, 3)
    assert frame.modelled == "P(success) from cbind(s, size - s)"
    assert model_frame("cbind(s, size - s) ~ 1", data, family=BINOMIAL, weights="w").weights.tolist() == [4, 6]
    y, trials = frame.spec.response_values({"s": [1, np.nan], "size": [2, 2]})
    assert y[0] == 0.5 and trials[0] == 2 and np.isnan(y[1])
    frame = model_frame("p ~ 1", {"p": [0.25, 0.5], "n": [4, 2]}, family=BINOMIAL, weights="n")
    assert frame.y.tolist() == [0.25, 0.5] and frame.weights.tolist() == [4, 2]


def test_left_expressions():
    data = {"y": [1.0, 2, 4], "x": [0.0, 1, 5]}
    assert model_frame("log(y) ~ x", data, family=GAUSSIAN).y.tolist() == np.log([1, 2, 4]).tolist()
    assert model_frame("I(y^2) ~ x", data, family=GAUSSIAN).y.tolist() == [1, 4, 16]
    assert model_frame("y / 4 ~ x", data, family=GAUSSIAN).y.tolist() == [0.25, 0.5, 1]
    assert model_frame("~ x", data, family=GAUSSIAN).y is None
    assert model_frame("`y` ~ `x`", data, family=GAUSSIAN).y.tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("formula", "family", "message"),
    [
        ("t ~ x", GAUSSIAN, "holds labels"),
        ("t ~ x", POISSON, "holds labels"),
        ("t ~ x", BINOMIAL, "has 3 levels"),
        ("one ~ x", BINOMIAL, "has 1 level "),
        ("cbind(k, b) ~ x", POISSON, "family is poisson"),
        ("cbind(k, k - 1) ~ x", BINOMIAL, "'k - 1'.* is -1 in row 0"),
        ("cbind(k, t) ~ x", BINOMIAL, "not a number"),
        ("cbind(k) ~ x", BINOMIAL, "1 arguments"),
        ("log(k) ~ x", GAUSSIAN, "is -inf in row 0"),
        ("x ~ 1", BINOMIAL, "x"),
    ],
)
def test_response_errors(formula, family, message):
    with pytest.raises((DataError, FormulaError), match=message):
        model_frame(formula, raw() | {"one": ["a"] * N}, family=family)


# weights and offsets


def test_weights_and_offsets():
    data = {"y": [1.0, 2, 3], "e": [1.0, 2, 4], "w": [1, 0, 2], "o": [0.5, 0, 0]}
    frame = model_frame("y ~ 1 + offset(log(e)) + offset(e^2)", data, family=GAUSSIAN, weights="w", offset="o")
    expected = np.log([1, 2, 4]) + np.array([1.5, 4, 16])
    np.testing.assert_allclose(frame.offset, expected[[0, 2]])
    assert frame.weights.tolist() == [1, 2] and frame.weightless.tolist() == [1]
    np.testing.assert_allclose(frame.spec.fixed_matrix(data)[1], expected)
    frame = model_frame("y ~ 1", data, family=GAUSSIAN, weights=np.array([1, 2, 3]), offset=[0.1, 0.2, 0.3])
    assert frame.weights.tolist() == [1, 2, 3] and frame.offset.tolist() == [0.1, 0.2, 0.3]
    assert frame.spec.offset_given and frame.spec.fixed_matrix(data)[1].tolist() == [0, 0, 0]
    gap = data | {"y": [1.0, np.nan, 3], "w": [1, 1, np.nan]}
    frame = model_frame("y ~ 1", gap, family=GAUSSIAN, weights="w", offset=[0.1, 0.2, 0.3])
    assert frame.rows.tolist() == [0] and frame.dropped_by == {"y": 1, "w": 1} and frame.offset.tolist() == [0.1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, 2]}, r"weights has shape \(2,\)"),
        ({"weights": -np.arange(12.0)}, "-1 in row 1"),
        ({"weights": [np.nan] * 12}, "missing in row 0"),
        ({"weights": [np.inf] * 12}, "inf in row 0"),
        ({"weights": np.zeros(12)}, "0 in every row"),
        ({"weights": "t"}, "column of text"),
        ({"weights": "ww"}, "weights= uses 'ww'"),
        ({"weights": ["a"] * 12}, "not numeric"),
        ({"offset": np.zeros((12, 2))}, r"offset has shape \(12, 2\)"),
        ({"offset": "nothing"}, "offset= uses 'nothing'"),
    ],
)
def test_weight_errors(options, message):
    with pytest.raises(DataError, match=message):
        model_frame("y ~ x", raw(), family=GAUSSIAN, **options)


# errors about the table


@pytest.mark.parametrize(
    ("formula", "change", "message"),
    [
        ("y ~ xx", {}, "Did you mean 'x'.*Columns: y, x"),
        ("y ~ x + (1 | G)", {}, "'G', which is not a column.*Did you mean 'g'"),
        ("y ~ x", {"x": np.r_[1.0, np.inf, np.zeros(10)]}, "'x' is inf in row 1"),
        ("y ~ log(x)", {"x": np.arange(12.0)}, r"'log\(x\)' is -inf in row 0.*from x"),
        ("y ~ log(x)", {"x": np.r_[1.0, -1, np.ones(10)]}, r"'log\(x\)' is nan in row 1"),
        ("y ~ x", {"x": np.arange(5)}, "differ in length"),
        ("y ~ x", {"x": np.array(["2020-01-01"] * 12, dtype="M8[D]")}, "dates or times"),
        ("y ~ x", {"x": pd.Series([[1], [2]] * 6)}, "'x' holds"),
        ("y ~ x", {"x": [[1], [2, 3]] * 6}, "'x' holds"),
        ("y ~ 1 + (1 | g)", {"g": [[1], [2, 3]] * 6}, "'g' holds"),
        ("y ~ 1 + (1 | g)", {"g": [{"a": 1}] * 12}, "'g' holds"),
        ("y ~ x", {"x": [1, "a"] * 6}, "int and str"),
        ("y ~ x", {"x": 3.0}, "single value"),
        ("y ~ x", {"x": np.ones((12, 3))}, r"shape \(12, 3\)"),
        ("y ~ x", {"x": np.full(12, np.nan)}, "no row is complete"),
        ("y ~ x", {"x": np.ones(12, dtype=complex)}, "complex"),
        ("y ~ t", {"t": ["only"] * 12}, "only the level 'only'"),
    ],
)
def test_data_errors(formula, change, message):
    with pytest.raises(DataError, match=message):
        model_frame(formula, raw() | change, family=GAUSSIAN)


def test_empty_and_odd_tables():
    for empty in (pd.DataFrame({"y": [], "x": []}), {"y": [], "x": []}):
        with pytest.raises(DataError, match="no rows"):
            model_frame("y ~ x", empty, family=GAUSSIAN)
    with pytest.raises(DataError, match="not a column"):
        model_frame("y ~ x", {}, family=GAUSSIAN)
    with pytest.raises(DataError, match="of type int"):
        model_frame("y ~ x", 3, family=GAUSSIAN)
    twice = pd.DataFrame(np.ones((3, 3)), columns=["y", "x", "x"])
    with pytest.raises(DataError, match="2 columns named 'x'"):
        model_frame("y ~ x", twice, family=GAUSSIAN)
    assert model_frame("y ~ 1", twice, family=GAUSSIAN).X.shape == (3, 1)  # only used columns count
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="2 columns named 'x'"):
        model_frame("y ~ x", pa.table([[1.0], [2.0], [3.0]], names=["y", "x", "x"]), family=GAUSSIAN)


def test_unused_columns_are_not_touched():
    data = {"y": [1.0, 2], "x": [0.0, 1], "junk": object()}
    assert model_frame("y ~ x", data, family=GAUSSIAN).X.shape == (2, 2)


def test_what_is_imported(run_python):
    code = """
import sys
from jaxglmm.formula.frame import model_frame
print(sorted({"polars", "scipy.stats", "matplotlib", "optax", "sklearn", "jax"} & set(sys.modules)))
"""
    assert run_python(code) == "[]"


def test_prediction_errors():
    frame = model_frame("y ~ t + x + (1 | g) + (1 | h)", raw(), family=GAUSSIAN)
    new = {"t": ["a", "q"], "x": [1.0, 2], "g": ["g1", "new"], "h": [1, 99]}
    with pytest.raises(DataError, match="'t' has the level 'q'"):
        frame.spec.fixed_matrix(new)
    with pytest.raises(DataError, match="not a column"):
        frame.spec.fixed_matrix({"t": ["a"]})
    with pytest.raises(DataError, match="fitted to numbers"):
        frame.spec.fixed_matrix(new | {"t": ["a", "b"], "x": ["1", "2"]})
    z, labels, codes = frame.spec.effect_matrix(0, new)
    assert codes.tolist() == [0, -1] and labels.tolist() == ["g1", "new"] and z.tolist() == [[1, 1]]
    with pytest.raises(DataError, match="'h' holds text"):
        frame.spec.effect_matrix(1, new | {"h": ["1", "2"]})
    X, offset = frame.spec.fixed_matrix({"t": [], "x": []})
    assert X.shape == (0, 4) and offset.shape == (0,)


@pytest.mark.reference
def test_reference_designs(reference_dir):
    """Rows, columns and levels of lme4's and glmmTMB's fits of real data."""
    import json

    for path in sorted(reference_dir.glob("[!g]*.json")):
        stored = json.loads(path.read_text())
        levels = {
            name: column["levels"] if isinstance(column["levels"], list) else "categorical"
            for name, column in stored["columns"].items()
            if column["type"] == "factor"
        }
        for fit in {f["model"]: f for f in stored["fits"]}.values():
            if fit["formula"].count("diag("):
                continue
            family = get_family({"nbinom2": "negativebinomial"}.get(fit["family"], fit["family"]))
            frame = model_frame(fit["formula"], reference_dir / stored["csv"], family=family, levels=levels)
            assert len(frame.y) == fit["n_obs"]
            assert len(frame.names) == len(fit["fixef"]["names"])
            assert {t.group: len(t.levels) for t in frame.terms} == fit["n_groups"]
            for effects in fit.get("ranef", []):
                term = next(t for t in frame.terms if t.group == effects["group"])
                shown = [str(v) for v in term.levels][: len(effects["levels"])]
                assert shown == effects["levels"] or sorted(shown) == sorted(effects["levels"])
                assert len(term.names) == len(effects["coef"])


def test_columns_of_which_nothing_is_computed_keep_their_type():
    """float32 is not doubled on its way; what is computed is computed in float64 all the same."""
    rng = np.random.default_rng(5)
    data = {
        "y": rng.standard_normal(40), "a": rng.standard_normal(40).astype(np.float32), "b": rng.random(40).astype("f4"),
        "k": rng.integers(0, 9, 40).astype(np.int8), "big": rng.standard_normal(40).astype(">f8"),
        "g": np.arange(40) % 5,
    }  # fmt: skip
    frame = model_frame("y ~ a + k + big + b + I(b^2) + a:k + (1 | g)", data, family=get_family("gaussian"))
    kinds = dict(zip(frame.names, [column.dtype for column in frame.columns], strict=True))
    assert kinds["big"] == kinds["a"] == kinds["b"] == np.float64  # a and b are computed with
    frame = model_frame("y ~ a + k + big + (1 | g)", data, family=get_family("gaussian"))
    assert [column.dtype.str for column in frame.columns] == ["<f8", "<f4", "|i1", "<f8"]
    X = np.column_stack([np.ones(40), data["a"], data["k"], data["big"]]).astype(float)
    np.testing.assert_array_equal(frame.X, X)
    np.testing.assert_allclose(frame.moments.mean, X.mean(0), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(frame.moments.variance, X.var(0), rtol=1e-12)
    data["a"][3] = np.inf
    with pytest.raises(DataError, match=r"'a' is inf in row 3"):
        model_frame("y ~ a + (1 | g)", data, family=get_family("gaussian"))
    data["a"][3] = np.nan
    frame = model_frame("y ~ a + (1 | g)", data, family=get_family("gaussian"), weights=np.arange(40.0))
    assert frame.dropped_by == {"a": 1} and 3 not in frame.rows
    kept = np.delete(np.arange(40), 3)
    np.testing.assert_allclose(frame.moments.mean[1], np.average(X[kept, 1], weights=kept), rtol=1e-12)
