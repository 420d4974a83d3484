"""Fusion: aligned source distributions to one sparse distribution a target row (FuseLLM, section 3.3).

``min_ce`` takes the distribution of the source with the lowest cross-entropy, ``avg_ce`` averages them by
cross-entropy. Cross-entropies are compared in nats per *byte* over the same bytes: nats per own token favour the source
with the finer tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.method import kernels
from engine.method.answers import Answers
from engine.method.byte_fusion import fuse_byte_rows
from engine.method.canonical import NO_PAIRS, CanonicalPairs
from engine.method.continuations import Continuations
from engine.method.rows import NO_ROW, FusedRows, SourceRows, TargetRows
from engine.method.top_entries import as_float16
from engine.records import NO_TOKEN
from engine.spec import FusionRuleSpec


def fuse(
    target: TargetRows,
    sources: Sequence[SourceRows],
    fusion: FusionRuleSpec,
    vocabulary: int,
    names: Sequence[str] = (),
    product: bool = False,
    canonical: CanonicalPairs | None = None,
) -> FusedRows:
    """Map and fuse one batch of aligned passages.

    Args:
        sources: N sources; none gives rows that are not fused.
        fusion: the spec's section. Of each row ``top_k`` entries are kept; masses that land on one target token are
            added; mass that maps nowhere or is beyond the top K is rest mass.
        vocabulary: ids of the target.
        names: of the sources, where the rule is ``single``.
        product: ``alignment.split_tokens`` is ``product``.
        canonical: the pairs of tokens that the target's tokenizer writes, for rows that are conditioned on bytes; None
            takes any pair for possible.
    """
    batch, rows = len(target.num_bytes), len(target.end_bytes)
    ids = np.full((rows, fusion.top_k), NO_TOKEN, np.int32)
    probs = np.zeros((rows, fusion.top_k), np.float32)
    is_fused = np.zeros(rows, bool)
    if not sources:
        none = np.zeros((batch, 0), np.float32)
        return FusedRows(ids, probs.astype(np.float16), is_fused, none, none, none.astype(np.int32))
    per_token = fusion.arithmetic == "fusellm"
    cross_entropy = own_token_cross_entropies(target, sources) if per_token else cross_entropies(target, sources)
    single = names.index(fusion.single_source) if fusion.rule == "single" else 0
    weights = row_weights(target, sources, cross_entropy, fusion, single)
    if sources[0].continuations is not None:
        method = kernels.Method(vocabulary, product, first_wins=False)
        ids, probs, is_fused = _fuse_bytes(target, sources, weights, fusion.top_k, method, canonical)
    else:
        kernels.fuse_rows(
            weights,
            kernels.Labels(target.offsets, target.end_bytes, target.labels),
            _arrays(sources),
            kernels.Method(vocabulary, product, first_wins=per_token),
            kernels.EXP_OF_FLOAT16_BITS,
            kernels.Fused(ids, probs, is_fused),
        )
    covered = np.stack([_mean_by_passage(source.match >= 0, target.offsets, total=True) for source in sources], axis=1)
    return FusedRows(
        ids,
        as_float16(probs),
        is_fused,
        _win_share(weights, is_fused, cross_entropy, target, fusion),
        cross_entropy,
        covered.astype(np.int32),
    )


def _fuse_bytes(
    target: TargetRows,
    sources: Sequence[SourceRows],
    weights: np.ndarray,
    top_k: int,
    method: kernels.Method,
    canonical: CanonicalPairs | None,
) -> kernels.Fused:
    """Fuse rows that are conditioned on bytes, again as long as pairs of tokens wait for the pre-tokenizer's answer."""
    pairs = canonical.pairs if canonical is not None else NO_PAIRS
    tables = Continuations(*zip(*(source.continuations for source in sources), strict=True))
    while True:
        rows = len(target.end_bytes)
        fused = kernels.Fused(
            np.full((rows, top_k), NO_TOKEN, np.int32), np.zeros((rows, top_k), np.float32), np.zeros(rows, bool)
        )
        fuse_byte_rows(
            weights,
            kernels.Labels(target.offsets, target.end_bytes, target.labels),
            target.token_ids,
            _arrays(sources),
            tuple(source.cut for source in sources),
            tables,
            pairs,
            method,
            kernels.EXP_OF_FLOAT16_BITS,
            fused,
        )
        if canonical is None or not canonical.answer():
            return fused


def _arrays(sources: Sequence[SourceRows]) -> kernels.Sources:
    return kernels.Sources(
        match=tuple(source.match for source in sources),
        offsets=tuple(source.offsets for source in sources),
        end_bytes=tuple(source.end_bytes for source in sources),
        token_ids=tuple(source.token_ids for source in sources),
        token_logprobs=tuple(source.token_logprobs for source in sources),
        topk_ids=tuple(source.topk_ids for source in sources),
        topk_bits=tuple(source.topk_logprobs.view(np.uint16) for source in sources),
        mapping=tuple(source.mapping for source in sources),
    )


