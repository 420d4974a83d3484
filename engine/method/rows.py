"""The rows that fusion takes and gives: of the target, of one source, and fused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TargetRows:
    """The target's tokens for a batch of passages.

    Attributes:
        token_ids: int32 [sum T]. end_bytes: int32 [sum T].
        offsets: int64 [B+1], where each passage's tokens begin.
        num_bytes: int32 [B].
        first_bytes: int32 [B], where comparison begins; bytes before are context.
    """

    token_ids: np.ndarray
    end_bytes: np.ndarray
    offsets: np.ndarray
    num_bytes: np.ndarray
    first_bytes: np.ndarray


@dataclass(frozen=True)
class SourceRows:
    """One source's rows for a batch of passages, and the target rows that they are aligned with.

    Attributes:
        offsets: int64 [B+1], where each passage's rows begin; a passage without rows was not scored.
        token_ids, end_bytes: int32 [sum S]. topk_ids: int32 [sum S, K]. topk_logprobs: float16 [sum S, K].
        token_logprobs: float32 [sum S].
        mapping: int32 [V of the source], target ids or -1.
        match: int32 [sum T], for each target row a row of its passage, ``alignment.NO_ROW`` or ``NEXT_TOKEN``.
    """

    offsets: np.ndarray
    token_ids: np.ndarray
    end_bytes: np.ndarray
    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    token_logprobs: np.ndarray
    mapping: np.ndarray
    match: np.ndarray


@dataclass(frozen=True)
class FusedRows:
    """The fused distributions of a batch, as in ``records.FUSED_PASSAGE``, token axis flat over the passages."""

    ids: np.ndarray
    probs: np.ndarray
    is_fused: np.ndarray
    win_share: np.ndarray
    cross_entropy: np.ndarray
    covered_rows: np.ndarray
