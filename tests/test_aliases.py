"""Columns of factors that the data determine no estimate for are left out, told and reported, as in lme4."""

import warnings

import numpy as np
import pandas as pd
import pytest

import jaxglmm as jg
from jaxglmm.cli import main


RNG = np.random.default_rng(1)
N = 300
DATA = pd.DataFrame({"a": RNG.choice(list("pqr"), N), "b": RNG.choice(list("uvw"), N), "x": RNG.normal(size=N)})
DATA["g"] = RNG.integers(0, 20, N)
DATA = DATA[~((DATA["a"] == "r") & (DATA["b"] == "w"))].reset_index(drop=True)  # an empty cell
N = len(DATA)
DATA["level"] = RNG.choice(["lo", "hi"], N)
DATA["event"] = np.where(DATA["level"] == "lo", RNG.choice(["e1", "e2", "e3"], N), RNG.choice(["e4", "e5"], N))
DATA["region"] = np.where((DATA["b"] != "w"), "N", "S")
DATA["cell"], DATA["both"] = DATA["a"] + DATA["b"], DATA["level"] + DATA["event"]
DATA["y"] = RNG.normal(size=20)[DATA["g"]] + (DATA["a"] == "q") + 0.5 * DATA["x"] + RNG.normal(size=N)

# Formula, the same model with as many coefficients as the data determine, and what R's rule leaves out: each column in
# the span of those before it.
CASES = [
    ("y ~ a * b + (1 | g)", "y ~ cell + (1 | g)", ("a[T.r]:b[T.w]",)),
    ("y ~ level / event + (1 | g)", "y ~ both + (1 | g)", (
        "level[hi]:event[T.e2]", "level[hi]:event[T.e3]", "level[lo]:event[T.e4]", "level[hi]:event[T.e5]",
        "level[lo]:event[T.e5]")),
    ("y ~ b + region + (1 | g)", "y ~ b + (1 | g)", ("region[T.S]",)),
    ("y ~ a * b * x + (1 | g)", "y ~ cell * x + (1 | g)", ("a[T.r]:b[T.w]", "a[T.r]:b[T.w]:x")),
    ("y ~ x + factor(a):factor(b) + (1 | g)", "y ~ x + cell + (1 | g)", ("factor(a)[T.r]:factor(b)[w]",)),
    ("y ~ 0 + a * b", "y ~ 0 + cell", ("a[T.r]:b[T.w]",)),
]  # fmt: skip


def fitted(formula, data=DATA, **options):
    with pytest.warns(jg.DataWarning, match="rank deficient"):
        return jg.fit(formula, data, **options)


@pytest.mark.parametrize(("formula", "same", "dropped"), CASES)
def test_the_model_is_that_of_the_columns_that_are_left(formula, same, dropped, tmp_path):
    fit, full = fitted(formula), jg.fit(same, DATA)
    assert sorted(fit.dropped) == sorted(dropped) and not set(fit.dropped) & set(fit.names)
    assert full.dropped == () and fit.df == full.df
    assert fit.loglik == pytest.approx(full.loglik, abs=1e-8)
    np.testing.assert_allclose(fit.predict(DATA), full.predict(DATA), atol=1e-6)
    fit.save(tmp_path / "fit")
    loaded = jg.load(tmp_path / "fit")
    assert loaded.dropped == fit.dropped and loaded.predict(DATA).tobytes() == fit.predict(DATA).tobytes()
    assert "Left out" in str(fit.summary())


def test_what_is_left_out_is_in_the_span_of_the_columns_before():
    """Against ranks by singular values, over random designs with few rows a cell."""
    from jaxglmm.design.aliases import aliases
    from jaxglmm.ops.columns import Columns

    rng = np.random.default_rng(4)
    some = 0
    for _ in range(60):
        n = int(rng.integers(12, 40))
        a, b, c = (rng.integers(0, k, n) for k in (3, 4, 2))
        x = rng.normal(size=n) * 10.0 ** rng.integers(-3, 4)
        dummy = lambda v, k: np.stack([v == i for i in range(k)], 1).astype(float)
        A, B, C = dummy(a, 3)[:, 1:], dummy(b, 4)[:, 1:], dummy(c, 2)[:, 1:]
        cross = lambda p, q: np.einsum("ni,nj->nij", p, q).reshape(len(p), -1)
        X = np.column_stack([np.ones(n), A, B, C, x, cross(A, B), cross(A, C), cross(B, C), cross(cross(A, B), C),
                             A * x[:, None], cross(A, B) * x[:, None]])  # fmt: skip
        X = X / np.maximum(np.linalg.norm(X, axis=0), 1e-300)
        kept, expected = [], []
        for j in range(X.shape[1]):
            grows = np.linalg.matrix_rank(X[:, [*kept, j]], tol=1e-9) > len(kept)
            (kept if grows else expected).append(j)
        found = aliases(Columns(list(X.T), n), [True] * X.shape[1])
        assert sorted(found) == expected
        for j, combination in found.items():
            np.testing.assert_allclose(
                X[:, j], sum((v * X[:, i] for i, v in combination.items()), np.zeros(n)), atol=1e-8
            )
        some += len(found)
    assert some > 300


