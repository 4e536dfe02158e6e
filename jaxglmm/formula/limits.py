"""How long, deep and wide a formula may be: beyond these it would take minutes or a process's stack to read it."""

import ast
import math

from ..errors import FormulaError


# Characters, brackets within brackets, signs in a row, operators of one expression, and terms that interactions stand
# for.
LONGEST, DEEPEST, SIGNS, OPERATORS, MOST_TERMS = 200_000, 40, 20, 200, 5_000
_OPENERS, _CLOSERS = "([{", ")]}"


def check_limits(text: str) -> None:
    """Refuse a formula that is too long, nested too deep, or stands for too many terms.

    Raises
    ------
    FormulaError
    """
    if len(text) > LONGEST:
        raise FormulaError(
            f"the formula has {len(text):,} characters; at most {LONGEST:,} can be read. Give further columns as X= of "
            "fit_path, or write fewer terms."
        )
    depth, signs, quote, called, operators, previous = 0, 0, "", 0, 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
            continue
        if char in "'\"`":
            quote = char
        elif char in _OPENERS:
            depth += 1
            if not called and (previous.isalnum() or previous in ("_", ".")):
                called, operators = depth, 0  # the bracket of a function's argument
            if depth > DEEPEST:
                raise FormulaError(
                    f"the formula has more than {DEEPEST} brackets within each other: leave out those that mean nothing"
                )
        elif char in _CLOSERS:
            depth = max(depth - 1, 0)
            called = called if depth >= called else 0
        elif called and char in "+-*/%&|^<>":
            operators += 1
            if operators > OPERATORS:
                raise FormulaError(
                    f"an expression in the formula has more than {OPERATORS} operators: make a column of it first"
                )
        if char in "+-~!":
            signs += 1
            if signs > SIGNS:
                raise FormulaError(f"the formula has more than {SIGNS} signs in a row: write one")
        elif not char.isspace():
            signs = 0
        previous = char
    for term in _additive(text.partition("~")[2]):
        if (count := _terms(term)) > MOST_TERMS:
            told = term if len(term) <= 60 else term[:60] + "..."
            raise FormulaError(
                f"{told!r} stands for {'more than a million' if count > 1e6 else f'{count:,.0f}'} terms; at most "
                f"{MOST_TERMS:,} can be made: write the interactions that you mean, as in a:b"
            )


def check_operators(text: str, tree: ast.AST) -> None:
    """Refuse an expression whose operators lie too deep within each other.

    Raises
    ------
    FormulaError
    """
    level, deep = [tree], 0
    while level:
        level, deep = [child for node in level for child in ast.iter_child_nodes(node)], deep + 1
        if deep <= OPERATORS:
            continue
        told = text if len(text) <= 60 else text[:60] + "..."
        raise FormulaError(f"{told!r} is nested more than {OPERATORS} deep: make a column of it first")


def _split(text: str, separators: str) -> list[str]:
    """Pieces between separators outside of brackets and quotes; `**` is no `*`."""
    pieces, start, depth, quote, i = [], 0, 0, "", 0
    while i < len(text):
        char = text[i]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"`":
            quote = char
        elif char in _OPENERS:
            depth += 1
        elif char in _CLOSERS:
            depth -= 1
        elif not depth and text.startswith("**", i):
            i += 1
        elif not depth and char in separators:
            pieces.append(text[start:i])
            start = i + 1
        i += 1
    return [*pieces, text[start:]]


def _additive(text: str) -> list[str]:
    return [piece.strip() for piece in _split(text, "+-") if piece.strip()]


def _terms(text: str) -> float:
    """How many terms an interaction stands for, at most."""
    text = text.strip()
    if len(pieces := _split(text, "*")) > 1:
        return math.prod(_terms(piece) + 1 for piece in pieces) - 1
    if len(pieces := _split(text, ":/%")) > 1:
        return math.prod(_terms(piece) for piece in pieces)
    base, power = _power(text)
    if power > 1:
        count = int(min(_terms(base), 10_000))
        return float(sum(math.comb(count, k) for k in range(1, min(power, count, 40) + 1)))
    if text.startswith("(") and text.endswith(")"):
        return sum(_terms(piece) for piece in _additive(text[1:-1]))
    return 1.0


def _power(text: str) -> tuple[str, int]:
    for operator in ("**", "^"):
        base, found, power = text.rpartition(operator)
        if found and base.rstrip().endswith(")") and power.strip().isdigit():
            return base.strip(), int(power.strip()[:9])
    return text, 1
