"""Expressions inside formulas: R's spelling turned into Python's, and a check of what may be called.

A saved model holds its formula as text, and predicting evaluates it. So that loading a file can never
run code of the file's choosing, an expression may only use columns, numbers, operators and the
functions named here; everything else is an error that names it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import keyword
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormulaError
from .bars import scan
from .limits import check_operators
from .table import unknown_column


CONSTANTS = {"TRUE": "True", "FALSE": "False", "T": "True", "F": "False", "NULL": "None"}
CALLS = {"as.factor": "factor", "as.character": "factor", "as.numeric": "as_numeric", "as.integer": "as_integer"}
CALL = re.compile(r"\.?[^\W\d][\w.]*\s*\(|\{")
TOKEN = re.compile(
    r"""(?P<quoted>'[^']*'|"[^"]*")|(?P<backtick>`[^`]*`)|(?P<name>\.?[^\W\d][\w.]*)(?P<follower>\s*\(|\s*=(?!=))?
    |(?P<number>\d[\w.]*)|(?P<power>\^)|(?P<special>%[^%]*%)|(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
NODES = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Attribute, ast.BinOp, ast.operator,
    ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop, ast.List, ast.Tuple, ast.Dict,
)  # fmt: skip
FACTORS = {"C", "factor", "relevel"}
NUMPY_OTHERS = {"where", "clip", "pi", "e"}
METHODS = {
    "isin", "clip", "abs", "round", "between", "str", "lower", "upper", "strip", "startswith", "endswith", "contains",
    "slice", "len",
}  # fmt: skip


@dataclass(frozen=True)
class Rewritten:
    """An expression or formula in Python's spelling.

    Attributes
    ----------
    text
        The text to parse and evaluate.
    display
        {canonical Python text of a call: the user's text}, where rewriting changed it.
    aliases
        {name in `text`: column} for columns whose names are no Python names.
    """

    text: str
    display: dict[str, str]
    aliases: dict[str, str]


def rewrite(text: str, columns: Collection[str], whole: bool = False) -> Rewritten:
    """Turn R's spelling into Python's: `^`, T and F, `as.factor`, `c()`, dotted and quoted names.

    Parameters
    ----------
    text
        A formula without bars, or with `whole` one expression.
    columns
        The table's columns: a column named T is that column.
    whole
        Treat all of `text` as if it stood inside a call, where `+` means addition.
    """
    display: dict[str, str] = {}
    aliases: dict[str, str] = {}
    if whole:
        return Rewritten(_rewrite_python(text, columns, aliases).strip(), display, aliases)
    out: list[str] = []
    for python, piece in _pieces(text):
        if not python:
            out.append(_rewrite_plain(piece))
            continue
        rewritten = _rewrite_python(piece, columns, aliases)
        braces = slice(1, -1) if piece.startswith("{") else slice(None)
        _remember(piece[braces], rewritten[braces], display)
        out.append(rewritten)
    return Rewritten("".join(out).strip(), display, aliases)


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    """Cut a formula into calls `f(...)` and `{...}`, which are Python, and the text between them."""
    closing = {i: depth for i, char, depth in scan(text) if char in ")}"}
    outside = {i for i, _, depth in scan(text) if "f" not in depth and "{" not in depth}
    position = 0
    for call in CALL.finditer(text):
        if call.start() < position or call.start() not in outside:
            continue
        depth = next(d for i, _, d in scan(text) if i == call.start())
        end = next(i for i, d in closing.items() if i >= call.end() and d == depth) + 1
        yield False, text[position : call.start()]
        yield True, text[call.start() : end]
        position = end
    yield False, text[position:]


def _rewrite_plain(text: str) -> str:
    if special := re.search(r"%[^%]*%", text):
        raise FormulaError(f"{special.group()} is not supported in a formula; write a:b or a/b.")
    return text.replace("^", "**")


