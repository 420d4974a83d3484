"""Fusion: aligned source distributions to one sparse distribution a target row (FuseLLM, section 3.3).

``min_ce`` takes the distribution of the source with the lowest cross-entropy, ``avg_ce`` averages them by
cross-entropy. Cross-entropies are compared in nats per *byte* over the same bytes: nats per own token favour the source
with the finer tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.method import kernels
from engine.method.rows import FusedRows, SourceRows, TargetRows
from engine.records import NO_TOKEN
from engine.spec import FusionRuleSpec


def fuse(
    target: TargetRows,
    sources: Sequence[SourceRows],
    fusion: FusionRuleSpec,
    vocabulary: int,
    names: Sequence[str] = (),
    product: bool = False,
) -> FusedRows:
    """Map and fuse one batch of aligned passages.

    Args:
        sources: N sources; none gives rows that are not fused.
        fusion: the spec's section. Of each row ``top_k`` entries are kept; masses that land on one target token are
            added; what maps nowhere and what is beyond the likeliest ``top_k`` is rest mass.
        vocabulary: ids of the target.
        names: of the sources, where the rule is ``single``.
        product: whether a target token that a source splits gets the product of its pieces' probabilities.
    """
    batch, rows = len(target.num_bytes), len(target.end_bytes)
    ids = np.full((rows, fusion.top_k), NO_TOKEN, np.int32)
    probs = np.zeros((rows, fusion.top_k), np.float32)
    is_fused = np.zeros(rows, bool)
    if not sources:
        nothing = np.zeros((batch, 0), np.float32)
        return FusedRows(ids, probs.astype(np.float16), is_fused, nothing, nothing, nothing.astype(np.int32))
    per_token = fusion.arithmetic == "fusellm"
    cross_entropy = own_token_cross_entropies(sources) if per_token else cross_entropies(target, sources)
    single = names.index(fusion.single_source) if fusion.rule == "single" else 0
    weights = row_weights(target, sources, cross_entropy, fusion, single)
    kernels.fuse_rows(
        weights,
        target.offsets,
        target.end_bytes,
        next_tokens(target),
        _columns(sources),
        kernels.EXP_OF_FLOAT16_BITS,
        vocabulary,
        product,
        fusion.arithmetic == "fusellm",
        ids,
        probs,
        is_fused,
    )
    covered = np.stack([_mean_by_passage(source.match >= 0, target.offsets, total=True) for source in sources], axis=1)
    return FusedRows(
        ids,
        probs.astype(np.float16),
        is_fused,
        _win_share(weights, is_fused, cross_entropy, target, fusion),
        cross_entropy,
        covered.astype(np.int32),
    )


def _columns(sources: Sequence[SourceRows]) -> tuple[tuple[np.ndarray, ...], ...]:
    """The sources as ``kernels.fuse_rows`` takes them: tuples of one array for each source."""
    rows = [
        (
            source.match,
            source.offsets,
            source.end_bytes,
            source.token_ids,
            source.token_logprobs,
            source.topk_ids,
            source.topk_logprobs.view(np.uint16),
            source.mapping,
        )
        for source in sources
    ]
    return tuple(zip(*rows, strict=True))


def next_tokens(target: TargetRows) -> np.ndarray:
    """The label of each row, int32 [sum T]; ``NO_TOKEN`` for a passage's last row."""
    labels = np.full(len(target.token_ids), NO_TOKEN, np.int32)
    labels[:-1] = target.token_ids[1:]
    ends = target.offsets[1:][np.diff(target.offsets) > 0]
    labels[ends - 1] = NO_TOKEN
    return labels


def cross_entropies(target: TargetRows, sources: Sequence[SourceRows]) -> np.ndarray:
    """Nats per byte of each source on each passage, over the bytes that all sources have scored.

    A source that was trained without BOS does not score the passage's first token. The comparison begins where the last
    of the sources begins, so that nobody is charged for bytes that another did not have to predict.

    Returns:
        float64 [B,N]; NaN for a source without rows.
    """
    num_bytes = target.num_bytes
    first_byte = target.first_bytes.copy()
    for source in sources:
        scored = np.flatnonzero(np.diff(source.offsets))
        begins = source.end_bytes[source.offsets[:-1][scored]]
        comparable = begins < num_bytes[scored]  # a source that has scored no byte at all must not end the comparison
        first_byte[scored[comparable]] = np.maximum(first_byte[scored[comparable]], begins[comparable])
    cross_entropy = np.empty((len(sources), len(num_bytes)))
    for index, source in enumerate(sources):
        kernels.nats_per_byte(
            source.end_bytes, source.offsets, source.token_logprobs, num_bytes, first_byte, cross_entropy[index]
        )
    return cross_entropy.T.copy()


