"""Aligner: tokenizers and vocabulary mapping tables; passages with source distributions in, fused passages out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from actors.run_monitor import Meter
from engine.errors import RecordError
from engine.fusion import FusedRows, SourceRows, fuse
from engine.records import FUSED_PASSAGE, PASSAGE, check, flat_values, schema, source_columns
from engine.spec import Alignment, Fusion
from engine.tokenization import PassageTokenizer
from engine.vocabulary import load_or_build


class Aligner:
    """Aligns, maps and fuses batches of passages for one target model.

    Args:
        target_checkpoint: for its tokenizer; BOS precedes a passage if that tokenizer adds it.
        sources: (name, checkpoint) of each source model, in the order of the spec.
        fusion, alignment: sections of the spec.
        meter: of the stage ``align and fuse``.
    """

    def __init__(
        self,
        target_checkpoint: str,
        sources: Sequence[tuple[str, str]],
        fusion: Fusion,
        alignment: Alignment,
        meter: Meter,
    ):
        self._target = PassageTokenizer.load(target_checkpoint)
        self._names = [name for name, _ in sources]
        self._tokenizers = [PassageTokenizer.load(checkpoint) for _, checkpoint in sources]
        self._mappings = [
            load_or_build(tokenizer, self._target, alignment.vocabulary, alignment.cache_dir)
            for tokenizer in self._tokenizers
        ]
        self._fusion = fusion
        self._meter = meter

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``records.PASSAGE`` and the columns of all sources to ``records.FUSED_PASSAGE``.

        A source without rows for a passage is left out there.

        Raises:
            RecordError: a column is missing, of another type, or has not K entries in every row.
        """
        started = time.perf_counter()
        check(batch, [*PASSAGE, *(column for name in self._names for column in source_columns(name))], "align")
        texts = batch["text"].to_pylist()
        token_ids, end_bytes, offsets = self._target_tokens(texts, batch["ends_document"].to_pylist())
        fused = fuse(
            end_bytes,
            offsets,
            batch["num_bytes"].to_numpy(),
            [self._rows(batch, index, texts) for index in range(len(self._names))],
            self._fusion.rule,
            self._fusion.top_k,
            self._target.vocab_size,
        )
        table = _table(batch, token_ids, offsets, fused)
        self._meter.record(passages=len(batch), tokens=len(token_ids), busy_seconds=time.perf_counter() - started)
        return table

    def _target_tokens(
        self, texts: Sequence[str], ends_document: Sequence[bool]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The target's ids int32 [sum T] and end bytes int32 [sum T]; offsets int64 [B+1] of the passages in them."""
        encoded = [
            self._target.encode_with_roles(text, self._target.adds_bos, ends)
            for text, ends in zip(texts, ends_document, strict=True)
        ]
        none = np.empty(0, np.int32)  # a batch may be empty
        return (
            np.concatenate([none, *(ids for ids, _ in encoded)]),
            np.concatenate([none, *(ends for _, ends in encoded)]),
            np.cumsum([0, *(len(ids) for ids, _ in encoded)], dtype=np.int64),
        )

    def _rows(self, batch: pa.Table, index: int, texts: Sequence[str]) -> SourceRows:
        """One source's columns as arrays, without copies."""
        name, tokenizer, top_k = self._names[index], self._tokenizers[index], self._fusion.top_k
        end_bytes, offsets = flat_values(batch[f"{name}/end_bytes"])
        topk_offsets = offsets * top_k
        _insist_on_rows(batch, f"{name}/topk_ids", topk_offsets)
        _insist_on_rows(batch, f"{name}/topk_logprobs", topk_offsets)
        _insist_on_rows(batch, f"{name}/token_logprobs", offsets)
        alike = [tokenizer.has_dummy_prefix(text) == self._target.has_dummy_prefix(text) for text in texts]
        return SourceRows(
            offsets=offsets,
            end_bytes=end_bytes,
            topk_ids=flat_values(batch[f"{name}/topk_ids"])[0].reshape(-1, top_k),
            topk_logprobs=flat_values(batch[f"{name}/topk_logprobs"])[0].reshape(-1, top_k),
            token_logprobs=flat_values(batch[f"{name}/token_logprobs"])[0],
            mapping=self._mappings[index],
            begins_alike=np.array(alike, bool),
        )


def _insist_on_rows(batch: pa.Table, column: str, expected: np.ndarray) -> None:
    """Kernels look up rows without checking, so that every passage must have what its end offsets promise."""
    _, offsets = flat_values(batch[column])
    if not np.array_equal(offsets, expected):
        row = int(np.flatnonzero(np.diff(offsets) != np.diff(expected))[0])
        raise RecordError(
            f"align: passage {batch['passage_id'][row]} has {offsets[row + 1] - offsets[row]} values in {column!r}, "
            f"expected {expected[row + 1] - expected[row]} by its end_bytes; all stages must use one fusion.top_k"
        )


def _table(batch: pa.Table, token_ids: np.ndarray, offsets: np.ndarray, fused: FusedRows) -> pa.Table:
    num_sources, top_k = fused.cross_entropy.shape[1], fused.ids.shape[1]
    per_source = np.arange(len(batch) + 1, dtype=np.int64) * num_sources
    columns = {
        "passage_id": batch["passage_id"],
        "num_bytes": batch["num_bytes"],
        "token_ids": (token_ids, offsets),
        "fused_ids": (fused.ids, offsets * top_k),
        "fused_probs": (fused.probs, offsets * top_k),
        "is_fused": (fused.is_fused, offsets),
        "winner": pa.array(fused.winner, pa.int16()),
        "cross_entropy": (fused.cross_entropy.astype(np.float32), per_source),
        "covered_rows": (fused.covered_rows, per_source),
    }
    fields = schema(FUSED_PASSAGE)
    return pa.table([_column(columns[field.name], field.type) for field in fields], fields)


def _column(value: tuple[np.ndarray, np.ndarray] | pa.ChunkedArray | pa.Array, dtype: pa.DataType) -> pa.Array:
    if not isinstance(value, tuple):
        return value
    values, offsets = value
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values.ravel(), dtype.value_type))
