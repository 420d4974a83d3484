"""Decides when a run ends and which step's weights it exports, from the spec and the history of steps alone.

Therefore all training workers, which have the same history, decide the same; a run that goes on from a checkpoint goes
on counting; and the driver can say afterwards why the run has ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.history.result import StepRecord, StopReason
from engine.spec import FusionSpec


def reached(spec: FusionSpec, history: Sequence[StepRecord]) -> StopReason | None:
    """The limit that the run has reached; None while it may take another step."""
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
    """Mean bits per byte over the domains, for each step with an evaluation on exactly the spec's domains.

    Domains without a byte to score do not count.
    """
    domains = set(spec.evaluation.corpora)
    return {record.step: _mean(record) for record in history if record.held_out and set(record.held_out) == domains}


def best_step(spec: FusionSpec, history: Sequence[StepRecord]) -> int:
    """The first step with the lowest mean; 0 if none was evaluated."""
    means = held_out_means(spec, history)
    return min(means, key=lambda step: means[step], default=0)


def exported_step(spec: FusionSpec, history: Sequence[StepRecord]) -> int:
    """The step whose weights are exported: the last one, or with ``evaluation.patience`` the best one."""
    last = history[-1].step if history else 0
    return (best_step(spec, history) or last) if spec.evaluation.patience else last


def _in_vain(spec: FusionSpec, history: Sequence[StepRecord]) -> int:
    """Number of evaluations since the best one."""
    best = best_step(spec, history)
    return sum(step > best for step in held_out_means(spec, history))


def _mean(record: StepRecord) -> float:
    values = [value for value in record.held_out.values() if not math.isnan(value)]
    return math.fsum(values) / len(values) if values else math.inf
