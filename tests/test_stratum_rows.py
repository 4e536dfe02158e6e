"""Rows of strata, sorted and gathered: natively as by NumPy, and as the definition says."""

import numpy as np
import pytest

from jaxglmm.ops import native
from jaxglmm.ops.stratum_rows import Segments, Source, gather


@pytest.fixture(scope="module")
def table():
    """Nine strata, one of them empty; columns constant, zero and collinear in some, and of several types."""
    rng = np.random.default_rng(0)
    stratum = rng.choice([0, 1, 2, 4, 5, 6, 7, 8], 400)
    stratum[stratum == 8] = 7
    stratum[:2] = 8  # a stratum of two rows
    n = len(stratum)
    columns = [np.ones(n), rng.normal(5, 2, n), rng.integers(-3, 4, n).astype(np.int16), rng.random(n) < 0.5]
    columns[1][stratum == 1], columns[2][stratum == 2] = 4.0, 0
    columns[1] = np.where(stratum == 4, 2.0 * columns[2] - 1, columns[1])
    y = rng.integers(0, 2, n) * 1.0
    y[stratum == 5] = 1.0
    weights = rng.integers(1, 3, n) * 1.0
    weights[np.flatnonzero(stratum == 6)[3]] = 0.0
    return {
        "stratum": stratum, "codes": rng.integers(0, 9, n).astype(np.int32), "columns": tuple(columns), "y": y,
        "weights": weights, "offset": rng.normal(size=n), "z": rng.normal(size=(2, n)),
    }  # fmt: skip


@pytest.fixture(params=[pytest.param("native", marks=pytest.mark.native), "plain"])
def way(request, monkeypatch):
    monkeypatch.setattr(native, "use_native", lambda *_: request.param == "native")


def test_segments(table, way):
    at = Segments(table["stratum"], table["codes"], 9, 2)
    begin = 0
    for b in range(9):
        mine = np.flatnonzero(table["stratum"] == b)
        codes, counts = np.unique(table["codes"][mine], return_counts=True)
        largest_first = np.lexsort((codes, -counts))
        wanted = [row for code in codes[largest_first] for row in mine[table["codes"][mine] == code]]
        assert at.begin[b] == begin and at.rows[b] == len(mine) and at.groups[b] == len(codes)
        assert at.order[begin : begin + len(mine)].tolist() == wanted
        groups = slice(at.first_group[b], at.first_group[b] + at.groups[b])
        assert at.count[groups].tolist() == counts[largest_first].tolist()
        assert at.rank[groups].tolist() == list(range(len(codes))) and (at.of_group[groups] == b).all()
        assert at.largest[b] == counts.max(initial=0)
        begin += len(mine)
    assert at.within.tolist() == [k for count in at.count for k in range(count)]
    assert at.group.tolist() == [g for g, count in enumerate(at.count) for _ in range(count)]


@pytest.mark.parametrize("plain", [False, True])
def test_rows(table, way, plain):
    """`plain`: no weights, offset or z, and no intercept."""
    only = lambda name: None if plain else table[name]
    source = Source(
        table["y"],
        table["columns"],
        only("weights"),
        only("offset"),
        only("z"),
        1 if plain else 2,
        None if plain else 0,
    )
    which = np.array([7, 0, 3, 1, 2, 4, 5, 6, 8])
    mine = [np.flatnonzero(table["stratum"] == b) for b in which]
    order = np.concatenate(mine)
    rows = gather(source, order, np.array([len(r) for r in mine]), 2)
    np.testing.assert_array_equal(rows.y, table["y"][order])
    for name in ("weights", "offset", "z"):
        found = getattr(rows, name)
        assert found is None if plain else (found == table[name][..., order]).all()
    X = np.stack(table["columns"], 1).astype(float)
    for k, r in enumerate(mine):
        if not len(r):
            continue
        weights = np.ones(len(r)) if plain else table["weights"][r]
        mean = np.average(X[r], 0, weights)
        spread = np.sqrt(np.average((X[r] - mean) ** 2, 0, weights))
        if plain:
            mean, spread = np.zeros(4), np.sqrt(np.average(X[r] ** 2, 0, weights))
        else:
            mean[0], spread[0] = 0.0, 1.0
        constant = spread < 1e-12
        np.testing.assert_allclose(rows.center[k], mean, atol=1e-14)
        np.testing.assert_allclose(rows.scale[k][~constant], spread[~constant], rtol=1e-12)
        part = slice(rows.begin[k], rows.begin[k + 1])
        scaled = (X[r] - mean) / np.where(constant, 1, spread)
        np.testing.assert_allclose(rows.X[part][:, ~constant], scaled[:, ~constant], atol=1e-12)
        z = np.ones((1, len(r))) if plain else table["z"][:, r]
        np.testing.assert_allclose(rows.z_scale[k], np.sqrt((z**2).mean(1)), rtol=1e-12)
    suspect = {1, 2, 3, 4, 5, 8} if plain else {1, 2, 3, 4, 5, 6, 8}
    assert {int(b) for b in which[rows.suspect]} == suspect


@pytest.mark.native
def test_both_ways_are_the_same(table, monkeypatch):
    source = Source(table["y"], table["columns"], table["weights"], table["offset"], table["z"], 2, 0)
    found = []
    for way in (True, False):
        monkeypatch.setattr(native, "use_native", lambda *_, way=way: way)
        at = Segments(table["stratum"], table["codes"], 9, 2)
        found.append((vars(at), vars(gather(source, at.order, at.rows, 2))))
    for one, other in zip(*found, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(value, other[name], rtol=1e-12, atol=1e-12, err_msg=name)
