"""What is measured. A suite is a module of this folder, found by its name, with

    TITLE   one line
    SIZES   sizes that are run by default
    PEERS   names of contenders (bench/peers/__init__.py), ours first
    cases   (size, seed) -> iterator of Case

so that adding a suite is adding a file.
"""

import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One data set and what is to be done with it.

    Attributes
    ----------
    name : str
        Row of the table.
    size : float
        Place on the horizontal axis of the scaling plot.
    task : str
        Function of a peer's module that does it; peers without one are told as not covering it.
    arrays : dict of str to array
        Handed to every peer alike.
    spec : dict
        Plain values beside them: family, nodes, number of groups.
    files : dict of str to str
        Files instead of arrays, for suites that read from disk.
    better : {"higher", "lower", None}
        Which objective wins; None where objectives are not comparable.
    series : str
        What tells its curve in the scaling plot from that of the suite's other cases.
    """

    name: str
    size: float
    task: str
    arrays: dict[str, np.ndarray]
    spec: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    better: str | None = "higher"
    series: str = ""


def names() -> list[str]:
    """Suites that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str):
    """The module of a suite.

    Raises
    ------
    KeyError
        When there is none of that name.
    """
    name = name.replace("-", "_")
    if name not in names():
        raise KeyError(f"there is no suite {name!r}; suites: {', '.join(names())}")
    return importlib.import_module(f"bench.suites.{name}")
