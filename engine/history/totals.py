"""Totals of a run from the records of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter

import numpy as np

from engine.history.result import DomainTotals, Progress, SourceTotals, StepRecord
from engine.spec import FusionSpec


def ratio(numerator: float, denominator: float) -> float:
    """A quotient; NaN if the denominator is 0."""
    return numerator / denominator if denominator else math.nan


def quotients(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """``ratio`` of arrays of one shape, float64."""
    return np.divide(numerators, denominators, out=np.full(numerators.shape, np.nan), where=denominators != 0)


def table(history: Sequence[StepRecord], name: str, width: int | None = None) -> np.ndarray:
    """A field of some steps as float64: [T] of one number, [T,width] of a tuple; NaN where a step has no such tuple."""
    values = map(attrgetter(name), history)
    if width is None:
        return np.fromiter(values, np.float64, len(history))
    gap = (math.nan,) * width
    whole = (value if len(value) == width else gap for value in values)
    return np.fromiter(chain.from_iterable(whole), np.float64, len(history) * width).reshape(len(history), width)


def domain_tables(history: Sequence[StepRecord], num_domains: int, num_sources: int) -> dict[str, np.ndarray]:
    """The fields of some steps by domain, float64: [T,D] of the text, [T,D,N] of the source models."""
    of_text = ("domain_tokens", "domain_passages", "domain_bytes")
    of_sources = (*("domain_source_nats", "domain_source_bytes", "domain_source_wins", "domain_source_covered_rows"),)
    found = {name: table(history, name, num_domains) for name in of_text}
    shape = (len(history), num_domains, num_sources)
    return found | {name: table(history, name, num_domains * num_sources).reshape(shape) for name in of_sources}


def bytes_by_domain(spec: FusionSpec, history: Sequence[StepRecord]) -> tuple[int, ...]:
    """The learned bytes of each domain of the corpus."""
    return tuple(sum(record.domain_bytes[index] for record in history) for index in range(len(spec.corpus.domains)))


class DomainSums:
    """The figures of the corpus' domains, added up over steps.

    Args:
        spec: of the run.
    """

    def __init__(self, spec: FusionSpec):
        self._spec = spec
        self._names = spec.corpus.domain_names
        shape = (len(self._names), len(spec.source_models))
        self._tokens, self._passages, self._bytes = np.zeros((3, len(self._names)), np.int64)
        self._nats, self._source_bytes, self._wins, self._covered_rows = np.zeros((4, *shape))
        self._held_out: dict[str, float] = {}

    def add(self, history: Sequence[StepRecord]) -> DomainSums:
        """Add some steps, later ones than before; returns itself."""
        if self._names and history:
            self.add_tables(domain_tables(history, *self._nats.shape), history)
        return self

    def add_tables(self, tables: Mapping[str, np.ndarray], history: Sequence[StepRecord]) -> None:
        """Add some steps whose ``domain_tables`` are made already."""
        sums = {name: rows.sum(axis=0) for name, rows in tables.items()}
        self._tokens += sums["domain_tokens"].astype(np.int64)
        self._passages += sums["domain_passages"].astype(np.int64)
        self._bytes += sums["domain_bytes"].astype(np.int64)
        self._nats += sums["domain_source_nats"]
        self._source_bytes += sums["domain_source_bytes"]
        self._wins += sums["domain_source_wins"]
        self._covered_rows += sums["domain_source_covered_rows"]
        for record in history:
            self._held_out |= record.held_out

    def totals(self) -> tuple[DomainTotals, ...]:
        """The totals of each domain in the order of their names."""
        weights = [self._spec.corpus.domains[name].weight for name in self._names]
        return tuple(
            DomainTotals(
                name=name,
                tokens=int(self._tokens[index]),
                passages=int(self._passages[index]),
                bytes=int(self._bytes[index]),
                share=ratio(int(self._bytes[index]), int(self._bytes.sum())),
                weight=weights[index] / sum(weights),
                sources=tuple(self._source(index, source) for source in range(len(self._spec.source_models))),
                held_out=self._held_out.get(name, math.nan),
            )
            for index, name in enumerate(self._names)
        )

    def _source(self, domain: int, source: int) -> SourceTotals:
        place, passages = (domain, source), int(self._passages[domain])
        return SourceTotals(
            name=self._spec.source_models[source].name,
            cross_entropy=ratio(self._nats[place], self._source_bytes[place]),
            win_rate=ratio(self._wins[place], passages) if self._spec.fusion.rule == "min_ce" else math.nan,
            coverage=ratio(self._covered_rows[place], int(self._tokens[domain]) - passages),
        )


def source_gain(record: StepRecord, index: int, domain: int | None = None) -> float:
    """Nats per byte by which a source predicts a step's text better than the target does before it learns that text.

    The target's include the end of documents, which the sources' do not. NaN in a step with text that the target has
    read before: it knows that by heart.

    Args:
        record: of the step.
        index: of the source model in the spec.
        domain: index of the one whose text counts; None: all text.
    """
    repeated = (record.repeated_bytes,) if domain is None else record.domain_repeated_bytes[domain : domain + 1]
    if any(repeated):
        return math.nan
    if domain is None:
        target = ratio(record.lm_loss * (record.tokens - record.passages), record.bytes)
        return target - ratio(record.source_nats[index], record.source_bytes[index])
    if not record.domain_lm_nats:
        return math.nan  # a checkpoint of before there were domains' losses
    place = domain * len(record.source_nats) + index
    target = ratio(record.domain_lm_nats[domain], record.domain_bytes[domain])
    return target - ratio(record.domain_source_nats[place], record.domain_source_bytes[place])


def mean_gain(history: Sequence[StepRecord], index: int, domain: int | None = None) -> float:
    """The mean of ``source_gain`` over the steps that have one; NaN if none has."""
    gains = [gain for record in history if math.isfinite(gain := source_gain(record, index, domain))]
    return ratio(sum(gains), len(gains))


def seconds_of_earlier_starts(history: Sequence[StepRecord], progress: Progress) -> float:
    """Seconds of training in the earlier starts of a run: up to the last step that this start has not taken itself.

    Args:
        history: all steps of the run.
        progress: the run monitor's, which knows the steps of this start alone.
    """
    first = min((record.step for record in progress.steps), default=math.inf)
    return max((record.elapsed_seconds for record in history if record.step < first), default=0.0)