def test_rows_without_an_estimate_are_refused():
    fit = fitted("y ~ a * b + (1 | g)")
    new = pd.DataFrame({"a": ["p", "r", "r"], "b": ["w", "u", "w"], "g": [1, 2, 3]})
    assert np.isfinite(fit.predict(new[:2])).all()
    with pytest.raises(
        jg.DataError, match=r"row 2 .* no row of the fit has: there is no estimate for 'a\[T.r\]:b\[T.w\]'"
    ):
        fit.predict(new)
    aliased = fitted("y ~ b + region + (1 | g)")
    moved = pd.DataFrame({"b": ["w", "w"], "region": ["S", "N"], "g": [1, 1]})
    assert np.isfinite(aliased.predict(moved[:1])).all()
    with pytest.raises(jg.DataError, match=r"row 1 .* 'region\[T.S\]'"):
        aliased.predict(moved)
    with pytest.raises(jg.DataError, match=r"'region\[T.S\]'"):
        aliased.score(moved.assign(y=0.0))


def test_columns_of_numbers_keep_their_error():
    for formula, message in (
        ("y ~ x + I(2 * x)", "carry the same information"), ("y ~ x + one", "'one' is constant"),
        ("y ~ b + code", "'code' is a linear combination"), ("y ~ x + none", "'none' is 0"),
    ):  # fmt: skip
        with pytest.raises(jg.DataError, match=message):
            jg.fit(
                formula, DATA.assign(one=1.0, none=0.0, code=1.0 + 4.0 * (DATA["b"] == "v") + 1.0 * (DATA["b"] == "w"))
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(jg.DataError, match="carry the same information"):
            jg.fit("y ~ a * b + x + I(2 * x)", DATA)
    with pytest.raises(jg.DataError, match="linear combination"):
        jg.fit("y ~ a + b", DATA, full_rank=False)


def test_a_cell_of_weight_zero_is_empty():
    weights = 1.0 - (DATA["cell"] == "qw")
    fit, without = fitted("y ~ a * b", weights=weights), fitted("y ~ a * b", DATA[weights > 0])
    assert fit.dropped == without.dropped == ("a[T.q]:b[T.w]", "a[T.r]:b[T.w]")
    assert fit.loglik == pytest.approx(without.loglik, abs=1e-10)


def test_more_columns_than_rows_before_they_are_left_out():
    few = pd.DataFrame({"y": RNG.normal(size=24), "f": np.repeat(list("abcdef"), 4), "h": np.arange(24) // 2})
    few["h"] = "h" + few["h"].astype(str)
    fit = fitted("y ~ f / h", few)  # 72 columns of 24 rows
    assert len(fit.names) == 12 and fit.loglik == pytest.approx(jg.fit("y ~ h", few).loglik, abs=1e-8)


@pytest.mark.filterwarnings("default")  # which the command line prints
def test_many_responses_and_the_command_line(tmp_path, capsys):
    data = DATA.assign(z=DATA["y"] + DATA["x"])
    with pytest.warns(jg.DataWarning, match="rank deficient"):
        many = jg.fit_many("~ a * b + (1 | g)", data, responses=["y", "z"])
    assert not many.failed and many[0].loglik == pytest.approx(fitted("y ~ a * b + (1 | g)").loglik, abs=1e-7)
    DATA.to_csv(tmp_path / "a.csv", index=False)
    assert main(["fit", "y ~ a * b + (1 | g)", str(tmp_path / "a.csv"), "--out", str(tmp_path / "fit")]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "rank deficient" in captured.err and "Left out" in captured.out
    assert main(["predict", str(tmp_path / "fit"), str(tmp_path / "a.csv")]) == 0


def test_a_penalty_keeps_the_columns():
    fit = jg.fit("y ~ b + region", DATA, penalty=jg.Ridge(0.1))
    assert fit.dropped == () and "region[T.S]" in fit.names
