"""A covariance matrix that is an array, and that can be called for its other kinds."""

import numpy as np


class Vcov(np.ndarray):
    """(p, p) array; `vcov(kind)` gives another estimate of the same matrix as a plain array.

    Results of arithmetic and slices are plain or cannot be called.
    """

    _other = None

    @classmethod
    def of(cls, matrix: np.ndarray, other) -> "Vcov":
        """From a matrix and the function of `kind` that answers a call."""
        out = np.array(matrix).view(cls)
        out._other = other
        return out

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return array[()] if return_scalar else np.asarray(array)

    def __call__(self, kind: str = "model") -> np.ndarray:
        if self._other is None:
            raise TypeError("only `fit.vcov` itself can be called, not a part or a copy of it")
        return self._other(kind)

    def __reduce__(self):
        return np.asarray(self).__reduce__()
