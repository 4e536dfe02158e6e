"""What public functions take: a rule for each argument, stated where the function is defined.

    @takes(level=share(), n=whole(1), seed=seed, kind=choice("a", "b"), group=optional(text))
    def function(level, n, seed=None, kind="a", group=None): ...

A rule is a function of an argument's name and value that raises `DataError` and names both, with what was expected.
Rules look at what a value is in itself; what it means beside the data is the function's own business.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from jaxglmm.errors import DataError


Rule = Callable[[str, Any], None]
F = TypeVar("F", bound=Callable)

# A found value is told by so many characters at most.
_TOLD = 80
# What file systems take: bytes of a path, and of a name in it.
_LONGEST_PATH, _LONGEST_NAME = 4095, 255


def takes(**rules: Rule) -> Callable[[F], F]:
    """Check arguments by these rules before a function is called; defaults are not looked at."""

    def decorate(function: F) -> F:
        names = list(inspect.signature(function).parameters)
        if missing := set(rules) - set(names):
            raise TypeError(f"{function.__qualname__} has no argument {sorted(missing)}")

        @functools.wraps(function)
        def checked(*args, **kwargs):
            for name, value in (*zip(names, args, strict=False), *kwargs.items()):
                if name in rules:
                    rules[name](name, value)
            return function(*args, **kwargs)

        return checked  # pyright: ignore[reportReturnType]

    return decorate


def refuse(name: str, expected: str, value) -> None:
    """Raise what a rule says.

    Raises
    ------
    DataError
    """
    raise DataError(f"{name} must be {expected}; found {told(value)}")


def told(value) -> str:
    """A value in an error's words."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of somebody's class
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= _TOLD else text[:_TOLD] + "..."


# --- Values ------------------------------------------------------------------------------------------------


def is_number(value) -> bool:
    """Whether a value is one real number, and not a truth value."""
    if isinstance(value, Real):
        return not isinstance(value, bool | np.bool_)
    return getattr(value, "shape", None) == () and _kind(value) in ("i", "u", "f")


def is_whole(value) -> bool:
    """Whether a value is one whole number, and not a truth value."""
    if isinstance(value, Integral):
        return not isinstance(value, bool | np.bool_)
    return is_number(value) and _kind(value) in ("i", "u")


def _kind(value) -> str:
    return getattr(getattr(value, "dtype", None), "kind", "")


def number(at_least=None, at_most=None, *, above=None, below=None, such_as=None) -> Rule:
    """A finite number within bounds."""
    bounds = [("at least", at_least), ("above", above), ("at most", at_most), ("below", below)]
    within = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    expected = f"a finite number{' ' if within else ''}{within}{'' if such_as is None else f', such as {such_as}'}"

    def rule(name, value):
        try:
            x = float(value) if is_number(value) else np.nan
        except OverflowError:
            x = np.nan
        good = np.isfinite(x) and (at_least is None or x >= at_least) and (at_most is None or x <= at_most)
        if not (good and (above is None or x > above) and (below is None or x < below)):
            refuse(name, expected, value)

    return rule


def share(such_as=0.95) -> Rule:
    """A level or share strictly between 0 and 1."""

    def rule(name, value):
        if not is_number(value) or not 0 < value < 1:
            refuse(name, f"a level within (0, 1), such as {such_as}", value)

    return rule


def whole(at_least: int, at_most: int = 10**9) -> Rule:
    """A whole number within bounds."""
    to = "" if at_most == 10**9 else f" and at most {at_most}"

    def rule(name, value):
        if not is_whole(value) or not at_least <= value <= at_most:
            refuse(name, f"a whole number of at least {at_least}{to}", value)

    return rule


def choice(*known: str) -> Rule:
    """One of some words."""

    def rule(name, value):
        if not isinstance(value, str) or value not in known:
            refuse(name, f"one of {', '.join(map(repr, known))}", value)

    return rule


def flag(name: str, value) -> None:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        refuse(name, "True or False", value)


