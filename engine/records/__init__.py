"""The records of the stream: columns, ragged arrays, and batches as rows."""

from engine.records.columns import (
    FUSED_PASSAGE,
    NO_TOKEN,
    PASSAGE,
    SHARE,
    TRAINING_BLOCK,
    Column,
    check,
    schema,
    source_columns,
    without_rows,
)
from engine.records.ragged import as_list, flat_values, of_list, ragged, rows_of

__all__ = [
    "FUSED_PASSAGE",
    "NO_TOKEN",
    "PASSAGE",
    "SHARE",
    "TRAINING_BLOCK",
    "Column",
    "as_list",
    "check",
    "flat_values",
    "of_list",
    "ragged",
    "rows_of",
    "schema",
    "source_columns",
    "without_rows",
]
