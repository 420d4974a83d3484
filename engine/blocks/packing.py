"""Fused passages to training blocks of a fixed shape (pure numpy).

The reader decides by ``best_fit`` which passages share a block, before it drops any and before any source model scores
them, so it is the same in every run. Packing is stateless: one batch of passages in, its blocks out. So a lost task can
be done again anywhere, and no remainder has to travel with a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from engine.errors import RecordError
from engine.records import FUSED_PASSAGE, NO_TOKEN, TRAINING_BLOCK, check, ragged, rows_of, schema


class Packer:
    """Packs batches of ``records.FUSED_PASSAGE`` into ``records.TRAINING_BLOCK``.

    Args:
        block_length: L, tokens in a block; no passage may be longer.
        top_k: K, entries kept of each row.
    """

    def __init__(self, block_length: int, top_k: int):
        self._block_length = block_length
        self._top_k = top_k

    def __call__(self, passages: pa.Table, training_blocks: np.ndarray, entries: np.ndarray) -> pa.Table:
        """One table of fused passages to one table of training blocks.

        Args:
            passages: ``records.FUSED_PASSAGE``.
            training_blocks: int [B], the block that each passage goes into, in [0, M); each has at least one.
            entries: int64 [M,E], what the ledger has to know of each block.

        Raises:
            RecordError: the passages of a block are longer than it.
        """
        check(passages, FUSED_PASSAGE, "pack")
        columns = {name: self._rows(passages[name]) for name in passages.column_names}
        bins = [np.flatnonzero(training_blocks == block) for block in range(len(entries))]
        blocks = [
            {"ledger_entry": entry, **self._block(columns, items)} for entry, items in zip(entries, bins, strict=True)
        ]
        fields = schema(TRAINING_BLOCK)
        arrays = [ragged([block[field.name] for block in blocks], field.type.value_type) for field in fields]
        return pa.table(arrays, fields)

    def _rows(self, column: pa.ChunkedArray) -> list[np.ndarray] | np.ndarray:
        """A ragged column as a list of arrays, a plain one as one array."""
        return rows_of(column) if pa.types.is_large_list(column.type) else column.to_numpy()

    def _block(self, columns: dict[str, list[np.ndarray] | np.ndarray], items: Sequence[int]) -> dict[str, np.ndarray]:
        """One block from the passages ``items``: token columns laid one after the other, then padding."""
        length, top_k = self._block_length, self._top_k
        self._check_room(columns, items)
        block = {
            "input_ids": np.zeros(length, np.int32),
            "segment_ids": np.zeros(length, np.int32),
            "loss_mask": np.zeros(length, bool),
            "fusion_mask": np.zeros(length, bool),
            "fused_ids": np.full((length, top_k), NO_TOKEN, np.int32),
            "fused_probs": np.zeros((length, top_k), np.float16),
        }
        start = 0
        for segment, item in enumerate(items, start=1):
            end = start + len(columns["token_ids"][item])
            block["input_ids"][start:end] = columns["token_ids"][item]
            block["segment_ids"][start:end] = segment
            block["loss_mask"][start:end] = columns["is_learned"][item]
            block["fusion_mask"][start:end] = columns["is_fused"][item]
            block["fused_ids"][start:end] = columns["fused_ids"][item].reshape(-1, top_k)
            block["fused_probs"][start:end] = columns["fused_probs"][item].reshape(-1, top_k)
            start = end
        return block | self._passages_inside(columns, items)

    def _check_room(self, columns: dict, items: Sequence[int]) -> None:
        tokens = sum(len(columns["token_ids"][item]) for item in items)
        if tokens > self._block_length:
            raise RecordError(
                f"pack: the passages {', '.join(columns['passage_id'][item] for item in items)} have {tokens} tokens, "
                f"their training block takes {self._block_length}; reader and aligner count tokens differently"
            )

    def _passages_inside(self, columns: dict, items: Sequence[int]) -> dict[str, np.ndarray]:
        """The passages in a block, for messages and the metrics."""
        tokens = [1 + columns["is_learned"][item].sum() for item in items]
        return {
            "passage_ids": np.array([columns["passage_id"][item] for item in items], object),
            "passage_tokens": np.array(tokens, np.int32),
            "passage_bytes": np.array([columns["num_bytes"][item] for item in items], np.int32),
            "win_share": np.concatenate([columns["win_share"][item] for item in items]),
            "cross_entropy": np.concatenate([columns["cross_entropy"][item] for item in items]),
            "covered_rows": np.concatenate([columns["covered_rows"][item] for item in items]),
            "inspection": np.array([columns["inspection"][item] for item in items], object),
        }
