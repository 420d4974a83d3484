"""Counts of one optimizer step: over this worker's blocks, then over all workers, then as the step's record."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from actors.training.collectives import of_all_workers
from actors.training.target_model import StepLosses, domains_of_blocks
from engine.corpus.passages import is_repeated
from engine.history.result import StepRecord
from engine.records import flat_values


class SourceCounts(NamedTuple):
    """Sums over the passages of one step for each source model, in the spec's order; float64 [N] each.

    Attributes:
        nats: cross-entropy in nats per byte times bytes, of the passages that the source has scored.
        bytes: of these passages.
        wins: shares of passages that the source has won.
        covered_rows: target rows for which the source has a row.
        left_out: passages that the source has not scored.
    """

    nats: np.ndarray
    bytes: np.ndarray
    wins: np.ndarray
    covered_rows: np.ndarray
    left_out: np.ndarray


class DomainCounts(NamedTuple):
    """Sums over the passages of one step for each domain of the corpus; float64 [D] each.

    Attributes:
        tokens, passages, bytes, repeated_bytes: as in ``StepCounts``.
    """

    tokens: np.ndarray
    passages: np.ndarray
    bytes: np.ndarray
    repeated_bytes: np.ndarray


class StepCounts(NamedTuple):
    """Sums over the training blocks of one step; ``places`` counts padding too.

    Attributes:
        repeated_bytes: of passages that were read in an earlier pass over the corpus.
        sources: over all passages.
        domains: none where the corpus has none.
        sources_by_domain: [D,N] instead of [N].
    """

    tokens: int
    passages: int
    bytes: int
    repeated_bytes: int
    places: int
    sources: SourceCounts
    domains: DomainCounts
    sources_by_domain: SourceCounts


def count(table: pa.Table | None, num_sources: int, num_domains: int = 0) -> StepCounts:
    """Count this worker's blocks (``records.TRAINING_BLOCK``); None has no blocks."""
    if table is None:
        return StepCounts(0, 0, 0, 0, 0, *(_zeros(kind, shape) for kind, shape in _shapes(num_sources, num_domains)))
    tokens, num_bytes = (flat_values(table[name])[0] for name in ("passage_tokens", "passage_bytes"))
    shape = (len(num_bytes), num_sources)
    cross_entropy = flat_values(table["cross_entropy"])[0].reshape(shape)
    scored = np.isfinite(cross_entropy)
    sources = SourceCounts(
        nats=np.where(scored, cross_entropy, 0.0) * num_bytes[:, None],
        bytes=scored * num_bytes[:, None],
        wins=flat_values(table["win_share"])[0].reshape(shape).astype(np.float64),
        covered_rows=flat_values(table["covered_rows"])[0].reshape(shape),
        left_out=~scored,
    )
    is_of_domain = _domains_of_passages(table) == np.arange(num_domains)[:, None]
    repeated_bytes = num_bytes * [is_repeated(name) for name in flat_values(table["passage_ids"])[0]]
    domains = DomainCounts(tokens, np.ones(len(tokens)), num_bytes, repeated_bytes)
    return StepCounts(
        tokens=int(tokens.sum()),
        passages=len(num_bytes),
        bytes=int(num_bytes.sum()),
        repeated_bytes=int(repeated_bytes.sum()),
        places=len(flat_values(table["input_ids"])[0]),
        sources=SourceCounts(*(values.sum(0) for values in sources)),
        domains=DomainCounts(*(is_of_domain @ values for values in domains)),
        sources_by_domain=SourceCounts(*(is_of_domain @ values.astype(np.float64) for values in sources)),
    )


def _domains_of_passages(table: pa.Table) -> np.ndarray:
    """The index of the domain of each passage, int64 [P]."""
    _, offsets = flat_values(table["passage_bytes"])
    return np.repeat(domains_of_blocks(table), np.diff(offsets))


def _shapes(num_sources: int, num_domains: int) -> tuple[tuple[type, tuple[int, ...]], ...]:
    """The arrays of ``StepCounts`` in its order: what they are gathered in, and the shape of each."""
    return (
        (SourceCounts, (num_sources,)),
        (DomainCounts, (num_domains,)),
        (SourceCounts, (num_domains, num_sources)),
    )


def _zeros(kind: type, shape: tuple[int, ...]) -> Any:
    return kind(*np.zeros((len(kind._fields), *shape)))


def over_workers(counts: StepCounts, wait_seconds: float, device: torch.device) -> tuple[StepCounts, float]:
    """Sum the counts over all workers and find the longest wait, in one collective; all workers call in step."""
    arrays = [np.stack(values) for values in (counts.sources, counts.domains, counts.sources_by_domain)]
    own = [*counts[:5], *np.concatenate([a.ravel() for a in arrays])]
    every = of_all_workers(torch.tensor([wait_seconds, *own], dtype=torch.float64, device=device)).cpu().numpy()
    sums = every[:, 1:].sum(axis=0)
    parts = np.split(sums[5:], np.cumsum([array.size for array in arrays])[:-1])
    sources, domains, by_domain = (part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True))
    summed = (SourceCounts(*sources), DomainCounts(*domains), SourceCounts(*by_domain))
    return StepCounts(*(int(value) for value in sums[:5]), *summed), float(every[:, 0].max())


def step_record(
    step: int, losses: StepLosses, counts: StepCounts, seconds: float, wait_seconds: float, elapsed_seconds: float
) -> StepRecord:
    """The record of one step; ``losses`` and ``counts`` are those of all workers."""
    sources, domains, by_domain = counts.sources, counts.domains, counts.sources_by_domain
    return StepRecord(
        step=step,
        loss=losses.loss,
        lm_loss=losses.lm_loss,
        fusion_loss=losses.fusion_loss,
        grad_norm=losses.grad_norm,
        learning_rate=losses.learning_rate,
        tokens=counts.tokens,
        passages=counts.passages,
        bytes=counts.bytes,
        repeated_bytes=counts.repeated_bytes,
        seconds=seconds,
        wait_seconds=wait_seconds,
        padding=1.0 - counts.tokens / counts.places,
        fused_rows=losses.fused_rows,
        fusion_gain=losses.fusion_gain,
        fusion_weight=losses.fusion_weight,
        source_nats=_floats(sources.nats),
        source_bytes=_integers(sources.bytes),
        source_wins=_floats(sources.wins),
        source_covered_rows=_integers(sources.covered_rows),
        source_left_out=_integers(sources.left_out),
        domain_tokens=_integers(domains.tokens),
        domain_passages=_integers(domains.passages),
        domain_bytes=_integers(domains.bytes),
        domain_repeated_bytes=_integers(domains.repeated_bytes),
        domain_lm_nats=losses.domain_lm_nats,
        domain_source_nats=_floats(by_domain.nats.ravel()),
        domain_source_bytes=_integers(by_domain.bytes.ravel()),
        domain_source_wins=_floats(by_domain.wins.ravel()),
        domain_source_covered_rows=_integers(by_domain.covered_rows.ravel()),
        elapsed_seconds=elapsed_seconds,
    )


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _integers(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
