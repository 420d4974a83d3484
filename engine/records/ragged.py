"""Ragged arrays and whole tables as Arrow columns, read and built without copies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def as_list(rows: pa.Table) -> pa.LargeListArray:
    """One value that holds a whole table, ragged columns not copied."""
    arrays = [column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in rows.columns]
    together = pa.StructArray.from_arrays(arrays, fields=list(rows.schema))
    return pa.LargeListArray.from_arrays(pa.array([0, len(rows)], pa.int64()), together)


def of_list(column: pa.ChunkedArray) -> pa.Table:
    """The table in a column of one such value."""
    (together,) = column.chunks
    return pa.Table.from_struct_array(together.flatten())


def ragged(rows: Sequence[np.ndarray], dtype: pa.DataType) -> pa.LargeListArray:
    """One ``large_list`` row for each array of ``rows`` (any shape; laid flat in C order)."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([row.size for row in rows], out=offsets[1:])
    parts = [np.ravel(row) for row in rows] or [np.empty(0)]
    values = pa.array(np.concatenate(parts, dtype=dtype.to_pandas_dtype(), casting="unsafe"), dtype)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def flat_values(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The flat values of a ragged column and the offsets ``[B+1]`` of its rows in them, from 0.

    No copy of the values where Arrow allows. A slice yields its own rows alone.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    offsets = column.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    return column.values.slice(first, last - first).to_numpy(zero_copy_only=False), offsets - first


def rows_of(column: pa.ChunkedArray | pa.Array) -> list[np.ndarray]:
    """The rows of a ragged column as numpy arrays (views, where Arrow allows)."""
    values, offsets = flat_values(column)
    return [values[start:end] for start, end in itertools.pairwise(offsets)]
