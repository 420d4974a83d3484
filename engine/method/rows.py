"""The rows that alignment and fusion take and give: of the target, of one source, and fused.

Ragged arrays lie flat, one passage after the other; offsets say where each passage begins. Where a batch has answers
(``engine.method.answers``), each of them counts as a passage here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from engine.method.continuations import Continuations
from engine.records import NO_TOKEN

#: A target row without a source row; it is not fused.
NO_ROW = -1

#: A target row that is taught its next token, as the authors do where they find no source row.
NEXT_TOKEN = -2


class TokenRows(Protocol):
    """Tokens of a batch on one side: token_ids and end_bytes int32 [sum of rows], offsets int64 [B+1]."""

    @property
    def token_ids(self) -> np.ndarray: ...

    @property
    def end_bytes(self) -> np.ndarray: ...

    @property
    def offsets(self) -> np.ndarray: ...


@dataclass(frozen=True)
class TargetRows:
    """The target's tokens for a batch of passages.

    Attributes:
        token_ids: int32 [sum T]. end_bytes: int32 [sum T].
        offsets: int64 [B+1], where each passage's tokens begin.
        num_bytes: int32 [B].
        first_bytes: int32 [B], where comparison begins; bytes before are context.
        ends_document: bool [B], whether the document ends here, so that EOS follows. A turn's end follows every answer.
    """

    token_ids: np.ndarray
    end_bytes: np.ndarray
    offsets: np.ndarray
    num_bytes: np.ndarray
    first_bytes: np.ndarray
    ends_document: np.ndarray

    @cached_property
    def labels(self) -> np.ndarray:
        """The next token of each row, int32 [sum T]; ``NO_TOKEN`` for a passage's last row."""
        labels = np.full(len(self.token_ids), NO_TOKEN, np.int32)
        labels[:-1] = self.token_ids[1:]
        labels[self._last_rows] = NO_TOKEN
        return labels

    @cached_property
    def label_is_context(self) -> np.ndarray:
        """Whether the label of each row is context, which the passage before has learned; bool [sum T]."""
        first_bytes = np.repeat(self.first_bytes, np.diff(self.offsets))
        label_ends = np.append(self.end_bytes[1:], np.int32(0))[: len(first_bytes)]
        is_context = (label_ends <= first_bytes) & (first_bytes > 0)
        is_context[self._last_rows] = False
        return is_context

    @cached_property
    def is_learned(self) -> np.ndarray:
        """Whether each row has a label that is learned; bool [sum T]."""
        return ~self.label_is_context & (self.labels != NO_TOKEN)

    @property
    def _last_rows(self) -> np.ndarray:
        return self.offsets[1:][np.diff(self.offsets) > 0] - 1


@dataclass(frozen=True)
class ScoredRows:
    """One source's rows for a batch of passages, as its columns have them (``records.source_columns``).

    Attributes:
        offsets: int64 [B+1], where each passage's rows begin; a passage without rows was not scored.
        token_ids, end_bytes: int32 [sum S]. topk_ids: int32 [sum S, K]. topk_logprobs: float16 [sum S, K].
        token_logprobs: float32 [sum S].
    """

    offsets: np.ndarray
    token_ids: np.ndarray
    end_bytes: np.ndarray
    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    token_logprobs: np.ndarray


@dataclass(frozen=True)
class SourceRows(ScoredRows):
    """One source's rows, and the target tokens and target rows that they belong to.

    Attributes:
        mapping: int32 [V of the source], target ids or -1.
        match: int32 [sum T], for each target row a row of its passage, ``NO_ROW`` or ``NEXT_TOKEN``.
        cut: int32 [sum T], how many bytes of the source's next token the target row has read already; with
            ``continuations`` where rows are conditioned on the bytes so far, None where not.
    """

    mapping: np.ndarray
    match: np.ndarray
    cut: np.ndarray | None = None
    continuations: Continuations | None = None


@dataclass(frozen=True)
class FusedRows:
    """The fused distributions of a batch, as in ``records.FUSED_PASSAGE``, token axis flat over the passages.

    Attributes:
        ids: int32 [sum T, K], target tokens, ``NO_TOKEN`` after the last. A row's entries are in no order.
        probs: float16 [sum T, K], their probabilities; the rest mass is one less their sum.
        is_fused: bool [sum T].
        win_share: float32 [B, N], share of a passage's fused rows for which ``min_ce`` chose each source.
        cross_entropy: float64 [B, N], nats per byte; NaN of a source that takes no part.
        covered_rows: int32 [B, N], rows for which each source has one.
    """

    ids: np.ndarray
    probs: np.ndarray
    is_fused: np.ndarray
    win_share: np.ndarray
    cross_entropy: np.ndarray
    covered_rows: np.ndarray