def text(name: str, value) -> None:
    """A name: text that is not empty."""
    if not isinstance(value, str) or not value:
        refuse(name, "a name", value)


def names(name: str, value) -> None:
    """A name, or a list of names."""
    several = isinstance(value, list | tuple | np.ndarray) or hasattr(value, "to_list")
    given = list(value) if several else [value]
    if not all(isinstance(v, str) and v for v in given):
        refuse(name, "a name or a list of names", value)


def numbers(name: str, value) -> None:
    """A number, or an array of numbers."""
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError, OverflowError):
        array = np.array(np.nan)
    truth = (_kind(value) == "b" and np.ndim(value) == 0) or isinstance(value, bool)
    if value is None or truth or isinstance(value, str | bytes) or not array.size or not np.isfinite(array).all():
        refuse(name, "a number, or an array of numbers", value)


def floats(name: str, value) -> None:
    """An array of floating numbers, of NumPy's or JAX's, which may be traced."""
    if _kind(value) != "f" and getattr(getattr(value, "dtype", None), "name", "") != "bfloat16":
        refuse(name, "an array of floating numbers", value)


def floating(name: str, value) -> None:
    """A floating type of NumPy's."""
    try:
        good = isinstance(value, type | np.dtype | str) and np.dtype(value).kind == "f"
    except TypeError:
        good = False
    if not good:
        refuse(name, "a floating type, such as numpy.float64", value)


def seed(name: str, value) -> None:
    """What `numpy.random.default_rng` takes."""
    made = np.random.Generator | np.random.BitGenerator | np.random.SeedSequence | np.random.RandomState
    several = isinstance(value, list | tuple | np.ndarray) and np.ndim(value) == 1
    given: list[Any] = list(value) if several else [value]
    if value is not None and not isinstance(value, made) and not all(is_whole(v) and v >= 0 for v in given):
        refuse(name, "None, a whole number of at least 0, or a numpy.random.Generator", value)


def mapping(name: str, value) -> None:
    """{name: value}."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        refuse(name, "a mapping with names as its keys", value)


def path(name: str, value) -> None:
    """A path that a file system can have."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        refuse(name, "a path", value)
    where = os.fspath(value)
    where = where if isinstance(where, bytes) else os.fsencode(where)
    if b"\0" in where:
        refuse(name, "a path without a NUL character", value)
    longest = max(map(len, where.replace(os.sep.encode(), b"/").split(b"/")))
    if len(where) > _LONGEST_PATH or longest > _LONGEST_NAME:
        refuse(
            name, f"a path of at most {_LONGEST_PATH} bytes, with names of at most {_LONGEST_NAME}", value
        )  # fmt: skip


def optional(rule: Rule) -> Rule:
    """None, or what the rule takes."""

    def either(name, value):
        if value is not None:
            rule(name, value)

    return either


def either(*rules: Rule) -> Rule:
    """What one of the rules takes; the last one says what was expected."""

    def rule(name, value):
        for one in rules[:-1]:
            try:
                return one(name, value)
            except DataError:
                continue
        rules[-1](name, value)

    return rule


def instance(cls: str, expected: str) -> Rule:
    """An object of a class of this name, which need not be imported to ask."""

    def rule(name, value):
        if not any(base.__name__ == cls for base in type(value).__mro__):
            refuse(name, expected, value)

    return rule


a_prior = instance("AbstractPrior", "a prior, such as jg.HalfStudentPrior()")
a_design = instance("Design", "a design, as jaxglmm.make_design returns it")
a_family = instance("AbstractFamily", "a family, such as jg.Binomial()")
a_fit = instance("Fit", "a fitted model, as jaxglmm.fit returns it")


def devices(name: str, value) -> None:
    """Devices of JAX, each once."""
    several = isinstance(value, list | tuple | np.ndarray) and np.ndim(value) == 1
    if not several or not len(value) or not all(hasattr(v, "platform") and hasattr(v, "id") for v in value):
        refuse(name, "a list of devices, such as jax.devices()", value)
    if len(set(map(id, value))) < len(value):
        refuse(name, "a list in which each device stands once", value)
