"""Answers: the stretches of a batch's passages that are learned, each aligned and fused on its own.

A plain passage is one answer. A conversation has one for each turn of the assistant (``engine.text.chat``); the model
reads the text between them, but does not learn it. Within an answer byte offsets ascend from 0, so a source's
columns need no more than these offsets to separate its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.errors import RecordError
from engine.method.rows import ScoredRows, TargetRows
from engine.records import flat_values
from engine.text.chat import Rendering


@dataclass(frozen=True)
class Answers:
    """The answers of a batch of passages as the target model reads them.

    Attributes:
        token_ids: int32 [sum T]. offsets: int64 [B+1], where each passage begins in it.
        places: int64 [sum of the answers' tokens], where each token of the answers stands in ``token_ids``.
        counts: int64 [B], answers of each passage.
        rows: the answers' tokens, each answer as if it were a passage.
    """

    token_ids: np.ndarray
    offsets: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    rows: TargetRows


def target_answers(
    renderings: Sequence[Rendering], context_bytes: Sequence[int], ends_document: Sequence[bool]
) -> Answers:
    """The answers of a batch.

    Args:
        renderings: the passages as the target model reads them (``engine.corpus.reading``).
        context_bytes: of each passage, the bytes at its beginning that are not learned.
        ends_document: whether EOS follows each passage, or a turn's end its answers.
    """
    none = np.empty(0, np.int32)  # a batch may be empty
    offsets = np.cumsum([0, *(len(rendering.token_ids) for rendering in renderings)], dtype=np.int64)
    token_ids = np.concatenate([none, *(rendering.token_ids for rendering in renderings)])
    end_bytes = np.concatenate([none, *(rendering.end_bytes for rendering in renderings)])
    starts = zip(renderings, offsets[:-1], strict=True)
    places = np.concatenate([none.astype(np.int64), *(rendering.tokens() + start for rendering, start in starts)])
    lengths = [last - first + 1 for rendering in renderings for first, last in rendering.answers]
    begins = np.cumsum([0, *lengths], dtype=np.int64)
    counts = np.array([len(rendering.answers) for rendering in renderings], np.int64)
    rows = TargetRows(
        token_ids=token_ids[places],
        end_bytes=end_bytes[places],
        offsets=begins,
        num_bytes=end_bytes[places][begins[1:] - 1],
        first_bytes=np.repeat(np.array(context_bytes, np.int32), counts),
        ends_document=np.repeat(np.array(ends_document, bool), counts),
    )
    return Answers(token_ids, offsets, places, counts, rows)


def source_answers(batch: pa.Table, source: str, top_k: int, counts: np.ndarray) -> ScoredRows:
    """The rows of one source, by answers, without copies.

    Args:
        batch: with the source's columns.
        source: its name.
        top_k: K, entries kept of each row.
        counts: int64 [B], answers of each passage.

    Raises:
        RecordError: a passage has not K entries in every row, or another number of answers than the target has.
    """
    end_bytes, offsets = flat_values(batch[f"{source}/end_bytes"])

    def column(name: str, entries: int) -> np.ndarray:
        values, found = flat_values(batch[f"{source}/{name}"])
        _check_rows(batch, f"{source}/{name}", found, offsets * entries)
        return values

    return ScoredRows(
        offsets=answer_offsets(end_bytes, offsets, counts),
        token_ids=column("token_ids", 1),
        end_bytes=end_bytes,
        topk_ids=column("topk_ids", top_k).reshape(-1, top_k),
        topk_logprobs=column("topk_logprobs", top_k).reshape(-1, top_k),
        token_logprobs=column("token_logprobs", 1),
    )


def _check_rows(batch: pa.Table, column: str, offsets: np.ndarray, expected: np.ndarray) -> None:
    """Kernels look up rows without checking, so every passage must have the rows that its end offsets promise."""
    if not np.array_equal(offsets, expected):
        row = int(np.flatnonzero(np.diff(offsets) != np.diff(expected))[0])
        raise RecordError(
            f"align: passage {batch['passage_id'][row]} has {offsets[row + 1] - offsets[row]} values in {column!r}, "
            f"expected {expected[row + 1] - expected[row]} by its end_bytes; all stages must use one fusion.top_k"
        )


def answer_offsets(end_bytes: np.ndarray, offsets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Where each answer begins in one source's rows, int64 [sum of counts + 1].

    Args:
        end_bytes: int32 [sum S], which fall where a new answer begins. offsets: int64 [B+1], of the conversations.
        counts: int64 [B], answers of each conversation. One without rows was left out: so are its answers.

    Raises:
        RecordError: a source has another number of answers than the target.
    """
    begins = np.ones(len(end_bytes), bool)
    begins[1:] = end_bytes[1:] < end_bytes[:-1]
    left_out = np.diff(offsets) == 0
    begins[offsets[:-1][~left_out]] = True
    starts = np.flatnonzero(begins)
    found = np.diff(np.searchsorted(starts, offsets))
    if not np.array_equal(np.where(left_out, counts, found), counts):
        row = int(np.flatnonzero(~left_out & (found != counts))[0])
        raise RecordError(
            f"align: conversation {row} of the batch has {found[row]} answers in a source's rows, {counts[row]} in "
            f"the target's; both must read the same messages"
        )
    absent = np.repeat(offsets[:-1][left_out], counts[left_out])
    return np.concatenate([np.sort(np.concatenate([starts, absent])), [len(end_bytes)]]).astype(np.int64)
