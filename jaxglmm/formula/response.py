"""The left side of a formula: numbers, a two-level outcome, or counts of successes and failures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError, FormulaError
from .bars import scan
from .fixed import Expression, evaluate, plan_expression
from .variables import check_finite


@dataclass(frozen=True)
class Response:
    """How to read the response.

    Attributes
    ----------
    text
        The formula's left side.
    expressions
        One expression, or those for successes and failures.
    modelled
        What probability is modelled, for counts and two-level outcomes; else None.
    """

    text: str
    expressions: tuple[Expression, ...]
    modelled: str | None = None

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns that it needs."""
        return tuple(dict.fromkeys(name for e in self.expressions for name in e.variables))


def plan_response(text: str, columns: Collection[str]) -> Response:
    """Read the left side without touching the data.

    Raises
    ------
    FormulaError, DataError
        As `fixed.plan_expression`, and for a `cbind` that has not two arguments.
    """
    stripped = text.strip()
    if not (stripped.startswith("cbind") and stripped[5:].lstrip().startswith("(")):
        if [i for i, char, depth in scan(stripped) if char == "," and not depth]:
            raise FormulaError(f"the response {text!r} has several parts; expected one, or cbind(successes, failures).")
        return Response(text, (plan_expression(stripped, columns),))
    inside = stripped[stripped.index("(") + 1 : -1]
    commas = [i for i, char, depth in scan(inside) if char == "," and not depth]
    if len(commas) != 1:
        raise FormulaError(f"{text!r} has {len(commas) + 1} arguments; expected cbind(successes, failures).")
    halves = inside[: commas[0]].strip(), inside[commas[0] + 1 :].strip()
    return Response(
        text, tuple(plan_expression(h, columns) for h in halves), f"P(success) from {' '.join(text.split())}"
    )


def read_response(
    response: Response, variables: Mapping[str, pd.Series], rows: np.ndarray, family: str
) -> tuple[Response, np.ndarray, np.ndarray | None]:
    """Evaluate the response: (response with `modelled`, y (n,), trials (n,) or None).

    Counts give y = successes / trials (0 where there is no trial); a two-level outcome 1 for its second
    level.

    Raises
    ------
    DataError
        For text in a family of numbers, more or fewer than two levels, negative counts, values that
        are not finite.
    """
    values = [evaluate(e, variables) for e in response.expressions]
    if len(values) == 2:
        return response, *_proportion(response, values, rows, family)
    value = values[0]
    if isinstance(getattr(value, "dtype", None), pd.CategoricalDtype):
        levels = list(value.cat.categories)
        _expect_two(response.text, levels, family)
        y = np.asarray(value.cat.codes, dtype=np.float64)
        return replace(response, modelled=f"P({response.text} = {levels[1]})"), y, None
    array = np.asarray(value)
    if array.dtype == bool:
        plain = response.expressions[0].text.isidentifier() or response.text.startswith("`")
        event = f"{response.text} = True" if plain else _without_parentheses(response.text)
        return replace(response, modelled=f"P({event})" if family == "binomial" else None), _full(array, rows), None
    if array.dtype.kind not in "iuf":
        raise DataError(f"the response {response.text!r} is of type {array.dtype}; expected numbers.")
    y = _full(array, rows)
    check_finite(response.text, y, rows)
    return response, y, None


def _without_parentheses(text: str) -> str:
    enclosing = [i for i, char, depth in scan(text) if char == ")" and not depth] == [len(text) - 1]
    return text[1:-1].strip() if text.startswith("(") and enclosing else text


def _full(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.array(np.broadcast_to(array, rows.shape), dtype=np.float64)


def _expect_two(text: str, levels: list[Any], family: str) -> None:
    shown = ", ".join(repr(str(v)) for v in levels[:10]) + (", ..." if len(levels) > 10 else "")
    if family != "binomial":
        raise DataError(
            f"the response {text!r} holds labels ({shown}), and the family {family} models numbers; use "
            "family='binomial' for a two-level outcome, or convert the column."
        )
    if len(levels) != 2:
        raise DataError(
            f"the response {text!r} has {len(levels)} level{'s' * (len(levels) != 1)} ({shown}); expected two, of "
            "which the second is modelled. Join levels first, or compare: (y == 'level') ~ ..."
        )


def _proportion(response: Response, values: list[Any], rows: np.ndarray, family: str) -> tuple[np.ndarray, np.ndarray]:
    if family != "binomial":
        raise DataError(f"{response.text!r} gives counts, and the family is {family}; use family='binomial'.")
    counts = []
    for expression, value in zip(response.expressions, values, strict=True):
        array = np.asarray(value)
        if array.dtype.kind not in "iufb":
            raise DataError(f"{expression.user_text!r} in {response.text!r} is not a number; expected counts.")
        array = _full(array, rows)
        check_finite(expression.user_text, array, rows)
        if (array < 0).any():
            first = int(np.argmax(array < 0))
            raise DataError(
                f"{expression.user_text!r} in {response.text!r} is {array[first]:g} in row {int(rows[first])} "
                "(counting from 0); counts are at least 0. The second argument of cbind() is failures, not trials."
            )
        counts.append(array)
    trials = counts[0] + counts[1]
    return np.divide(counts[0], trials, out=np.zeros_like(trials), where=trials > 0), trials
