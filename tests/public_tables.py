"""Tables good and bad, of every kind that the verbs take, and files written well or damaged."""

import gzip
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd

import jaxglmm as jg


KINDS = ("pandas", "polars", "pyarrow", "dict", "csv", "csv.gz", "parquet")
ODD_X, ODD_G = "Sprout Length (cm)", "my id"


def base(rows: int, seed: int) -> dict[str, np.ndarray]:
    """A table on which every family has a response; x and z numbers, f and k factors, g, h and c groups."""
    rng = np.random.default_rng(seed)
    g = np.arange(rows) // 5 if seed % 2 else rng.permutation(rows) % 12
    h, x, z = rng.integers(0, 4, rows), rng.normal(size=rows), rng.uniform(-1, 1, rows)
    b, s, u = rng.normal(size=60), rng.normal(size=60), rng.normal(size=4)
    eta = 0.2 + 0.5 * x - 0.3 * z + 0.8 * b[g] + 0.4 * s[g] * x + 0.5 * u[h]
    share = 1 / (1 + np.exp(-eta))
    text = lambda letter, codes: np.array([f"{letter}{k}" for k in codes], object)
    return {
        "y": eta + 0.7 * rng.normal(size=rows),
        "b": 1.0 * (rng.random(rows) < share),
        "n": rng.poisson(np.exp(0.5 * eta) * rng.gamma(2.0, 0.5, rows)),
        "p": np.exp(0.5 * eta) * rng.gamma(3.0, 1 / 3, rows) + 1e-3,
        "u": np.clip(rng.beta(5 * share, 5 * (1 - share)), 0.01, 0.99),
        "x": x, "z": z, "f": text("f", rng.integers(0, 3, rows)), "k": rng.integers(0, 3, rows),
        "g": text("g", g), "h": text("h", h), "c": text("c", g % 3), "w": rng.integers(1, 4, rows),
        "o": 0.1 * rng.normal(size=rows), ODD_X: x + z, ODD_G: g,
    }  # fmt: skip


def _at(value, row=3):
    def change(column, rng):
        numbers = isinstance(value, float) and np.asarray(column).dtype.kind in "iufb"
        column = np.array(column, float if numbers else object)
        if len(column):
            column[row % len(column)] = value
        return column

    return change


def _nullable(column, rng):
    column = pd.Series(column).convert_dtypes()
    return column.mask(rng.random(len(column)) < 0.1)


def _number(dtype):
    def change(column, rng):
        kept = np.asarray(column, float) if np.asarray(column).dtype.kind in "iuf" else rng.integers(0, 4, len(column))
        return np.clip(kept, 0, 100).astype(dtype)

    return change


