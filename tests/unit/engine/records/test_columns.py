"""Ragged columns: what goes in comes out, also from slices and several chunks; wrong tables are named."""

import numpy as np
import pyarrow as pa
import pytest

from engine.errors import RecordError
from engine.records import PASSAGE, check, flat_values, ragged, rows_of, schema


def test_rows_come_back_as_they_went_in():
    rows = [np.arange(6, dtype=np.float16).reshape(2, 3), np.zeros((0, 3)), np.ones((1, 3))]
    column = ragged(rows, pa.float16())
    assert [row.tolist() for row in rows_of(column)] == [[0, 1, 2, 3, 4, 5], [], [1, 1, 1]]
    assert rows_of(column)[0].dtype == np.float16


@pytest.mark.parametrize("dtype", [pa.int32(), pa.bool_(), pa.string()])
def test_a_slice_yields_its_own_rows_alone(dtype):
    values = {pa.int32(): [[1], [2, 3], [4]], pa.bool_(): [[True], [False, True], [True]]}
    rows = values.get(dtype, [["a"], ["b", "c"], ["d"]])
    column = ragged([np.array(row, object if dtype == pa.string() else None) for row in rows], dtype)
    flat, offsets = flat_values(column[1:])
    assert flat.tolist() == [item for row in rows[1:] for item in row]
    assert offsets.tolist() == [0, 2, 3]
    assert [row.tolist() for row in rows_of(pa.chunked_array([column[:1], column[1:]]))] == rows


def test_no_rows_at_all():
    assert rows_of(ragged([], pa.int32())) == []


def test_a_wrong_table_is_named():
    good = pa.table([pa.array([], field.type) for field in schema(PASSAGE)], schema(PASSAGE))
    check(good, PASSAGE, "test")
    with pytest.raises(RecordError, match=r"stage x: column 'text' .* is missing"):
        check(good.drop_columns(["text"]), PASSAGE, "stage x")
    wrong = good.set_column(2, "num_bytes", pa.array([], pa.float64()))
    with pytest.raises(RecordError, match=r"'num_bytes' has type double, expected int32"):
        check(wrong, PASSAGE, "stage x")
