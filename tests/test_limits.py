"""More rows, levels or pairs than numbers of 32 bits count: counted rightly, or refused; without as much memory."""

import numpy as np
import pytest

from jaxglmm.batching import rows as batch_rows
from jaxglmm.design import pairs, rows
from jaxglmm.errors import DataError
from jaxglmm.ops import layout, memory


LARGEST = 2**31 - 1


def test_the_guard():
    assert memory.LARGEST == np.iinfo(np.int32).max
    assert memory.need_int32("rows", LARGEST) == LARGEST
    with pytest.raises(DataError, match="2,147,483,648 levels of 'g' are more than the 2,147,483,647"):
        memory.need_int32("levels of 'g'", LARGEST + 1)


def test_rows_of_groups_are_counted_beyond_32_bits(monkeypatch):
    """As if an int32 held 7: counts of parts are added up, and rows are placed without native counts of groups."""
    codes = np.random.default_rng(0).integers(0, 5, 100).astype(np.int32)
    codes[::2] = 3
    first, stride = np.arange(5, dtype=np.int64) * 100, np.ones(5, np.int64)
    place = {"across": 1, "block": 32, "base": 500}
    counts, slots = layout.group_counts(codes, 5), layout.slots_of_rows(codes, first, stride, **place)
    monkeypatch.setattr(memory, "LARGEST", 7)
    assert layout.group_counts(codes, 5).tolist() == counts.tolist() == np.bincount(codes).tolist()
    assert layout.slots_of_rows(codes, first, stride, **place).tolist() == slots.tolist()
    with pytest.raises(ValueError, match="code"):
        layout.group_counts(np.append(codes, np.int32(5)), 5)


def test_rows_of_one_fit():
    counts = np.array([[2**30, 2**30 - 1], [1, 2]])
    assert batch_rows.group_begins(counts)[0].tolist() == [0, 2**30, LARGEST]
    with pytest.raises(DataError, match="rows of one fit"):
        batch_rows.group_begins(counts + np.array([[0, 1]]))
    with pytest.raises(DataError, match="rows of one fit"):
        batch_rows.row_pieces(np.array([3, LARGEST + 1]))


def test_levels_and_pairs():
    few = np.zeros(3, np.int32)
    with pytest.raises(DataError, match="levels of a grouping factor"):
        pairs.find_pairs(few, 2**31, few, 4)
    many = np.broadcast_to(np.int32(0), 2**31)  # 4 bytes
    with pytest.raises(DataError, match=r"2,\d{3},\d{3},\d{3} pairs of levels"):
        _ = pairs.Pairs(many, many, few, few, 1).index
    fine = rows.RowTerm(few, 2**31, (None,), np.ones(1), None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="levels of a grouping factor"):
        rows.parent_pairs(fine, fine)


def test_sums_by_level_count_in_64_bits_where_32_do_not_do(monkeypatch):
    rng = np.random.default_rng(1)
    codes, weights, columns = rng.integers(0, 4, 50), rng.normal(size=50), rng.normal(size=(50, 3))
    term = rows.RowTerm(codes, 4, (None,), np.ones(1), None)  # type: ignore[arg-type]
    found = term.column_sums(weights, columns)
    monkeypatch.setattr(rows, "LARGEST", 10)
    np.testing.assert_array_equal(term.column_sums(weights, columns), found)
    expected = [(weights[codes == g, None] * columns[codes == g]).sum(0) for g in range(4)]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-12)


def test_labels_and_levels(monkeypatch):
    from jaxglmm.formula import columns, levels

    monkeypatch.setattr(memory, "LARGEST", 5)
    number = columns.read_column("g", np.arange(6))
    with pytest.raises(DataError, match="6 levels of 'g'"):
        levels.factorize(number)
    with pytest.raises(DataError, match="6 labels of column 'g'"):
        columns.read_column("g", np.array(list("abcdef"), object))
