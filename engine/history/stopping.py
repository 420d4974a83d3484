"""When a run ends, and which step's weights it leaves: both follow from the spec and the history of steps alone.

So all training workers, who have the same history, decide alike; a run that goes on from a checkpoint counts on where
it was; and the driver can say afterwards why the run has ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.history.result import StepRecord, StopReason
from engine.spec import FusionSpec


def reached(spec: FusionSpec, history: Sequence[StepRecord]) -> StopReason | None:
    """The limit that the run has come to; None while it may take another step."""
    if not history:
        return None
    training, last = spec.training, history[-1]
    if last.step >= training.max_steps:
        return "steps"
    if training.max_tokens and sum(record.tokens for record in history) >= training.max_tokens:
        return "tokens"
    if training.max_hours and last.elapsed_seconds >= 3600 * training.max_hours:
        return "time"
    if spec.evaluation.patience and _in_vain(spec, history) >= spec.evaluation.patience:
        return "no improvement"
    return None


def held_out_means(spec: FusionSpec, history: Sequence[StepRecord]) -> dict[int, float]:
    """Step to the mean of the domains' bits per byte, for every evaluation on just the domains of the spec.

    A domain without a byte to score does not count.
    """
    domains = set(spec.evaluation.corpora)
    return {record.step: _mean(record) for record in history if record.held_out and set(record.held_out) == domains}


def best_step(spec: FusionSpec, history: Sequence[StepRecord]) -> int:
    """The step with the lowest mean, the first of several; 0 if none was evaluated."""
    means = held_out_means(spec, history)
    return min(means, key=lambda step: means[step], default=0)


def exported_step(spec: FusionSpec, history: Sequence[StepRecord]) -> int:
    """The step whose weights the export holds: the last one, or the best where ``evaluation.patience`` asks for it."""
    last = history[-1].step if history else 0
    return (best_step(spec, history) or last) if spec.evaluation.patience else last


def _in_vain(spec: FusionSpec, history: Sequence[StepRecord]) -> int:
    """Evaluations since the best one."""
    best = best_step(spec, history)
    return sum(step > best for step in held_out_means(spec, history))


def _mean(record: StepRecord) -> float:
    values = [value for value in record.held_out.values() if not math.isnan(value)]
    return math.fsum(values) / len(values) if values else math.inf
