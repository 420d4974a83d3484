"""Aligner: tokenizers and vocabulary mapping tables; passages with source distributions in, fused passages out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from actors.run_monitor import Meter
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
        self._sources = list(sources)
        self._fusion = fusion
        self._meter = meter
        self._mappings = [
            load_or_build(PassageTokenizer.load(checkpoint), self._target, alignment.vocabulary, alignment.cache_dir)
            for _, checkpoint in sources
        ]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``records.PASSAGE`` and the columns of all sources to ``records.FUSED_PASSAGE``."""
        started = time.perf_counter()
        check(batch, [*PASSAGE, *(column for name, _ in self._sources for column in source_columns(name))], "align")
        encoded = [
            self._target.encode_with_roles(text.as_py(), self._target.adds_bos, ends.as_py())
            for text, ends in zip(batch["text"], batch["ends_document"], strict=True)
        ]
        token_ids = np.concatenate([ids for ids, _ in encoded])
        offsets = np.cumsum([0, *(len(ids) for ids, _ in encoded)], dtype=np.int64)
        fused = fuse(
            np.concatenate([ends for _, ends in encoded]),
            offsets,
            batch["num_bytes"].to_numpy(),
            [self._rows(batch, index) for index in range(len(self._sources))],
            self._fusion.rule,
            self._fusion.top_k,
            self._target.vocab_size,
        )
        table = _table(batch, token_ids, offsets, fused)
        self._meter.record(passages=len(batch), tokens=len(token_ids), busy_seconds=time.perf_counter() - started)
        return table

    def _rows(self, batch: pa.Table, index: int) -> SourceRows:
        """One source's columns as arrays, without copies."""
        name, top_k = self._sources[index][0], self._fusion.top_k
        end_bytes, offsets = flat_values(batch[f"{name}/end_bytes"])
        return SourceRows(
            offsets=offsets,
            end_bytes=end_bytes,
            topk_ids=flat_values(batch[f"{name}/topk_ids"])[0].reshape(-1, top_k),
            topk_logprobs=flat_values(batch[f"{name}/topk_logprobs"])[0].reshape(-1, top_k),
            token_logprobs=flat_values(batch[f"{name}/token_logprobs"])[0],
            mapping=self._mappings[index],
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