# What a column is replaced by: the same in another type, or something that a table may hold by mischance.
CHANGES = {
    **{name: _number(name) for name in ("float32", "float16", "int8", "uint8", "int16", "uint64", "bool")},
    "nullable": _nullable,
    "category": lambda c, rng: pd.Series(c).astype(str).astype("category"),
    "unused level": lambda c, rng: pd.Series(c).astype(str).astype("category").cat.add_categories(["never"]),
    "text": lambda c, rng: np.array([str(v) for v in c], object),
    "numbers as text": lambda c, rng: np.array([str(i % 3) for i in range(len(c))], object),
    "NaN": _at(np.nan),
    "None": _at(None),
    "inf": _at(np.inf),
    "-inf": _at(-np.inf),
    "1e12": _at(1e12),
    "1e160": _at(1e160),
    "1e308": _at(1e308),
    "1e-300": _at(1e-300),
    "-1": _at(-1.0),
    "0": _at(0.0),
    "constant": lambda c, rng: np.full(len(c), c[0] if len(c) else 0.0, dtype=np.asarray(c).dtype),
    "zeros": lambda c, rng: np.zeros(len(c)),
    "empty": lambda c, rng: np.full(len(c), np.nan),
    "Nones": lambda c, rng: np.full(len(c), None, object),
    "each row": lambda c, rng: np.arange(len(c)),
    "same as x": lambda c, rng: base(len(c), 0)["x"],
    "times 1e9": lambda c, rng: 1e9 * _number(float)(c, rng),
    "times 1e-9": lambda c, rng: 1e-9 * _number(float)(c, rng),
    "far": lambda c, rng: 1e6 + _number(float)(c, rng),
    "outside 2^53": lambda c, rng: 2**53 + np.arange(len(c)) // 4,
    "signs": lambda c, rng: np.where(rng.random(len(c)) < 0.5, -1.0, 1.0),
    "mixed": lambda c, rng: np.array([v if i % 2 else str(v) for i, v in enumerate(c)], object),
    "dates": lambda c, rng: pd.date_range("2020-01-01", periods=len(c)).to_numpy(),
    "date objects": lambda c, rng: np.array([date(2020, 1, 1) + timedelta(i) for i in range(len(c))], object),
    "durations": lambda c, rng: np.arange(len(c)).astype("timedelta64[s]"),
    "decimals": lambda c, rng: np.array([Decimal(i) / 7 for i in range(len(c))], object),
    "complex": lambda c, rng: 1j * np.arange(len(c)),
    "bytes": lambda c, rng: np.array([b"ab\xff"[: i % 4] for i in range(len(c))], object),
    "lists": lambda c, rng: np.array([*([[i] for i in range(len(c))]), None], object)[:-1],
    "odd text": lambda c, rng: np.array(
        [("", " ", "é", "a\0", 'q"', "a,b", "x\ny", "NA")[i % 8] for i in range(len(c))], object
    ),
}
# Of a file: what is done to its bytes.
DAMAGES = {
    "cut": lambda raw, rng: raw[: rng.integers(0, len(raw) + 1)],
    "flip": lambda raw, rng: _flipped(raw, rng),
    "ragged": lambda raw, rng: raw + b"1,2\n",
    "long line": lambda raw, rng: raw + b"," * 40 + b"\n",
    "open quote": lambda raw, rng: raw + b'"abc',
    "latin-1": lambda raw, rng: raw.replace(b"g1", b"g\xe9"),
    "UTF-16": lambda raw, rng: raw.decode("latin-1").encode("utf-16"),
    "mark": lambda raw, rng: b"\xef\xbb\xbf" + raw,
    "NUL": lambda raw, rng: raw.replace(b"g2", b"g\0"),
    "semicolons": lambda raw, rng: raw.replace(b",", b";"),
    "row names": lambda raw, rng: b"\n".join(b"1," * (i > 0) + line for i, line in enumerate(raw.split(b"\n"))),
    "empty": lambda raw, rng: b"",
    "header alone": lambda raw, rng: raw.split(b"\n")[0] + b"\n",
    "noise": lambda raw, rng: rng.bytes(300),
    "CRLF": lambda raw, rng: raw.replace(b"\n", b"\r\n"),
    "twice": lambda raw, rng: raw + raw,
}


def _flipped(raw, rng):
    raw = bytearray(raw)
    if raw:
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    return bytes(raw)


@dataclass(frozen=True)
class Recipe:
    """A table: numbers of rows and seed, (column, change) pairs, kind, and what is done to the file it is."""

    rows: int = 60
    seed: int = 0
    changes: tuple[tuple[str, str], ...] = ()
    kind: str = "pandas"
    damage: str | None = None

    def columns(self) -> dict:
        columns, rng = dict(base(self.rows, self.seed)), np.random.default_rng(self.seed)
        for name, change in self.changes:
            columns[name] = CHANGES[change](columns[name], rng)
        return columns

    def make(self, folder: Path, kind: str | None = None):
        """The table as the verbs take it; of what a library of tables refuses to hold, a dict of arrays."""
        columns, kind = self.columns(), kind or self.kind
        try:
            return self._of_kind(columns, kind, folder)
        except jg.DataError:
            raise
        except Exception:
            return {name: np.asarray(v) for name, v in columns.items()}

    def _of_kind(self, columns, kind, folder):
        if kind == "dict":
            return {name: np.asarray(v) for name, v in columns.items()}
        frame = pd.DataFrame(columns)
        if kind == "pandas":
            return frame
        if kind == "polars":
            import polars

            return polars.from_pandas(frame)
        if kind == "pyarrow":
            import pyarrow

            return pyarrow.Table.from_pandas(frame)
        path = folder / f"table.{kind}"
        if kind == "parquet":
            frame.to_parquet(path, index=False)
            raw = path.read_bytes()
        else:
            raw = frame.to_csv(index=False).encode()
        rng = np.random.default_rng(self.seed)
        inside = kind == "csv.gz" and self.damage not in ("cut", "flip", "noise")
        raw = DAMAGES[self.damage](raw, rng) if self.damage and (inside or kind != "csv.gz") else raw
        raw = gzip.compress(raw, 1) if kind == "csv.gz" else raw
        raw = DAMAGES[self.damage](raw, rng) if self.damage and kind == "csv.gz" and not inside else raw
        path.write_bytes(raw)
        return str(path)
