"""Columns of numpy arrays as a table of the caller's kind."""

from typing import Any

import numpy as np


def native_table(kind: str, columns: dict[str, Any]) -> Any:
    """A table of the kind that the data came in.

    Parameters
    ----------
    kind : str
        "pandas", "polars", "pyarrow", or "dict", for which pandas is used.
    columns : dict of str to array
        Of equal length.

    Returns
    -------
    DataFrame or Table
    """
    # Text is an object array here; the other libraries read it as text only from a list.
    plain = {
        name: v.tolist() if getattr(getattr(v, "dtype", None), "kind", "") == "O" else v for name, v in columns.items()
    }
    if kind == "polars":
        import polars

        return polars.DataFrame(plain)
    if kind == "pyarrow":
        import pyarrow

        return pyarrow.table(plain)
    import pandas

    return pandas.DataFrame(plain)


def text_column(values) -> np.ndarray:
    """An object array of str, whatever the lengths."""
    out = np.empty(len(values), object)
    out[:] = list(values)
    return out
