"""Fusion: aligned source distributions to one sparse distribution a target row (FuseLLM, section 3.3).

``min_ce`` takes the distribution of the source with the lowest cross-entropy on the passage, ``avg_ce`` averages them
by cross-entropy. Cross-entropies are compared in nats per *byte* over the same bytes: nats per own token favour the
source with the finer tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine import kernels
from engine.alignment import match_end_bytes
from engine.records import NO_TOKEN, NO_WINNER

#: Nats per byte that make a factor of e between two weights of avg_ce.
AVG_CE_TEMPERATURE = 1.0


@dataclass(frozen=True)
class SourceRows:
    """One source's rows for a batch of passages.

    Attributes:
        offsets: int64 [B+1], where each passage's rows begin; a passage without rows was not scored.
        end_bytes: int32 [sum S]. topk_ids: int32 [sum S, K]. topk_logprobs: float16 [sum S, K].
        token_logprobs: float32 [sum S].
        mapping: int32 [V of the source], target ids or -1.
        begins_alike: bool [B], see ``alignment.match_end_bytes``.
    """

    offsets: np.ndarray
    end_bytes: np.ndarray
    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    token_logprobs: np.ndarray
    mapping: np.ndarray
    begins_alike: np.ndarray


@dataclass(frozen=True)
class FusedRows:
    """The fused distributions of a batch, as in ``records.FUSED_PASSAGE``, token axis flat over the passages."""

    ids: np.ndarray
    probs: np.ndarray
    is_fused: np.ndarray
    winner: np.ndarray
    cross_entropy: np.ndarray
    covered_rows: np.ndarray


def fuse(
    target_ends: np.ndarray,
    target_offsets: np.ndarray,
    num_bytes: np.ndarray,
    sources: Sequence[SourceRows],
    rule: str,
    top_k: int,
    vocabulary: int,
) -> FusedRows:
    """Align, map and fuse one batch of passages.

    Args:
        target_ends: int32 [sum T]; target_offsets: int64 [B+1]; num_bytes: int32 [B].
        sources: N sources; none gives rows that are not fused.
        rule: ``min_ce`` or ``avg_ce``.
        top_k: entries kept of a row. Masses that land on one target token are added; what maps nowhere and what is
            beyond the likeliest ``top_k`` is rest mass.
        vocabulary: ids of the target.
    """
    batch, rows = len(num_bytes), len(target_ends)
    ids = np.full((rows, top_k), NO_TOKEN, np.int32)
    probs = np.zeros((rows, top_k), np.float32)
    is_fused = np.zeros(rows, bool)
    if not sources:
        nothing = np.zeros((batch, 0))
        winner = np.full(batch, NO_WINNER, np.int16)
        return FusedRows(ids, probs.astype(np.float16), is_fused, winner, nothing, nothing.astype(np.int32))
    matches = [
        match_end_bytes(target_ends, target_offsets, source.end_bytes, source.offsets, source.begins_alike)
        for source in sources
    ]
    cross_entropy = cross_entropies(num_bytes, sources)
    weights, winner = source_weights(cross_entropy, rule)
    kernels.fuse_rows(
        weights,
        target_offsets,
        tuple(matches),
        tuple(source.offsets for source in sources),
        tuple(source.topk_ids for source in sources),
        tuple(source.topk_logprobs.view(np.uint16) for source in sources),
        tuple(source.mapping for source in sources),
        kernels.EXP_OF_FLOAT16_BITS,
        vocabulary,
        ids,
        probs,
        is_fused,
    )
    covered = np.stack([_count_by_passage(match >= 0, target_offsets) for match in matches], axis=1)
    return FusedRows(ids, probs.astype(np.float16), is_fused, winner, cross_entropy, covered)


def _count_by_passage(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many of ``flags`` [sum T] are set in each passage, int32 [B]."""
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[offsets]).astype(np.int32)


def cross_entropies(num_bytes: np.ndarray, sources: Sequence[SourceRows]) -> np.ndarray:
    """Nats per byte of each source on each passage, over the bytes that all sources have scored.

    A source that was trained without BOS does not score the passage's first token. The comparison begins where the last
    of the sources begins, so that nobody is charged for bytes that another did not have to predict.

    Returns:
        float64 [B,N]; NaN for a source without rows.
    """
    batch = len(num_bytes)
    first_byte = np.zeros(batch, np.int32)
    for source in sources:
        scored = np.flatnonzero(np.diff(source.offsets))
        begins = source.end_bytes[source.offsets[:-1][scored]]
        comparable = begins < num_bytes[scored]  # a source that has scored no byte at all must not end the comparison
        first_byte[scored[comparable]] = np.maximum(first_byte[scored[comparable]], begins[comparable])
    cross_entropy = np.empty((len(sources), batch))
    for index, source in enumerate(sources):
        kernels.nats_per_byte(
            source.end_bytes, source.offsets, source.token_logprobs, num_bytes, first_byte, cross_entropy[index]
        )
    return cross_entropy.T.copy()


def source_weights(cross_entropy: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """How much each source counts in each passage.

    Args:
        cross_entropy: float64 [B,N] in nats per byte; a source that is not finite is left out.
        rule: ``min_ce`` (1 for the lowest, ties to the first) or ``avg_ce`` (softmax of the negative cross-entropy).

    Returns:
        weights float64 [B,N] that sum to 1, or to 0 where no source is left; winner int16 [B], ``NO_WINNER`` where no
        single source was chosen.
    """
    present = np.isfinite(cross_entropy)
    lowest = np.where(present, cross_entropy, np.inf)
    any_present = present.any(axis=1)
    winner = np.full(len(cross_entropy), NO_WINNER, np.int16)
    if rule == "min_ce":
        best = lowest.argmin(axis=1)
        winner[any_present] = best[any_present]
        weights = np.zeros_like(cross_entropy)
        weights[np.arange(len(best)), best] = 1.0
        return weights * present, winner
    nearest = np.where(any_present, lowest.min(axis=1, initial=np.inf), 0.0)
    weights = np.exp((nearest[:, None] - lowest) / AVG_CE_TEMPERATURE)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(float).tiny), winner