def _rewrite_python(text: str, columns: Collection[str], aliases: dict[str, str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        token, follower = match.group(), (match.group("follower") or "").strip()
        if match.group("special"):
            raise FormulaError(f"{token} is not supported in {text.strip()!r}; use x.isin([...]) for %in%.")
        if match.group("power"):
            return "**"
        if match.group("number"):
            return token[:-1] if re.fullmatch(r"\d+L", token) else token
        if match.group("backtick"):
            return _alias(token[1:-1], columns, aliases)
        name = match.group("name")
        if not name:
            return token
        if follower == "(":
            return CALLS.get(name, name) + "("
        if follower == "=":
            return name.replace(".", "_") + "="
        if name in columns:
            return _alias(name, columns, aliases)
        return CONSTANTS.get(name, name)

    return TOKEN.sub(replacement, text)


def _remember(user: str, rewritten: str, display: dict[str, str]) -> None:
    """Note the user's text for a call, where rewriting changed more than its spaces."""

    def canonical(text: str) -> str:
        try:
            return ast.unparse(ast.parse(text.strip(), mode="eval"))
        except SyntaxError:
            return ""

    new = canonical(rewritten)
    if new and canonical(user) != new:
        display.setdefault(new, " ".join(user.split()))


def _alias(name: str, columns: Collection[str], aliases: dict[str, str]) -> str:
    if _python_name(name):
        return name
    base = re.sub(r"\W", "_", name)
    alias = base if _python_name(base) else f"_{base}"
    while alias in columns or aliases.get(alias, name) != name:
        alias += "_"
    aliases[alias] = name
    return alias


def _python_name(name: str) -> bool:
    """R's columns may be called `yield`, `class` or `lambda`."""
    return name.isidentifier() and not keyword.iskeyword(name)


def check_expression(
    text: str, aliases: dict[str, str], columns: Collection[str], functions: Mapping[str, Any]
) -> list[str]:
    """Check that an expression uses only columns and known functions; return the columns it needs.

    Raises
    ------
    FormulaError
        For a syntax error, an unknown function, or Python that has no place in a formula.
    DataError
        For a name that is not a column.
    """
    nodes = _nodes(text)
    callees = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    modules = {id(n.value) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    needed: list[str] = []
    for node in nodes:
        if not isinstance(node, NODES):
            raise FormulaError(f"{text!r} uses Python ({type(node).__name__}) that a formula may not; make a column.")
        if isinstance(node, ast.Compare):
            _check_comparison(node, text)
        if isinstance(node, ast.Call):
            _check_call(node, text, functions)
        if isinstance(node, ast.Attribute):
            _check_attribute(node, text)
        if isinstance(node, ast.Name):
            known = node.id in functions
            if id(node) in callees:
                if not known:
                    raise FormulaError(_unknown_function(node.id, text, functions))
            elif node.id in aliases or node.id in columns:
                needed.append(aliases.get(node.id, node.id))
            elif not (known or (id(node) in modules and node.id in ("np", "contr"))):
                raise unknown_column(node.id, columns, f"{text!r}")
    return list(dict.fromkeys(needed))


@functools.lru_cache(256)
def _nodes(text: str) -> tuple[ast.AST, ...]:
    """Every node of an expression; the same text is checked when it is planned and whenever it is evaluated."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise FormulaError(f"{text!r} cannot be read as an expression: {error.msg}.") from None
    except (RecursionError, MemoryError, ValueError):  # nested too deep, or a NUL
        raise FormulaError(f"{text[:60]!r} cannot be read as an expression: make a column of it first.") from None
    check_operators(text, tree)
    if isinstance(tree.body, ast.Tuple):
        raise FormulaError(f"{text!r} is several expressions; expected one.")
    return tuple(ast.walk(tree))


def names_used(text: str) -> list[tuple[str, bool]]:
    """The names in an expression, and whether each is what a call makes a factor of."""
    nodes = _nodes(text)
    factors = {
        id(node.args[0])
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FACTORS and node.args
    }
    return [(node.id, id(node) in factors) for node in nodes if isinstance(node, ast.Name)]


def _check_comparison(node: ast.Compare, text: str) -> None:
    for part in (node.left, *node.comparators):
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitAnd | ast.BitOr):
            raise FormulaError(f"put each comparison in {text!r} in parentheses, as in I((a > 1) & (b < 2)).")
    if len(node.ops) > 1:
        raise FormulaError(f"write the chained comparison in {text!r} as two: (a < x) & (x < b).")


def _check_call(node: ast.Call, text: str, functions: Mapping[str, Any]) -> None:
    """Refuse arguments by which a function would write into a column: NumPy's `out` above all."""
    called: Any = None
    if isinstance(node.func, ast.Name):
        called = functions.get(node.func.id)
    elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "np":
        called = getattr(np, node.func.attr, None)
    most = called.nin if isinstance(called, np.ufunc) else 3 if called is np.clip else len(node.args)
    if len(node.args) > most or any(isinstance(argument, ast.Starred) for argument in node.args):
        raise FormulaError(f"{ast.unparse(node)!r} has too many arguments; expected {most}.")
    for argument in node.keywords:
        if isinstance(called, np.ufunc) or argument.arg in (None, "out", "inplace", "copy"):
            raise FormulaError(f"the argument {argument.arg or '**'!r} in {text!r} may not be used in a formula.")


def _check_attribute(node: ast.Attribute, text: str) -> None:
    if isinstance(node.value, ast.Name) and node.value.id == "np":
        if isinstance(getattr(np, node.attr, None), np.ufunc) or node.attr in NUMPY_OTHERS:
            return
        raise FormulaError(f"np.{node.attr} in {text!r} may not be used in a formula; make a column.")
    if isinstance(node.value, ast.Name) and node.value.id == "contr" and not node.attr.startswith("_"):
        return
    if node.attr not in METHODS:
        raise FormulaError(f"'.{node.attr}' in {text!r} may not be used in a formula; make a column.")


def _unknown_function(name: str, text: str, functions: Mapping[str, Any]) -> str:
    if name == "offset":
        return f"offset() in {text!r} must be a term of its own: y ~ x + offset(log(t))."
    close = difflib.get_close_matches(name, functions, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown function {name!r} in {text!r}.{hint} Known: {', '.join(sorted(functions))}."
