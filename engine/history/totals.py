"""Totals of a run from the records of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.history.result import DomainTotals, Progress, SourceTotals, StepRecord
from engine.spec import FusionSpec


def ratio(numerator: float, denominator: float) -> float:
    """A quotient; NaN if the denominator is 0."""
    return numerator / denominator if denominator else math.nan


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
        shape = self._nats.shape
        for record in history if self._names else ():
            self._tokens += record.domain_tokens
            self._passages += record.domain_passages
            self._bytes += record.domain_bytes
            self._nats += np.reshape(record.domain_source_nats, shape)
            self._source_bytes += np.reshape(record.domain_source_bytes, shape)
            self._wins += np.reshape(record.domain_source_wins, shape)
            self._covered_rows += np.reshape(record.domain_source_covered_rows, shape)
            self._held_out |= record.held_out
        return self

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


def domain_totals(spec: FusionSpec, history: Sequence[StepRecord]) -> tuple[DomainTotals, ...]:
    """The totals of each domain over all learned passages, with the sources' gains."""
    return tuple(
        replace(
            totals,
            sources=tuple(
                replace(source, gains=first_and_last_gain(history, index, domain))
                for index, source in enumerate(totals.sources)
            ),
        )
        for domain, totals in enumerate(DomainSums(spec).add(history).totals())
    )


def source_totals(spec: FusionSpec, history: Sequence[StepRecord]) -> tuple[SourceTotals, ...]:
    """The rates of each source model over all learned passages, in the spec's order."""
    return tuple(_source_totals(spec, history, index) for index in range(len(spec.source_models)))


def _source_totals(spec: FusionSpec, history: Sequence[StepRecord], index: int) -> SourceTotals:
    passages = sum(record.passages for record in history)
    rows = sum(record.tokens for record in history) - passages  # a passage of T tokens has T-1 rows with a label
    nats = sum(record.source_nats[index] for record in history)
    wins = sum(record.source_wins[index] for record in history)
    covered_rows = sum(record.source_covered_rows[index] for record in history)
    return SourceTotals(
        name=spec.source_models[index].name,
        cross_entropy=ratio(nats, sum(record.source_bytes[index] for record in history)),
        win_rate=ratio(wins, passages) if spec.fusion.rule == "min_ce" else math.nan,
        coverage=ratio(covered_rows, rows),
        left_out=sum(record.source_left_out[index] for record in history),
        gains=first_and_last_gain(history, index),
        retired_after=next((record.step for record in history if spec.source_models[index].name in record.retired), 0),
    )


def source_gain(record: StepRecord, index: int, domain: int | None = None) -> float:
    """Nats per byte by which a source predicts a step's text better than the target does before it learns that text.

    The target's include the end of documents, which the sources' do not.

    Args:
        record: of the step.
        index: of the source model in the spec.
        domain: index of the one whose text counts; None: all text.
    """
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


def first_and_last_gain(history: Sequence[StepRecord], index: int, domain: int | None = None) -> tuple[float, float]:
    """``mean_gain`` over the first and over the last tenth of the steps."""
    tenth = max(1, len(history) // 10)
    return mean_gain(history[:tenth], index, domain), mean_gain(history[-tenth:], index, domain)


def seconds_of_earlier_starts(history: Sequence[StepRecord], progress: Progress) -> float:
    """Seconds of training in the earlier starts of a run: up to the last step that this start has not taken itself.

    Args:
        history: all steps of the run.
        progress: the run monitor's, which knows the steps of this start alone.
    """
    first = min((record.step for record in progress.steps), default=math.inf)
    return max((record.elapsed_seconds for record in history if record.step < first), default=0.0)