def own_token_cross_entropies(sources: Sequence[SourceRows]) -> np.ndarray:
    """Nats per own token of each source, EOS included, as the authors compare them; float64 [B,N]."""
    columns = [-_mean_by_passage(source.token_logprobs, source.offsets) for source in sources]
    return np.stack(columns, axis=1)


def label_nats(target: TargetRows, source: SourceRows) -> np.ndarray:
    """What each row's label cost a source: the nats of its tokens over the label's bytes, by share of their bytes.

    Returns:
        float64 [sum T]; NaN where the source has not scored all of these bytes, or the row has no label.
    """
    nats = np.empty(len(target.end_bytes))
    kernels.label_nats(
        target.end_bytes,
        target.offsets,
        source.end_bytes,
        source.offsets,
        source.token_logprobs,
        target.num_bytes,
        source.match,
        nats,
    )
    return nats


def row_weights(
    target: TargetRows, sources: Sequence[SourceRows], cross_entropy: np.ndarray, fusion: FusionRuleSpec, single: int
) -> np.ndarray:
    """How much each source counts in each row, float64 [sum T, N]; the sources without a row are not left out yet.

    By token, sources are compared on the bytes of the row's label, among those that have a row there.
    """
    if fusion.granularity == "passage":
        by_passage = source_weights(cross_entropy, fusion, single)
        return np.repeat(by_passage, np.diff(target.offsets), axis=0)
    labels = np.diff(target.end_bytes, append=0)[:, None]
    costs = np.stack([label_nats(target, source) for source in sources], axis=1) / np.maximum(labels, 1)
    has_row = np.stack([source.match >= 0 for source in sources], axis=1)
    return source_weights(np.where(has_row, costs, np.nan), fusion, single)


def source_weights(cross_entropy: np.ndarray, fusion: FusionRuleSpec, single: int = 0) -> np.ndarray:
    """How much each source counts.

    Args:
        cross_entropy: float64 [G,N], of G passages or tokens; a source that is not finite is left out.
        fusion: its rule: ``min_ce`` gives 1 to the lowest, ties to the first; ``avg_ce`` is the softmax of the negative
            cross-entropy over ``temperature`` (the authors': the softmax of its negative exponential); ``uniform``
            counts all alike; ``single`` one alone.
        single: the source that rule ``single`` takes.

    Returns:
        float64 [G,N] that sum to 1, or to 0 where no source is left.
    """
    present = np.isfinite(cross_entropy)
    lowest = np.where(present, cross_entropy, np.inf)
    if fusion.rule == "single":
        return present * (np.arange(cross_entropy.shape[1]) == single).astype(float)
    if fusion.rule == "uniform":
        scores = present.astype(float)
    elif fusion.rule == "min_ce":
        rewards = _bfloat16(np.exp(-lowest)) if fusion.arithmetic == "fusellm" else -lowest
        return present * (np.arange(cross_entropy.shape[1]) == rewards.argmax(axis=1)[:, None]).astype(float)
    elif fusion.arithmetic == "fusellm":
        scores = present * np.exp(_bfloat16(np.exp(-lowest)))
    else:
        nearest = np.where(present.any(axis=1), lowest.min(axis=1, initial=np.inf), 0.0)
        scores = np.exp((nearest[:, None] - lowest) / fusion.temperature)
    return scores / np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(float).tiny)


def _win_share(
    weights: np.ndarray, is_fused: np.ndarray, cross_entropy: np.ndarray, target: TargetRows, fusion: FusionRuleSpec
) -> np.ndarray:
    """Share of each passage for which ``min_ce`` chose each source, float32 [B,N]; 0 under other rules."""
    if fusion.rule != "min_ce":
        return np.zeros(cross_entropy.shape, np.float32)
    if fusion.granularity == "passage":
        return source_weights(cross_entropy, fusion).astype(np.float32)
    offsets = _offsets_of(is_fused, target)
    won = [_mean_by_passage(column, offsets) for column in weights[is_fused].T]
    return np.nan_to_num(np.stack(won, axis=1)).astype(np.float32)


def _offsets_of(kept: np.ndarray, target: TargetRows) -> np.ndarray:
    """Offsets of the passages among the rows that are kept."""
    return np.concatenate([[0], np.cumsum(kept)])[target.offsets]


def _mean_by_passage(values: np.ndarray, offsets: np.ndarray, total: bool = False) -> np.ndarray:
    """Mean (or total) of ragged values [sum T] by passage, float64 [B]; NaN for the mean of none."""
    sums = np.diff(np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])[offsets])
    if total:
        return sums
    counts = np.diff(offsets)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Values rounded to bfloat16, ties to even, as float64."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)
