"""Aligner: tokenizers and vocabulary mapping tables; passages with source distributions in, fused passages out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.monitor import Meter
from engine.errors import RecordError
from engine.method.alignment import NO_ROW, ByteMatcher, EditMatcher, matcher
from engine.method.answers import (
    AnswerMatcher,
    Answers,
    answer_offsets,
    answers_of,
    passages_as_answers,
    whole,
    with_turn_end,
)
from engine.method.fusion import fuse, next_tokens
from engine.method.rows import FusedRows, SourceRows, TargetRows
from engine.method.vocabulary import UNMAPPED, load_or_build
from engine.model_files.checkpoint import Checkpoint
from engine.records import FUSED_PASSAGE, MESSAGES, NO_TOKEN, PASSAGE, check, flat_values, schema, source_columns
from engine.spec import AlignmentSpec, FusionRuleSpec
from engine.text.chat import ChatTemplate
from engine.text.tokenization import PassageTokenizer

#: Largest share of a batch's kept mass that may map nowhere. Real pairs of tokenizers lose at most two thirds where the
#: source knows the text, a large vocabulary mapped to a small one by exact bytes alone, and 98.5 % where it guesses at
#: random; a table of another model or an empty one loses all.
MOST_UNMAPPED = 0.995

#: Rows of a batch that are looked at; with fewer, one passage in another script could be all.
FEWEST_ROWS, MOST_ROWS = 256, 1024


class Aligner:
    """Aligns, maps and fuses batches of passages for one target model.

    Args:
        target_checkpoint: for its tokenizer; BOS precedes a passage if that tokenizer adds it.
        sources: (name, checkpoint) of each source model, in the order of the spec.
        fusion, alignment: sections of the spec.
        sample: passages of the corpus, for a statistical vocabulary mapping.
        meter: of the stage ``align and fuse``.
        conversations: whether passages have ``records.MESSAGES``; their answers are aligned by byte offsets.

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
        conversations: bool = False,
    ):
        meter.start_or_refuse()
        self._target = PassageTokenizer.load(target_checkpoint)
        self._names = [name for name, _ in sources]
        self._fusion = fusion
        self._alignment = alignment
        self._meter = meter
        self._mappings = []
        self._matchers: list[ByteMatcher | EditMatcher | AnswerMatcher] = []
        self._template = ChatTemplate(self._target) if conversations else None
        for _, checkpoint in sources:
            source = PassageTokenizer.load(checkpoint)
            mapping = load_or_build(source, self._target, alignment.vocabulary, alignment.cache_dir, sample)
            self._mappings.append(with_turn_end(mapping, source, self._target) if conversations else mapping)
            self._matchers.append(
                AnswerMatcher(source, self._target)
                if conversations
                else matcher(source, self._target, alignment.tokens, mapping)
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``records.PASSAGE`` and the columns of all sources to ``records.FUSED_PASSAGE``.

        A source without rows for a passage is left out there.

        Raises:
            RecordError: a column is missing, of another type, or has not K entries in every row; or nearly all that a
                source keeps maps nowhere.
        """
        started = time.perf_counter()
        messages = [MESSAGES] if self._template else []
        check(
            batch, [*PASSAGE, *messages, *(column for name in self._names for column in source_columns(name))], "align"
        )
        texts = batch["text"].to_pylist()
        answers = self._answers(texts, batch)
        target = answers.rows
        in_context = label_is_context(target)
        fused = fuse(
            target,
            [self._source_rows(batch, index, texts, answers, in_context) for index in range(len(self._names))],
            self._fusion,
            self._target.vocab_size,
            self._names,
            product=self._alignment.split_tokens == "product",
        )
        table = _table(batch, answers, fused, in_context)
        tokens = len(answers.token_ids)
        self._meter.record(passages=len(batch), tokens=tokens, busy_seconds=time.perf_counter() - started)
        return table

    def _answers(self, texts: Sequence[str], batch: pa.Table) -> Answers:
        """What the target learns of the batch; a plain passage is one answer."""
        if self._template:
            return answers_of([self._template.encode(messages) for messages in batch["messages"].to_pylist()])
        return passages_as_answers(self._target_rows(texts, batch))

    def _target_rows(self, texts: Sequence[str], batch: pa.Table) -> TargetRows:
        encoded = [
            self._target.encode_with_roles(text, self._target.adds_bos, ends)
            for text, ends in zip(texts, batch["ends_document"].to_pylist(), strict=True)
        ]
        none = np.empty(0, np.int32)  # a batch may be empty
        return TargetRows(
            token_ids=np.concatenate([none, *(ids for ids, _ in encoded)]),
            end_bytes=np.concatenate([none, *(ends for _, ends in encoded)]),
            offsets=np.cumsum([0, *(len(ids) for ids, _ in encoded)], dtype=np.int64),
            num_bytes=batch["num_bytes"].to_numpy(),
            first_bytes=batch["context_bytes"].to_numpy(),
        )

    def _source_rows(
        self, batch: pa.Table, index: int, texts: Sequence[str], answers: Answers, in_context: np.ndarray
    ) -> SourceRows:
        """One source's columns as arrays, without copies, and their alignment."""
        name, top_k = self._names[index], self._fusion.top_k
        end_bytes, offsets = flat_values(batch[f"{name}/end_bytes"])
        for column, expected in (
            ("token_ids", offsets),
            ("topk_ids", offsets * top_k),
            ("topk_logprobs", offsets * top_k),
            ("token_logprobs", offsets),
        ):
            _check_rows(batch, f"{name}/{column}", expected)
        token_ids = flat_values(batch[f"{name}/token_ids"])[0]
        if self._template:
            offsets = answer_offsets(end_bytes, offsets, answers.counts)
        match = self._matchers[index](texts, answers.rows, token_ids, end_bytes, offsets)
        rows = SourceRows(
            offsets=offsets,
            token_ids=token_ids,
            end_bytes=end_bytes,
            topk_ids=flat_values(batch[f"{name}/topk_ids"])[0].reshape(-1, top_k),
            topk_logprobs=flat_values(batch[f"{name}/topk_logprobs"])[0].reshape(-1, top_k),
            token_logprobs=flat_values(batch[f"{name}/token_logprobs"])[0],
            mapping=self._mappings[index],
            match=np.where(in_context, NO_ROW, match),
        )
        self._check_mapped_mass(name, rows)
        return rows

    def _check_mapped_mass(self, name: str, rows: SourceRows) -> None:
        """A source whose mass goes to the rest bucket teaches nothing, and the loss of such rows looks like any."""
        unmapped = unmapped_share(rows)
        if len(rows.topk_ids) >= FEWEST_ROWS and unmapped > MOST_UNMAPPED:
            raise RecordError(
                f"align: {unmapped:.1%} of the mass that source model {name} keeps in a batch of {len(rows.topk_ids)} "
                f"rows maps to no target token, {MOST_UNMAPPED:.1%} at most can be right; look whether its checkpoint "
                f"has its own tokenizer, set alignment.vocabulary (now {self._alignment.vocabulary}) to prefix, or "
                f"delete alignment.cache_dir {self._alignment.cache_dir}"
            )


def _check_rows(batch: pa.Table, column: str, expected: np.ndarray) -> None:
    """Kernels look up rows without checking, so that every passage must have what its end offsets promise."""
    _, offsets = flat_values(batch[column])
    if not np.array_equal(offsets, expected):
        row = int(np.flatnonzero(np.diff(offsets) != np.diff(expected))[0])
        raise RecordError(
            f"align: passage {batch['passage_id'][row]} has {offsets[row + 1] - offsets[row]} values in {column!r}, "
            f"expected {expected[row + 1] - expected[row]} by its end_bytes; all stages must use one fusion.top_k"
        )


def unmapped_share(rows: SourceRows) -> float:
    """Share of the kept mass that no target token stands for, of up to ``2 * MOST_ROWS`` rows evenly spread.

    Ids beyond the mapping, an embedding's padding, have no target token either. 0 where nothing is kept.
    """
    step = max(1, len(rows.topk_ids) // MOST_ROWS)
    ids, mass = rows.topk_ids[::step], np.exp(rows.topk_logprobs[::step].astype(np.float32))
    is_mapped = (ids < len(rows.mapping)) & (rows.mapping[np.minimum(ids, len(rows.mapping) - 1)] != UNMAPPED)
    total = mass.sum(dtype=np.float64)
    return float(1.0 - mass[is_mapped].sum(dtype=np.float64) / total) if total else 0.0


def label_is_context(target: TargetRows) -> np.ndarray:
    """Whether the label of each row is context, which the passage before has learned; bool [sum T]."""
    first_bytes = np.repeat(target.first_bytes, np.diff(target.offsets))
    label_ends = np.append(target.end_bytes[1:], np.int32(0))[: len(first_bytes)]
    in_context = (label_ends <= first_bytes) & (first_bytes > 0)
    in_context[target.offsets[1:][np.diff(target.offsets) > 0] - 1] = False  # a last row has no label
    return in_context


def _table(batch: pa.Table, answers: Answers, fused: FusedRows, in_context: np.ndarray) -> pa.Table:
    fused, is_learned = whole(answers, fused, ~in_context & (next_tokens(answers.rows) != NO_TOKEN))
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
    }
    fields = schema(FUSED_PASSAGE)
    return pa.table([_column(columns[field.name], field.type) for field in fields], fields)


def _column(value: tuple[np.ndarray, np.ndarray] | pa.ChunkedArray | pa.Array, dtype: pa.DataType) -> pa.Array:
    if not isinstance(value, tuple):
        return value
    values, offsets = value
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values.ravel(), dtype.value_type))
