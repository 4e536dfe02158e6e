"""lme4's syntax as text."""

import pytest

from jaxglmm.errors import FormulaError
from jaxglmm.formula.bars import Bar, parse_formula


@pytest.mark.parametrize(
    ("text", "response", "fixed", "offsets", "bars"),
    [
        ("y ~ x + (1 | g)", "y", "x", (), [Bar("1", ("g",))]),
        ("y~x+(x|g)", "y", "x", (), [Bar("x", ("g",))]),
        ("y ~ (0 + x | g)", "y", "1", (), [Bar("0 + x", ("g",))]),
        ("y ~ x + (x || g)", "y", "x", (), [Bar("x", ("g",), False)]),
        ("y ~ 1", "y", "1", (), []),
        ("~ x", None, "x", (), []),
        ("y ~ (1 | a:b)", "y", "1", (), [Bar("1", ("a", "b"))]),
        ("y ~ (1 | a/b/c)", "y", "1", (), [Bar("1", ("a",)), Bar("1", ("a", "b")), Bar("1", ("a", "b", "c"))]),
        ("y ~ (1 | (a/b))", "y", "1", (), [Bar("1", ("a",)), Bar("1", ("a", "b"))]),
        ("r ~ d + ((1 | s) + (0 + d | s))", "r", "d", (), [Bar("1", ("s",)), Bar("0 + d", ("s",))]),
        ("r ~ d + (((1 | s)) + z)", "r", "d + z", (), [Bar("1", ("s",))]),
        ("y ~ -1 + x", "y", "- 1 + x", (), []),
        ("y ~ (a + b)^2 - a:b + (1|g)", "y", "(a + b)^2 - a:b", (), [Bar("1", ("g",))]),
        ("cbind(s, n - s) ~ x + offset(log(t)) + offset(w)", "cbind(s, n - s)", "x", ("log(t)", "w"), []),
        ("log(y) ~ I((a > 1) | (b > 2)) + (1 | `my id`)", "log(y)", "I((a > 1) | (b > 2))", (), [Bar("1", ("my id",))]),
        ("y ~ x + (1 | as.factor(g)) + (1 | factor(h))", "y", "x", (), [Bar("1", ("g",)), Bar("1", ("h",))]),
        ("y ~ x +\n  (1 + x\n | g)", "y", "x", (), [Bar("1 + x", ("g",))]),
        ("(y == 'a ~ b|(') ~ x", "(y == 'a ~ b|(')", "x", (), []),
    ],
)
def test_parts(text, response, fixed, offsets, bars):
    parsed = parse_formula(text)
    assert parsed.response == response
    assert parsed.fixed == fixed
    assert parsed.offsets == offsets
    assert list(parsed.bars) == bars


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y ~ x + (1 | g", "never closed"),
        ("y ~ x)", "closes nothing"),
        ("y ~ (x]", "closes nothing"),
        ("y ~ 'a", "never closed"),
        ("y x", "no '~'"),
        ("y ~ x ~ z", "2 '~'"),
        ("y ~ ", "nothing to the right"),
        ("y ~ x +", "missing after"),
        ("y ~ x + + (1 | g) +", "missing after"),
        ("y ~ x + 1 | g", "parentheses of its own"),
        ("y ~ x * (1 | g)", "parentheses of its own"),
        ("y ~ (1 | g):x", "parentheses of its own"),
        ("y ~ ( | g)", "nothing on its left"),
        ("y ~ (1 | )", "nothing on its right"),
        ("y ~ (1 | a | b)", "2 bars"),
        ("y ~ - (1 | g)", "cannot be subtracted"),
        ("y ~ x - ((1 | g) + (x | g))", "cannot be subtracted"),
        ("y ~ x - offset(t)", "cannot be subtracted"),
        ("y ~ (1 | log(g))", "not a column"),
        ("y ~ (1 | a + b)", r"\(1 \| a\) \+ \(1 \| b\)"),
        ("y ~ (1 | 1)", "not a column"),
        ("y ~ (1 | a:a)", "'a' twice"),
        ("y ~ .", "name the columns"),
        ("y ~ x:. + (1 | g)", "name the columns"),
        ("y ~ diag(x | g)", "covariance structure 'diag'"),
    ],
)
def test_errors(text, message):
    with pytest.raises(FormulaError, match=message):
        parse_formula(text)


def test_not_text():
    with pytest.raises(FormulaError, match="type int"):
        parse_formula(3)  # type: ignore[arg-type]


def test_error_points_at_the_place():
    with pytest.raises(FormulaError) as caught:
        parse_formula("y ~ x + (1 | g")
    _, line, pointer = str(caught.value).split("\n")
    assert line[pointer.index("^")] == "("
