"""The columns that travel between the stages, and how ragged arrays lie in Arrow.

Shape letters, used everywhere in this project:

    B  rows in a batch            L  tokens in a training block
    T  target tokens of a passage (BOS and EOS included)
    S  rows of a source distribution: one a source token whose successor the source has scored (BOS included)
    K  kept entries of a row      N  source models       P  passages in a training block       V  vocabulary
    M  training blocks of a batch         E  numbers of a ledger entry (``engine.history.ledger``)

Row convention: row s of a distribution describes the token *after* token s. ``end_bytes[s]`` says how many UTF-8 bytes
of the passage have been consumed after token s (0 for BOS; ``num_bytes`` for the last token of the text and for EOS).

Ragged arrays are Arrow ``large_list`` columns of flat values: ``[S, K]`` lies as one list of S*K numbers. They are read
and built without copies, and never as Python lists (a hundred times slower, see LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from engine.errors import RecordError

#: Fills the places of ``fused_ids`` after a row's last entry; their probability is 0.
NO_TOKEN = -1


@dataclass(frozen=True)
class Column:
    """One column of a stage: its name, Arrow type, shape letters and meaning."""

    name: str
    dtype: pa.DataType
    shape: str
    meaning: str


def _ragged(dtype: pa.DataType) -> pa.DataType:
    return pa.large_list(dtype)


PASSAGE = (
    Column("passage_id", pa.string(), "", "pass, file, row and index of the passage: unique and deterministic"),
    Column("text", pa.large_string(), "", "the passage; of a conversation what the assistant says in all"),
    Column("num_bytes", pa.int32(), "", "length of the text in UTF-8 bytes"),
    Column("context_bytes", pa.int32(), "", "bytes at its beginning that the passage before has learned already"),
    Column("ends_document", pa.bool_(), "", "whether the document ends with this passage, so that EOS follows"),
    Column(
        "messages",
        pa.list_(
            pa.struct(
                [
                    ("role", pa.string()),
                    ("content", pa.large_string()),
                    ("weight", pa.int8()),
                    ("more", pa.large_string()),
                ]
            )
        ),
        "",
        "the conversation (``engine.text.chat``), its contents without space around them; none where it is plain text",
    ),
)


def source_columns(source_name: str) -> tuple[Column, ...]:
    """The columns that one source model adds to passages.

    Of a conversation they hold the rows that predict its answers; bytes count from each answer's beginning
    (``engine.text.chat``).
    """
    return (
        Column(f"{source_name}/token_ids", _ragged(pa.int32()), "[S]", "the token that each row follows"),
        Column(
            f"{source_name}/end_bytes", _ragged(pa.int32()), "[S]", "bytes of the passage consumed after each token"
        ),
        Column(
            f"{source_name}/topk_ids", _ragged(pa.int32()), "[S,K]", "the top K next tokens, the most probable first"
        ),
        Column(f"{source_name}/topk_logprobs", _ragged(pa.float16()), "[S,K]", "their log-probabilities, in nats"),
        Column(
            f"{source_name}/token_logprobs",
            _ragged(pa.float32()),
            "[S]",
            "log-probability, in nats, that row s gave to the token that follows",
        ),
    )


def without_rows(batch: pa.Table, source_name: str) -> pa.Table:
    """The batch with a source model's columns, in which it has no rows: a source that has not scored the passages."""
    for column in source_columns(source_name):
        batch = batch.append_column(column.name, pa.array([[]] * len(batch), column.dtype))
    return batch


FUSED_PASSAGE = (
    Column("passage_id", pa.string(), "", "as in the passage"),
    Column("num_bytes", pa.int32(), "", "as in the passage, less its context"),
    Column("token_ids", _ragged(pa.int32()), "[T]", "the target model's tokens, BOS and EOS included"),
    Column(
        "fused_ids",
        _ragged(pa.int32()),
        "[T,K]",
        "target tokens of the fused distribution, in no order; then NO_TOKEN",
    ),
    Column("fused_probs", _ragged(pa.float16()), "[T,K]", "their probabilities; rest mass = 1 - sum"),
    Column("is_fused", _ragged(pa.bool_()), "[T]", "whether the row has a fused distribution"),
    Column(
        "is_learned", _ragged(pa.bool_()), "[T]", "whether the row has a label that is learned: one that is not context"
    ),
    Column("win_share", _ragged(pa.float32()), "[N]", "share of the passage for which each source alone was chosen"),
    Column(
        "cross_entropy", _ragged(pa.float32()), "[N]", "of each source, nats per byte over the bytes all have scored"
    ),
    Column("covered_rows", _ragged(pa.int32()), "[N]", "target rows for which each source has a row"),
    Column(
        "inspection", pa.large_string(), "", "a look at some of its tokens (``engine.method.inspection``), or empty"
    ),
)

TRAINING_BLOCK = (
    Column("input_ids", _ragged(pa.int32()), "[L]", "tokens of the passages, one after the other, then padding"),
    Column("segment_ids", _ragged(pa.int32()), "[L]", "1, 2, ... for the passages, 0 for padding"),
    Column(
        "loss_mask",
        _ragged(pa.bool_()),
        "[L]",
        "whether token t+1 is of the same passage and learned, a label of row t",
    ),
    Column("fusion_mask", _ragged(pa.bool_()), "[L]", "whether row t has a fused distribution"),
    Column("fused_ids", _ragged(pa.int32()), "[L,K]", "as in the fused passage"),
    Column("fused_probs", _ragged(pa.float16()), "[L,K]", "as in the fused passage"),
    Column("ledger_entry", _ragged(pa.int64()), "[E]", "what the ledger has to know of the block"),
    Column("passage_ids", _ragged(pa.string()), "[P]", "the passages inside, in order"),
    Column("passage_tokens", _ragged(pa.int32()), "[P]", "tokens that are learned, and the one before them"),
    Column("passage_bytes", _ragged(pa.int32()), "[P]", "their lengths in UTF-8 bytes, less those of context"),
    Column("win_share", _ragged(pa.float32()), "[P,N]", "as in the fused passage"),
    Column("cross_entropy", _ragged(pa.float32()), "[P,N]", "as in the fused passage"),
    Column("covered_rows", _ragged(pa.int32()), "[P,N]", "as in the fused passage"),
    Column("inspection", _ragged(pa.large_string()), "[P]", "as in the fused passage"),
)


def schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of ``columns``."""
    return pa.schema([(column.name, column.dtype) for column in columns])


#: Column of the rows that training workers get: what one of them learns of a batch, a list of ``TRAINING_BLOCK``.
SHARE = "share"


def check(table: pa.Table, columns: Sequence[Column], stage: str) -> None:
    """Check that ``table`` has all of ``columns`` with their types.

    Raises:
        RecordError: names the stage, the column, the type seen and the type expected.
    """
    for column in columns:
        if column.name not in table.column_names:
            raise RecordError(
                f"{stage}: column {column.name!r} ({column.meaning}) is missing; the batch has {table.column_names}"
            )
        seen = table.schema.field(column.name).type
        if seen != column.dtype:
            raise RecordError(f"{stage}: column {column.name!r} has type {seen}, expected {column.dtype}")
