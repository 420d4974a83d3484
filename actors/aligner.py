"""Aligner: tokenizers and vocabulary mapping tables; passages with source distributions in, fused passages out."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.invented_batch import TEXT, invented_batch
from actors.monitor import Meter
from engine.corpus.passages import passages_of
from engine.corpus.reading import Reading
from engine.errors import RecordError, TokenizerError
from engine.history.sampling import is_sampled
from engine.method.alignment import SourceAlignment
from engine.method.answers import Answers, source_answers, target_answers
from engine.method.canonical import CanonicalPairs
from engine.method.fusion import fuse, whole_passages
from engine.method.inspection import as_text, chosen_answers, inspect
from engine.method.rows import FusedRows, SourceRows
from engine.method.vocabulary import UNMAPPED
from engine.model_files.checkpoint import Checkpoint
from engine.records import FUSED_PASSAGE, PASSAGE, check, schema, source_columns, without_rows
from engine.spec import AlignmentSpec, FusionRuleSpec
from engine.text.tokenization import PassageTokenizer

_log = logging.getLogger(__name__)

#: Largest share of a batch's kept mass that may map nowhere. Real pairs of tokenizers lose at most two thirds where the
#: source knows the text, a large vocabulary mapped to a small one by exact bytes alone, and 98.5 % where it guesses at
#: random; a table of another model or an empty one loses all.
MOST_UNMAPPED = 0.995

#: Rows of a batch that the check of the mapped mass looks at; with fewer, one passage in another script could be all.
FEWEST_ROWS, MOST_ROWS = 256, 1024


#: Tokens of a sampled batch for each look in it: a batch may last several steps.
TOKENS_OF_A_LOOK = 2048


class Aligner:
    """Aligns, maps and fuses batches of passages for one target model.

    Args:
        target_checkpoint: for its tokenizer; BOS precedes a passage if that tokenizer adds it.
        sources: (name, checkpoint) of each source model, in the order of the spec.
        fusion, alignment: sections of the spec.
        sample: passages of the corpus, for a statistical vocabulary mapping.
        meter: of the stage ``align and fuse``.
        retired: names of sources that are asked no more: they have no columns, and fusion goes on with the others.
        conversations: whether the corpus is one of conversations; their answers are aligned by byte offsets.

    Raises:
        FusionError: the aligners have died too often.
    """

    def __init__(
        self,
        target_checkpoint: Checkpoint,
        sources: Sequence[tuple[str, Checkpoint]],
        fusion: FusionRuleSpec,
        alignment: AlignmentSpec,
        sample: Sequence[str],
        meter: Meter,
        retired: Collection[str] = (),
        conversations: bool = False,
    ):
        meter.start_or_refuse()
        target = PassageTokenizer.load(target_checkpoint)
        self._target = Reading(target, target.adds_bos)
        self._vocabulary = target.vocab_size
        tokenizers = {name: PassageTokenizer.load(checkpoint) for name, checkpoint in sources}
        self._names = list(tokenizers)
        self._retired = retired
        self._sources = [
            SourceAlignment(source, target, alignment, sample, conversations) for source in tokenizers.values()
        ]
        self._canonical = CanonicalPairs(target) if alignment.tokens == "bytes" and sources else None
        if self._canonical is not None and self._canonical.unknown:
            _log.warning(
                f"align: {target_checkpoint}: the fused rows keep pairs of tokens that its tokenizer never writes: "
                f"{self._canonical.unknown}"
            )
        self._fusion = fusion
        self._alignment = alignment
        self._meter = meter
        self._batches = 0  # only decides at what the report looks
        self._compile(tokenizers)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``records.PASSAGE`` and the columns of all sources but the retired ones to ``records.FUSED_PASSAGE``.

        A source without rows for a passage is left out there.

        Raises:
            RecordError: a column is missing, of another type, or has not K entries in every row; or nearly all that a
                source keeps maps nowhere.
        """
        started = time.perf_counter()
        for name in self._retired:
            batch = without_rows(batch, name)
        check(batch, [*PASSAGE, *(column for name in self._names for column in source_columns(name))], "align")
        answers, aligned, fused = self._fuse(batch)
        self._check_mapped_mass(aligned)
        looks = self._look_at(batch["passage_id"].to_pylist(), answers, aligned, fused)
        table = _table(batch, answers, *whole_passages(answers, fused), looks)
        tokens = len(answers.token_ids)
        self._meter.record(passages=len(batch), tokens=tokens, busy_seconds=time.perf_counter() - started)
        return table

    def _compile(self, tokenizers: Mapping[str, PassageTokenizer]) -> None:
        """Fuse an invented passage: what is not in numba's cache yet is compiled while the source models load.

        It takes half a minute on a new machine, which would otherwise count as work on the first batch.
        """
        try:
            made = self._fuse(invented_batch(tokenizers, self._fusion.top_k))
            if tokenizers:
                self._inspect(0, *made)
        except TokenizerError:  # a tokenizer for other scripts; the first batch compiles then
            _log.info(f"align: no kernel is compiled beforehand, since a tokenizer has no token for {TEXT!r}")

    def _fuse(self, batch: pa.Table) -> tuple[Answers, list[SourceRows], FusedRows]:
        """A batch's answers, and their rows of each source and fused."""
        passages = passages_of(batch)
        renderings = [self._target.read(passage, passage.ends_document) for passage in passages]
        answers = target_answers(
            renderings,
            [passage.context_bytes for passage in passages],
            [passage.ends_document for passage in passages],
        )
        scored = [source_answers(batch, name, self._fusion.top_k, answers.counts) for name in self._names]
        texts = [passage.text for passage in passages]
        aligned = [source.align(texts, answers.rows, rows) for source, rows in zip(self._sources, scored, strict=True)]
        by_product = self._alignment.multiplies_pieces
        fused = fuse(answers.rows, aligned, self._fusion, self._vocabulary, self._names, by_product, self._canonical)
        return answers, aligned, fused

    def _look_at(
        self, passage_ids: Sequence[str], answers: Answers, aligned: Sequence[SourceRows], fused: FusedRows
    ) -> list[str]:
        """For each passage a look at some of its tokens (``engine.method.inspection``); empty for most."""
        looks = [""] * len(passage_ids)
        self._batches += 1
        if not aligned or not is_sampled(self._batches, self._batches):
            return looks
        passages = np.repeat(np.arange(len(passage_ids)), answers.counts)
        ids = [passage_ids[passage] for passage in passages]
        most = max(2, len(answers.token_ids) // TOKENS_OF_A_LOOK)
        for answer, why in chosen_answers(ids, answers.rows, fused.cross_entropy, most).items():
            look = self._inspect(answer, answers, aligned, fused)
            passage, begin = passages[answer], answers.places[answers.rows.offsets[answer]]
            first = int(begin - answers.offsets[passage]) + look["first"]
            looks[passage] = as_text(look | {"passage": ids[answer], "why": why, "first": first})
        return looks

    def _inspect(
        self, answer: int, answers: Answers, aligned: Sequence[SourceRows], fused: FusedRows
    ) -> dict[str, Any]:
        by_product = self._alignment.multiplies_pieces
        return inspect(
            answer, answers.rows, aligned, fused, self._fusion, self._vocabulary, self._names, by_product,
            self._canonical,
        )  # fmt: skip

    def _check_mapped_mass(self, aligned: Sequence[SourceRows]) -> None:
        """Refuse a source whose mass goes to the rest bucket: it teaches nothing, and its loss looks like any."""
        for name, rows in zip(self._names, aligned, strict=True):
            unmapped = unmapped_share(rows)
            if len(rows.topk_ids) >= FEWEST_ROWS and unmapped > MOST_UNMAPPED:
                raise RecordError(
                    f"align: {unmapped:.1%} of the mass that source model {name} keeps in a batch of "
                    f"{len(rows.topk_ids)} rows maps to no target token, {MOST_UNMAPPED:.1%} at most can be right; "
                    f"check that its checkpoint has its own tokenizer, set alignment.vocabulary (now "
                    f"{self._alignment.vocabulary}) to prefix, or delete alignment.cache_dir "
                    f"{self._alignment.cache_dir}"
                )


def unmapped_share(rows: SourceRows) -> float:
    """Share of the kept mass that no target token stands for, of up to ``2 * MOST_ROWS`` rows evenly spread.

    Ids beyond the mapping, an embedding's padding, have no target token either. 0 where a source keeps no mass.
    """
    step = max(1, len(rows.topk_ids) // MOST_ROWS)
    ids, mass = rows.topk_ids[::step], np.exp(rows.topk_logprobs[::step].astype(np.float32))
    is_mapped = (ids < len(rows.mapping)) & (rows.mapping[np.minimum(ids, len(rows.mapping) - 1)] != UNMAPPED)
    total = mass.sum(dtype=np.float64)
    return float(1.0 - mass[is_mapped].sum(dtype=np.float64) / total) if total else 0.0


def _table(batch: pa.Table, answers: Answers, fused: FusedRows, is_learned: np.ndarray, looks: list[str]) -> pa.Table:
    num_sources, top_k = fused.cross_entropy.shape[1], fused.ids.shape[1]
    per_source = np.arange(len(batch) + 1, dtype=np.int64) * num_sources
    columns = {
        "passage_id": batch["passage_id"],
        "num_bytes": pc.subtract(batch["num_bytes"], batch["context_bytes"]),
        "token_ids": (answers.token_ids, answers.offsets),
        "fused_ids": (fused.ids, answers.offsets * top_k),
        "fused_probs": (fused.probs, answers.offsets * top_k),
        "is_fused": (fused.is_fused, answers.offsets),
        "is_learned": (is_learned, answers.offsets),
        "win_share": (fused.win_share, per_source),
        "cross_entropy": (fused.cross_entropy.astype(np.float32), per_source),
        "covered_rows": (fused.covered_rows, per_source),
        "inspection": pa.array(looks, pa.large_string()),
    }
    fields = schema(FUSED_PASSAGE)
    return pa.table([_column(columns[field.name], field.type) for field in fields], fields)


def _column(value: tuple[np.ndarray, np.ndarray] | pa.ChunkedArray | pa.Array, dtype: pa.DataType) -> pa.Array:
    if not isinstance(value, tuple):
        return value
    values, offsets = value
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values.ravel(), dtype.value_type))
