"""Totals of a run from the records of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.history.result import Progress, SourceTotals, StepRecord
from engine.spec import FusionSpec


def ratio(numerator: float, denominator: float) -> float:
    """A quotient; NaN if the denominator is 0."""
    return numerator / denominator if denominator else math.nan


def bytes_by_domain(spec: FusionSpec, history: Sequence[StepRecord]) -> tuple[int, ...]:
    """The learned bytes of each domain of the corpus."""
    return tuple(sum(record.domain_bytes[index] for record in history) for index in range(len(spec.corpus.domains)))


def source_totals(spec: FusionSpec, history: Sequence[StepRecord]) -> tuple[SourceTotals, ...]:
    """The rates of each source model over all learned passages, in the spec's order."""
    return tuple(_source_totals(spec, history, index) for index in range(len(spec.source_models)))


def _source_totals(spec: FusionSpec, history: Sequence[StepRecord], index: int) -> SourceTotals:
    passages = sum(record.passages for record in history)
    rows = sum(record.tokens for record in history) - passages  # a passage of T tokens has T-1 rows with a label
    nats = sum(record.source_nats[index] for record in history)
    wins = sum(record.source_wins[index] for record in history)
    covered_rows = sum(record.source_covered_rows[index] for record in history)
    tenth = max(1, len(history) // 10)
    return SourceTotals(
        name=spec.source_models[index].name,
        cross_entropy=ratio(nats, sum(record.source_bytes[index] for record in history)),
        win_rate=ratio(wins, passages) if spec.fusion.rule == "min_ce" else math.nan,
        coverage=ratio(covered_rows, rows),
        left_out=sum(record.source_left_out[index] for record in history),
        gains=(_mean_gain(history[:tenth], index), _mean_gain(history[-tenth:], index)),
    )


def source_gain(record: StepRecord, index: int) -> float:
    """Nats per byte by which a source predicts a step's text better than the target does before it learns that text.

    The target's include the end of documents, which the sources' do not.
    """
    target = ratio(record.lm_loss * (record.tokens - record.passages), record.bytes)
    return target - ratio(record.source_nats[index], record.source_bytes[index])


def _mean_gain(history: Sequence[StepRecord], index: int) -> float:
    gains = [gain for record in history if math.isfinite(gain := source_gain(record, index))]
    return ratio(sum(gains), len(gains))


def seconds_of_earlier_starts(history: Sequence[StepRecord], progress: Progress) -> float:
    """Seconds of training in the earlier starts of a run: up to the last step that this start has not taken itself.

    Args:
        history: all steps of the run.
        progress: the run monitor's, which knows the steps of this start alone.
    """
    first = min((record.step for record in progress.steps), default=math.inf)
    return max((record.elapsed_seconds for record in history if record.step < first), default=0.0)