def cross_entropies(target: TargetRows, sources: Sequence[SourceRows]) -> np.ndarray:
    """Nats per byte of each source on each passage, over the same bytes for all sources.

    A source that was trained without BOS does not score the passage's first token, so the comparison begins where the
    last of the sources begins, after the passage's context, and ends with the text. A token that straddles this common
    beginning counts by share of its bytes, and one of no bytes belongs to the next that has some (``label_nats``). A
    source that has scored no byte takes no part.

    Returns:
        float64 [B,N]; NaN for a source that takes no part.
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


def own_token_cross_entropies(target: TargetRows, sources: Sequence[SourceRows]) -> np.ndarray:
    """Nats per own token of each source, as the authors compare them; float64 [B,N].

    EOS counts only where the document ends: every source scores it after every passage.
    """
    columns = []
    for source in sources:
        is_text = _predicts_what_follows(target, source)
        offsets = _offsets_of(is_text, source.offsets)
        columns.append(-_mean_by_passage(source.token_logprobs[is_text], offsets))
    return np.stack(columns, axis=1)


def _predicts_what_follows(target: TargetRows, source: SourceRows) -> np.ndarray:
    """Whether each source row predicts a token that follows: all but that of an EOS inside a document; bool [sum S]."""
    found = np.ones(len(source.end_bytes), bool)
    scored = np.diff(source.offsets) > 0
    last = source.offsets[1:][scored] - 1
    after_text = source.end_bytes[last] == target.num_bytes[scored]  # a source without EOS has no such row
    found[last] = ~after_text | target.ends_document[scored]
    return found


def label_nats(target: TargetRows, source: SourceRows) -> np.ndarray:
    """The cost of each row's label to a source: the nats of its tokens over the label's bytes, by share of their bytes.

    A token of no bytes adds its nats to those of the next token that has bytes.

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
    """The weight of each source in each row, float64 [sum T, N]; a source without a row there may have one.

    Under ``min_ce`` a row that the passage's winner lacks goes to the next best source that has one, but not with the
    authors' arithmetic. By token, sources are compared on the bytes of the row's label, among those that have a row.
    """
    if fusion.granularity == "passage":
        lengths = np.diff(target.offsets)
        weights = np.repeat(source_weights(cross_entropy, fusion, single), lengths, axis=0)
        if fusion.rule == "min_ce" and fusion.arithmetic == "exact":
            is_lacking = np.zeros(len(weights), bool)
            for index, source in enumerate(sources):
                is_lacking |= (source.match == NO_ROW) & (weights[:, index] > 0)
            lacking = np.flatnonzero(is_lacking)
            passages = np.searchsorted(target.offsets, lacking, side="right") - 1
            has_row = np.stack([source.match[lacking] != NO_ROW for source in sources], axis=1)
            weights[lacking] = source_weights(np.where(has_row, cross_entropy[passages], np.nan), fusion)
        return weights
    labels = np.diff(target.end_bytes, append=0)[:, None]
    costs = np.stack([label_nats(target, source) for source in sources], axis=1) / np.maximum(labels, 1)
    has_row = np.stack([source.match >= 0 for source in sources], axis=1)
    return source_weights(np.where(has_row, costs, np.nan), fusion, single)


def source_weights(cross_entropy: np.ndarray, fusion: FusionRuleSpec, single: int = 0) -> np.ndarray:
    """The weight of each source.

    Args:
        cross_entropy: float64 [G,N], of G passages or tokens; a source that is not finite is left out.
        fusion: its rule: ``min_ce`` gives 1 to the lowest, ties to the first; ``avg_ce`` is the softmax of the negative
            cross-entropy over ``temperature`` (the authors': the softmax of its negative exponential); ``uniform``
            weighs all alike; ``single`` takes one alone.
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


def whole_passages(answers: Answers, fused: FusedRows) -> tuple[FusedRows, np.ndarray]:
    """Put fused answers back into their passages; rows between answers are neither fused nor learned.

    Figures of a passage are those of its answers: means by bytes, and sums of rows.

    Returns:
        The rows of the passages, and whether each of them has a label that is learned, bool [sum T].
    """
    is_learned = answers.rows.is_learned
    if len(answers.places) == len(answers.token_ids) and (answers.counts == 1).all():  # each passage is one answer
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


def _win_share(
    weights: np.ndarray, is_fused: np.ndarray, cross_entropy: np.ndarray, target: TargetRows, fusion: FusionRuleSpec
) -> np.ndarray:
    """Share of each passage's fused rows for which ``min_ce`` chose each source, float32 [B,N]; 0 under other rules.

    The authors choose once for a passage.
    """
    if fusion.rule != "min_ce":
        return np.zeros(cross_entropy.shape, np.float32)
    if fusion.arithmetic == "fusellm":
        return source_weights(cross_entropy, fusion).astype(np.float32)
    offsets = _offsets_of(is_fused, target.offsets)
    won = [_mean_by_passage(column, offsets) for column in weights[is_fused].T]
    return np.nan_to_num(np.stack(won, axis=1)).astype(np.float32)


def _offsets_of(kept: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Offsets of the passages among the rows that are kept."""
    return np.concatenate([[0], np.cumsum(kept)])[offsets]


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


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of [A,N] over the answers of each conversation, float64 [B,N]."""
    totals = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])
    return np.diff(totals[np.concatenate([[0], np.cumsum(counts)])], axis=0)
