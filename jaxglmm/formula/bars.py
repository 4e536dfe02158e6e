"""lme4's formula syntax: split a formula's text into response, fixed part, offsets and bars.

A scan that knows parentheses and quotes, not a regular expression: a bar counts only when it stands
directly inside parentheses that belong to no function call, so `I((a > 1) | (b > 1))` is left alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import FormulaError
from .limits import check_limits
from .quoting import with_backticks


OPENERS = {"(": ")", "[": "]", "{": "}"}
CLOSERS = {v: k for k, v in OPENERS.items()}
GROUP_FUNCTIONS = re.compile(r"(?:factor|as\.factor|C)\s*\((.*)\)", re.DOTALL)
GROUP_NAME = re.compile(r"[^\W\d][\w.]*|\.[\w.]*[^\W\d][\w.]*")


@dataclass(frozen=True)
class Bar:
    """One random-effects term for one grouping factor.

    Attributes
    ----------
    effects
        The text before the bar, an ordinary formula: "1 + x".
    group
        The columns of the grouping factor; several for an interaction `a:b`.
    correlated
        False for `||`.
    """

    effects: str
    group: tuple[str, ...]
    correlated: bool = True


@dataclass(frozen=True)
class ParsedFormula:
    """A formula in pieces; see `parse_formula`."""

    response: str | None
    fixed: str
    offsets: tuple[str, ...]
    bars: tuple[Bar, ...]


def parse_formula(text: str) -> ParsedFormula:
    """Split `response ~ fixed + offset(...) + (effects | group)`.

    `Q("my column")` is `my column` in backticks. `(x | a/b)` gives a bar for `a` and one for `a:b`. Several bars may
    name the same group, and parentheses around several bars mean nothing, as in lme4.

    Raises
    ------
    FormulaError
        For unbalanced parentheses or quotes, a missing or repeated `~`, an empty term, a bar outside of
        its parentheses, or a group that is not a column, `a:b` or `a/b`.
    """
    if not isinstance(text, str):
        raise FormulaError(f"the formula is of type {type(text).__name__}; expected text such as 'y ~ x + (1 | g)'.")
    check_limits(text)
    return _parse(with_backticks(text))


@functools.lru_cache(256)
def _parse(text: str) -> ParsedFormula:
    tildes = [i for i, char, depth in scan(text) if char == "~" and not depth]
    if len(tildes) != 1:
        count = "no '~'" if not tildes else f"{len(tildes)} '~'"
        raise FormulaError(f"the formula {text!r} has {count}; expected one, as in 'y ~ x + (1 | g)'.")
    response, right = text[: tildes[0]].strip(), text[tildes[0] + 1 :]
    if not right.strip():
        raise FormulaError(f"the formula {text!r} has nothing to the right of '~'; an intercept alone is 'y ~ 1'.")
    fixed: list[str] = []
    offsets: list[str] = []
    bars: list[Bar] = []
    for sign, term in _flat_terms(right):
        bar = _bar_inside(term)
        if bar is not None:
            if sign == "-":
                raise FormulaError(f"'- {term}': a random-effects term cannot be subtracted; leave it out.")
            bars.extend(_expand(*bar))
        elif (inside := _call_of("offset", term)) is not None:
            if sign == "-":
                raise FormulaError(f"'- {term}': an offset cannot be subtracted; write offset(-({inside})).")
            offsets.append(inside)
        else:
            _refuse_stray(term)
            fixed.append(f"{sign} {term}" if fixed or sign == "-" else term)
    return ParsedFormula(response or None, " ".join(fixed) or "1", tuple(offsets), tuple(bars))


def scan(text: str) -> Iterator[tuple[int, str, str]]:
    """Every character outside of quotes, as (index, character, open brackets around it).

    The third is a string of openers, innermost last: "(" for plain parentheses, "f" for those of a
    call. An opening or closing bracket is reported with the brackets around it, itself left out.
    """
    stack: list[tuple[str, int, str]] = []
    quote, quote_start = "", 0
    previous = ""
    for i, char in enumerate(text):
        if quote:
            if char == quote:
                quote = ""
                previous = "x"  # a quoted name may be called or indexed
            continue
        if char in "'\"`":
            quote, quote_start = char, i
            continue
        if char in CLOSERS:
            if not stack or stack[-1][0] != CLOSERS[char]:
                raise FormulaError(_pointing(text, i, f"this {char!r} closes nothing"))
            stack.pop()
        yield i, char, "".join(kind for _, _, kind in stack)
        if char in OPENERS:
            called = char == "(" and (previous.isalnum() or (previous and previous in "_.)]"))
            stack.append((char, i, "f" if called else char))
        if not char.isspace():
            previous = char
    if quote:
        raise FormulaError(_pointing(text, quote_start, f"this {quote} is never closed"))
    if stack:
        raise FormulaError(_pointing(text, stack[-1][1], f"this {stack[-1][0]!r} is never closed"))


def _pointing(text: str, i: int, what: str) -> str:
    return f"{what} in the formula:\n  {text}\n  {' ' * i}^"


def split_terms(text: str) -> list[tuple[str, str]]:
    """The additive terms of `text`, each with its sign."""
    terms: list[tuple[str, str]] = []
    sign, start, pending = "+", 0, False

    def close(end: int) -> None:
        term = text[start:end].strip()
        if term:
            terms.append((sign, term))
        elif pending:
            raise FormulaError(f"a term is missing after '{sign}' in {text.strip()!r}.")

    for i, char, depth in scan(text):
        if char not in "+-" or depth:
            continue
        if not text[start:i].strip():  # a sign before any term: unary
            sign = "-" if (char == "-") != (pending and sign == "-") else "+"
        else:
            close(i)
            sign = char
        start, pending = i + 1, True
    close(len(text))
    return terms


def _flat_terms(text: str) -> Iterator[tuple[str, str]]:
    """Additive terms, with parentheses that only hold bars (and other terms) taken away."""
    for sign, term in split_terms(text):
        inner = _inside_parentheses(term)
        if inner is not None and not _bars_at(inner, "") and _holds_bar(inner):
            if sign == "-":
                raise FormulaError(f"'- {term}': random-effects terms cannot be subtracted; leave them out.")
            yield from _flat_terms(inner)
        else:
            yield sign, term


def _inside_parentheses(term: str) -> str | None:
    """The text inside, when one pair of parentheses encloses all of `term`."""
    if not term.startswith("("):
        return None
    end = next(i for i, char, depth in scan(term) if char == ")" and not depth)
    return term[1:end].strip() if end == len(term) - 1 else None


def _bars_at(text: str, depth: str) -> list[int]:
    return [i for i, char, d in scan(text) if char == "|" and d == depth]


def _holds_bar(text: str) -> bool:
    """Whether a bar stands directly in plain parentheses somewhere in `text`."""
    return any(char == "|" and d and set(d) == {"("} for _, char, d in scan(text))


def _bar_inside(term: str) -> tuple[str, str, bool, str] | None:
    inner = _inside_parentheses(term)
    if inner is None:
        return None
    while _inside_parentheses(inner) is not None and _holds_bar(inner):  # ((1 | g))
        inner = _inside_parentheses(inner) or ""
    places = _bars_at(inner, "")
    if not places:
        return None
    double = len(places) == 2 and places[1] == places[0] + 1
    if len(places) > 1 and not double:
        raise FormulaError(f"{term!r} has {len(places)} bars; expected one group in each: (1 | a) + (1 | b).")
    effects, group = inner[: places[0]].strip(), inner[places[-1] + 1 :].strip()
    if not effects or not group:
        side = "left" if not effects else "right"
        raise FormulaError(f"the bar in {term!r} has nothing on its {side}; expected (effects | group), as in (1 | g).")
    return effects, group, not double, term


def _refuse_stray(term: str) -> None:
    if _bars_at(term, "") or _holds_bar(term):
        raise FormulaError(
            f"the bar in {term!r} does not stand in parentheses of its own; write the term as (effects | group), "
            "joined to the others by '+'."
        )
    structure = re.match(r"(us|diag|homdiag|cs|homcs|ar1|hetar1|ou|rr|mat)\s*\(", term)
    if structure and any(char == "|" and d == "f" for _, char, d in scan(term)):
        raise FormulaError(
            f"the covariance structure {structure.group(1)!r} of {term!r} is not supported; write (x | g) for "
            "correlated effects or (x || g) for uncorrelated ones."
        )
    if re.search(r"(?<![\w.\"'`])\.(?![\w.\"'`])", term):
        raise FormulaError("'.' (all other columns) is not supported; name the columns, as in 'y ~ a + b'.")


def _call_of(function: str, term: str) -> str | None:
    match = re.fullmatch(rf"{function}\s*(\(.*\))", term, re.DOTALL)
    return _inside_parentheses(match.group(1)) if match else None


def _expand(effects: str, group: str, correlated: bool, term: str) -> Iterator[Bar]:
    """One bar a grouping factor: `a/b` is `a` and `a:b`."""
    while (inner := _inside_parentheses(group)) is not None:
        group = inner
    names: tuple[str, ...] = ()
    for piece in _split(group, "/"):
        for name in _split(piece, ":"):
            names += (_group_column(name, term),)
        repeated = {n for n in names if names.count(n) > 1}
        if repeated:
            raise FormulaError(f"the group of {term!r} names {sorted(repeated)[0]!r} twice.")
        yield Bar(effects, names, correlated)


def _split(text: str, separator: str) -> list[str]:
    places = [i for i, char, depth in scan(text) if char == separator and not depth]
    ends = [*places, len(text)]
    return [text[a:b].strip() for a, b in zip([0, *(p + 1 for p in places)], ends, strict=True)]


def _group_column(text: str, term: str) -> str:
    match = GROUP_FUNCTIONS.fullmatch(text)
    name = match.group(1).strip() if match else text
    if len(name) > 2 and name[0] == name[-1] == "`":
        return name[1:-1]
    if not GROUP_NAME.fullmatch(name):
        raise FormulaError(
            f"the group {text!r} of {term!r} is not a column; expected a column, a:b (their combinations) or a/b "
            "(b nested in a). Make a column of it first, or write one term for each group: (1 | a) + (1 | b)."
        )
    return name
