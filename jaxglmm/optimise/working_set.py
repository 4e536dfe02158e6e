"""Which of many columns are read: those that have coefficients, and those nearest to having one."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxglmm.design.wide import WideColumns


# Sizes of the working set, so that few programs are compiled; beyond, multiples of a number.
_SIZES, _MULTIPLE = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512), 256
# Room for what may be needed next, of what is needed: another set costs a Hessian.
_ROOM = 1.3
# Multiplications of a Hessian that are not worth a program of their own.
_LITTLE_WORK = 5e8
# With X no larger than this, all columns are read at once: one program instead of several.
_LITTLE_X = 5_000_000


class WorkingSet:
    """A set of columns, held dense.

    Parameters
    ----------
    columns : WideColumns
    usable : int (k,)
        Columns that may have a coefficient.

    Attributes
    ----------
    at : int (w,)
        The columns that are held, ascending.
    X : (n_slots, w)
    """

    def __init__(self, columns: WideColumns, usable: np.ndarray):
        self.columns, self.usable = columns, usable
        self.at: np.ndarray = np.zeros(0, int)
        self.X: Any = None

    @property
    def whole(self) -> bool:
        """Whether every column that may have a coefficient is held."""
        return len(self.at) == len(self.usable)

    def cover(self, needed: np.ndarray, nearness: np.ndarray) -> bool:
        """Hold `needed` (k,), filled up with the nearest (p,) of the others; whether the set has changed for that."""
        if self.X is not None and np.isin(needed, self.at).all():
            return False
        least = max(_ROOM * len(needed), min((_LITTLE_WORK / self.columns.n_slots) ** 0.5, _MULTIPLE))
        size = next((s for s in _SIZES if s >= least), -int(-least // _MULTIPLE) * _MULTIPLE)
        if size >= len(self.usable) or self.columns.n_slots * len(self.usable) <= _LITTLE_X:
            self.at = self.usable
        else:
            near = np.full(len(nearness), -1.0)
            near[self.usable] = nearness[self.usable]
            near[needed] = np.inf
            self.at = np.sort(np.argsort(-near, kind="stable")[:size])
        self.X = jnp.asarray(self.columns.gather(self.at))
        return True
