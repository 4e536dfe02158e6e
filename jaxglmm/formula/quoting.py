"""Columns whose names are no words of a formula: backticks, `Q("...")`, and errors that say so."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator

from ..errors import DataError, FormulaError


_WORD = re.compile(r"[^\W\d][\w.]*|\.[\w.]*[^\W\d][\w.]*")
_QUOTED = r"'[^']*'|\"[^\"]*\"|`[^`]*`"
_Q = re.compile(rf"(?<![\w.`])Q\s*\(\s*(?:\"([^\"]*)\"|'([^']*)')\s*\)|{_QUOTED}")


def with_backticks(text: str) -> str:
    """A formula in which `Q("my column")`, patsy's and formulaic's way to name a column, is in R's, `my column`.

    Raises
    ------
    FormulaError
        For a name that has a backtick in it.
    """

    def replaced(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if not name:
            return match.group()
        if "`" in name:
            raise FormulaError(f"the column {name!r} has a backtick in its name, which no formula can quote: rename it")
        return f"`{name}`"

    return _Q.sub(replaced, text)


@contextlib.contextmanager
def told_of_backticks(formula: str, columns: Collection[str], path: str | None = None) -> Iterator[None]:
    """Have the errors of reading a formula say which column needs backticks, where that may be the cause.

    `path` is of the file that lacks a column.

    Raises
    ------
    FormulaError
        Also where `x-foo` stands for a column of that name, and would be read as `x` less a term that is not there.
    """
    try:
        yield
    except (FormulaError, DataError) as error:
        names = list(_unquoted(formula, columns)) if isinstance(formula, str) else []
        if not names:
            if path is None or isinstance(error, FormulaError):
                raise
            raise DataError(f"{path!r}: {error}") from error
        raise FormulaError(
            f"the column{'s' * (len(names) > 1)} {', '.join(map(repr, names))} need{'s' * (len(names) == 1)} backticks "
            f"in a formula: write {', '.join(f'`{name}`' for name in names)} ({error})"
        ) from error
    for name in _unquoted(formula, columns):
        taken_off = re.search(r"-\s*([^\W\d][\w.]*)", name)
        if taken_off and taken_off.group(1) not in columns:
            raise FormulaError(
                f"the column {name!r} needs backticks in a formula: write `{name}`; without them "
                f"{taken_off.group(1)!r} is a term to leave out, and there is none"
            )


def _unquoted(formula: str, columns: Collection[str]) -> Iterator[str]:
    """Columns that stand in the formula without backticks, and whose names are neither words nor made of columns."""
    bare = re.sub(_QUOTED, lambda match: "\0" * len(match.group()), formula)
    for name in sorted((c for c in columns if not _WORD.fullmatch(c) and c.strip()), key=len, reverse=True):
        pieces = re.findall(r"\w+|[^\w\s]|\s+", name.strip())
        if not any(p.isspace() for p in pieces) and all(p in columns for p in pieces if p[0].isalnum()):
            continue
        pattern = "".join(r"\s+" if p.isspace() else re.escape(p) if p[0].isalnum() else rf"\s*{re.escape(p)}\s*"
                          for p in pieces)  # fmt: skip
        if re.search(rf"(?<![\w.]){pattern}(?![\w.])", bare):
            yield name
