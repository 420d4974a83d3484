"""Answers: the stretches of a batch's passages that are learned, each aligned and fused for itself.

A plain passage is one answer. A conversation has one for each turn of the assistant (``engine.text.chat``); what lies
between them is read by the model and otherwise left alone. Within an answer byte offsets ascend from 0 on, so that a
source's columns need no more than these offsets to tell its answers apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.errors import RecordError
from engine.method.alignment import TargetTokens, match_end_bytes
from engine.method.rows import FusedRows, TargetRows
from engine.records import NO_TOKEN
from engine.text.chat import Rendering
from engine.text.tokenization import NO_ROLE, PassageTokenizer


@dataclass(frozen=True)
class Answers:
    """A batch of conversations for the target model.

    Attributes:
        token_ids: int32 [sum T]. offsets: int64 [B+1], where each conversation begins in it.
        places: int64 [sum of the answers' tokens], where each token of the answers stands in ``token_ids``.
        counts: int64 [B], answers of each conversation.
        rows: the answers' tokens, each answer as if it were a passage.
    """

    token_ids: np.ndarray
    offsets: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    rows: TargetRows


def answers_of(renderings: Sequence[Rendering]) -> Answers:
    """The answers of a batch of rendered conversations."""
    none = np.empty(0, np.int32)
    offsets = np.cumsum([0, *(len(rendering.token_ids) for rendering in renderings)], dtype=np.int64)
    token_ids = np.concatenate([none, *(rendering.token_ids for rendering in renderings)])
    ends = np.concatenate([none, *(rendering.end_bytes for rendering in renderings)])
    starts = zip(renderings, offsets[:-1], strict=True)
    places = np.concatenate([none.astype(np.int64), *(rendering.tokens() + start for rendering, start in starts)])
    lengths = [last - first + 1 for rendering in renderings for first, last in rendering.answers]
    answer_offsets = np.cumsum([0, *lengths], dtype=np.int64)
    num_bytes = ends[places][answer_offsets[1:] - 1]
    return Answers(
        token_ids=token_ids,
        offsets=offsets,
        places=places,
        counts=np.array([len(rendering.answers) for rendering in renderings], np.int64),
        rows=TargetRows(token_ids[places], ends[places], answer_offsets, num_bytes, np.zeros_like(num_bytes)),
    )


def passages_as_answers(rows: TargetRows) -> Answers:
    """A batch of plain passages, each of them one answer."""
    places = np.arange(len(rows.token_ids))
    return Answers(rows.token_ids, rows.offsets, places, np.ones(len(rows.num_bytes), np.int64), rows)


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


class AnswerMatcher:
    """Aligns the rows of one source with answers by byte offsets; see ``alignment.match_end_bytes``."""

    def __init__(self, source: PassageTokenizer, target: PassageTokenizer):
        self._source = source
        self._target = target

    def __call__(
        self,
        texts: Sequence[str],
        target: TargetTokens,
        source_tokens: np.ndarray,
        source_ends: np.ndarray,
        source_offsets: np.ndarray,
    ) -> np.ndarray:
        """As ``alignment.ByteMatcher``."""
        own = beginnings_beyond(self._target, target.token_ids, target.end_bytes, target.offsets)
        others = beginnings_beyond(self._source, source_tokens, source_ends, source_offsets)
        alike = np.array([one == other for one, other in zip(own, others, strict=True)], bool)
        return match_end_bytes(target.end_bytes, target.offsets, source_ends, source_offsets, alike)


def beginnings_beyond(
    tokenizer: PassageTokenizer, token_ids: np.ndarray, end_bytes: np.ndarray, offsets: np.ndarray
) -> list[bytes]:
    """What the first token of each answer has in front of the content: a blank of the template's, or a dummy prefix.

    Llama-2's `` Yes`` and another's ``Yes`` consume the same bytes, but the rows that predict them differ throughout.
    """
    found = []
    for start, end in pairwise(offsets):
        first = start + int(np.searchsorted(end_bytes[start:end], 0, side="right"))
        data = tokenizer.token_bytes[token_ids[first]] if first < end else None
        found.append(data[: max(len(data) - int(end_bytes[first]), 0)] if data else b"")
    return found


def with_turn_end(mapping: np.ndarray, source: PassageTokenizer, target: PassageTokenizer) -> np.ndarray:
    """A vocabulary mapping for conversations: what ends a turn, though it be EOS as well, means the turn's end."""
    if NO_ROLE in (source.turn_end_id, target.turn_end_id):
        return mapping
    mapping = mapping.copy()
    mapping[source.turn_end_id] = target.turn_end_id
    return mapping


def whole(answers: Answers, fused: FusedRows, is_learned: np.ndarray) -> tuple[FusedRows, np.ndarray]:
    """Fused answers laid back into their conversations; between answers nothing is fused or learned.

    Figures of a conversation are those of its answers: means by bytes, and sums of rows.

    Args:
        is_learned: bool [answers' tokens].
    """
    if len(answers.places) == len(answers.token_ids):  # plain passages
        return fused, is_learned
    rows, top_k = len(answers.token_ids), fused.ids.shape[1]
    ids, probs = np.full((rows, top_k), NO_TOKEN, np.int32), np.zeros((rows, top_k), np.float16)
    is_fused, learned = np.zeros(rows, bool), np.zeros(rows, bool)
    ids[answers.places], probs[answers.places] = fused.ids, fused.probs
    is_fused[answers.places], learned[answers.places] = fused.is_fused, is_learned
    num_bytes = answers.rows.num_bytes[:, None].astype(np.float64)
    scored = np.where(np.isfinite(fused.cross_entropy), num_bytes, 0.0)
    nats = _sums(np.where(scored > 0, fused.cross_entropy, 0.0) * scored, answers.counts)
    with np.errstate(invalid="ignore"):  # a source that has scored none of the answers
        cross_entropy = nats / _sums(scored, answers.counts)
    win_share = _sums(fused.win_share * num_bytes, answers.counts) / _sums(num_bytes, answers.counts)
    covered = _sums(fused.covered_rows, answers.counts).astype(np.int32)
    return FusedRows(ids, probs, is_fused, win_share.astype(np.float32), cross_entropy, covered), learned


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of [A,N] over the answers of each conversation, float64 [B,N]."""
    totals = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])
    return np.diff(totals[np.concatenate([[0], np.cumsum(counts)])], axis=0)
