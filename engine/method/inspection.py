"""A look at single tokens: what each source says there, how its row is aligned, and what the fusion makes of it.

The distributions of a run are never stored. So of some batches the aligner describes a stretch of some answers while it
has their rows; the description travels with the passage, and the training worker adds what the target says.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from engine.method.canonical import CanonicalPairs
from engine.method.fusion import fuse, label_nats, row_weights
from engine.method.rows import NO_ROW, FusedRows, SourceRows, TargetRows
from engine.spec import FusionRuleSpec

#: Rows of a stretch, tokens shown before it, entries shown of a distribution.
MOST_ROWS, TOKENS_BEFORE, TOP = 64, 24, 5

#: Decimals of nats and probabilities; a page shows nats with three and probabilities in hundredths of a percent.
DIGITS = 5

#: How a source's row is aligned: it has none; its next token ends where the target's does, before (the target's token
#: is split), or after; the row lies inside one of its tokens.
NO_SUCH_ROW, SAME_TOKEN, SPLIT, LONGER, INSIDE = range(5)

#: Why an answer was chosen.
SOURCES_DIFFER, AT_RANDOM = "the sources differ most", "at random"


def chosen_answers(
    passage_ids: Sequence[str], target: TargetRows, cross_entropy: np.ndarray, most: int = 2
) -> dict[int, str]:
    """The answers of a batch to look at, and why; the same whenever the batch is.

    Args:
        passage_ids: of each answer.
        cross_entropy: float64 [B,N], in nats per byte.

    Returns:
        At most ``most``: in turn one where the sources' cross-entropies lie farthest apart (with one source: where it
        is highest), and one by chance.
    """
    numbers = np.where(np.isfinite(cross_entropy), cross_entropy, np.nan)
    rows = np.add.reduceat(target.is_learned, target.offsets[:-1]) if len(passage_ids) else np.empty(0)
    can = (rows >= 2) & np.isfinite(numbers).any(axis=1)
    if not can.any():
        return {}
    highest = np.where(np.isfinite(numbers), numbers, -np.inf).max(axis=1)
    lowest = np.where(np.isfinite(numbers), numbers, np.inf).min(axis=1)
    spread = highest - lowest if numbers.shape[1] > 1 else highest
    answers = np.flatnonzero(can).tolist()
    chance = [zlib.crc32(name.encode("utf8")) for name in passage_ids]
    by_spread = sorted(answers, key=lambda answer: -spread[answer])
    by_chance = sorted(answers, key=lambda answer: chance[answer])
    found: dict[int, str] = {}
    for differing, drawn in zip(by_spread, by_chance, strict=True):
        found.setdefault(differing, SOURCES_DIFFER)
        found.setdefault(drawn, AT_RANDOM)
    return dict(islice(found.items(), most))


def inspect(
    answer: int,
    target: TargetRows,
    sources: Sequence[SourceRows],
    fused: FusedRows,
    fusion: FusionRuleSpec,
    vocabulary: int,
    names: Sequence[str],
    product: bool,
    canonical: CanonicalPairs | None,
) -> dict[str, Any]:
    """Describe a stretch of an answer, the one where the sources' costs of the labels lie farthest apart.

    Args:
        answer: number of it in the batch.
        fused: of the batch.
        fusion, vocabulary, names, product, canonical: as in ``fuse``.

    Returns:
        Plain data. ``first``: the first row of the stretch, counted from the answer's first. ``before``, ``tokens``:
        target ids before the stretch's labels, and the labels. ``fused``: for each row [ids, probabilities, rest] or
        None. ``weights``: for each row those of the sources. ``cross_entropy``: of the sources. ``sources``: for each
        source ``how`` its rows are aligned, its ``cost`` of each label in nats, and ``rows`` like ``fused``.
    """
    begin, end = (int(place) for place in target.offsets[answer : answer + 2])
    first, last = _stretch(target, sources, begin, end)
    part = _target_part(target, answer, first, last)
    parts = [_source_part(source, answer, first, last) for source in sources]
    rows = last - first
    single = names.index(fusion.single_source) if fusion.rule == "single" else 0
    cross_entropy = fused.cross_entropy[answer : answer + 1]
    found = []
    for name, source in zip(names, parts, strict=True):
        alone = fusion.model_copy(update={"rule": "single", "single_source": name, "granularity": "passage"})
        mapped = fuse(part, parts, alone, vocabulary, names, product, canonical)
        how, costs = how_aligned(part, source)[:rows], label_nats(part, source)[:rows]
        found.append({"how": how.tolist(), "cost": rounded(costs), "rows": top_entries(mapped, 0, rows)})
    return {
        "first": first - begin,
        "before": target.token_ids[max(begin, first - TOKENS_BEFORE) : first + 1].tolist(),
        "tokens": target.token_ids[first + 1 : last + 1].tolist(),
        "fused": top_entries(fused, first, last),
        "weights": _weights(row_weights(part, parts, cross_entropy, fusion, single)[:rows], found),
        "cross_entropy": rounded(cross_entropy[0]),
        "sources": found,
    }


def as_text(description: dict[str, Any]) -> str:
    """A description as it travels with its passage."""
    return json.dumps(description, separators=(",", ":"), allow_nan=False)


def how_aligned(target: TargetRows, source: SourceRows) -> np.ndarray:
    """How the source's row of each target row is aligned, int [sum T]; one answer."""
    has_row = source.match > NO_ROW
    following = np.append(source.end_bytes[1:], target.num_bytes)
    next_end = following[np.where(has_row, source.match, 0)] if len(source.end_bytes) else target.end_bytes
    label_end = np.append(target.end_bytes[1:], target.num_bytes)
    kinds = np.where(next_end == label_end, SAME_TOKEN, np.where(next_end < label_end, SPLIT, LONGER))
    if source.cut is not None:
        kinds = np.where(source.cut > 0, INSIDE, kinds)
    return np.where(has_row, kinds, NO_SUCH_ROW)


def _stretch(target: TargetRows, sources: Sequence[SourceRows], begin: int, end: int) -> tuple[int, int]:
    """Learned rows of an answer, at most ``MOST_ROWS``, where the sources' costs lie farthest apart; end excluded."""
    learned = np.flatnonzero(target.is_learned[begin:end]) + begin
    first, last = int(learned[0]), int(learned[-1]) + 1
    if last - first <= MOST_ROWS:
        return first, last
    costs = np.stack([label_nats(target, source)[first:last] for source in sources])
    spread = np.nan_to_num(costs.max(axis=0) - costs.min(axis=0) if len(costs) > 1 else costs[0])
    sums = np.concatenate([[0.0], np.cumsum(spread)])
    start = first + int((sums[MOST_ROWS:] - sums[:-MOST_ROWS]).argmax())
    return start, start + MOST_ROWS


def _target_part(target: TargetRows, answer: int, first: int, last: int) -> TargetRows:
    """The rows of a stretch as an answer; the row after the last holds the last label."""
    return TargetRows(
        token_ids=target.token_ids[first : last + 1],
        end_bytes=target.end_bytes[first : last + 1],
        offsets=np.array([0, last + 1 - first], np.int64),
        num_bytes=target.num_bytes[answer : answer + 1],
        first_bytes=target.first_bytes[answer : answer + 1],
        ends_document=target.ends_document[answer : answer + 1],
    )


def _source_part(source: SourceRows, answer: int, first: int, last: int) -> SourceRows:
    """All of a source's rows for an answer, and their places among the target rows of the stretch."""
    begin, end = (int(place) for place in source.offsets[answer : answer + 2])
    match = source.match[first : last + 1].copy()
    match[-1] = NO_ROW
    return replace(
        source,
        offsets=np.array([0, end - begin], np.int64),
        token_ids=source.token_ids[begin:end],
        end_bytes=source.end_bytes[begin:end],
        topk_ids=source.topk_ids[begin:end],
        topk_logprobs=source.topk_logprobs[begin:end],
        token_logprobs=source.token_logprobs[begin:end],
        match=match,
        cut=None if source.cut is None else source.cut[first : last + 1],
    )


def _weights(weights: np.ndarray, sources: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The weights of the sources among those that have a row at this place, [rows, N]; 0 without any."""
    has_row = np.array([[row is not None for row in source["rows"]] for source in sources]).T
    present = weights * has_row
    return rounded(present / np.maximum(present.sum(axis=1, keepdims=True), np.finfo(float).tiny))


def top_entries(rows: FusedRows, first: int, last: int) -> list[list[Any] | None]:
    """The top entries of each row: ids, probabilities and the mass of all others that are not kept."""
    probs = rows.probs[first:last].astype(np.float64)
    order = np.lexsort((rows.ids[first:last], -probs))[:, :TOP]
    top = np.take_along_axis(probs, order, axis=1)
    ids = np.take_along_axis(rows.ids[first:last], order, axis=1).tolist()
    counts, rests = (top > 0).sum(axis=1).tolist(), rounded(np.maximum(0.0, 1.0 - probs.sum(axis=1)))
    columns = zip(ids, rounded(top), counts, rests, rows.is_fused[first:last].tolist(), strict=True)
    return [
        [own_ids[:n], own_probs[:n], rest] if is_fused else None for own_ids, own_probs, n, rest, is_fused in columns
    ]


def rounded(values: np.ndarray) -> list[Any]:
    """Numbers as a page shows them, nested as they are; None where there is no number."""
    found = np.round(values.astype(np.float64), DIGITS)
    return found.tolist() if np.isfinite(found).all() else np.where(np.isfinite(found), found, None).tolist()
