"""Decides which source models a run goes on without, from the spec and the history of steps alone.

All training workers have the same history, so they decide the same. The decision is made at checkpoints, and it is part
of the step's record, which the checkpoint holds: a run that goes on from there has the same sources as one that was
never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.history.result import StepRecord
from engine.history.totals import mean_gain
from engine.spec import FusionSpec


def retired_sources(history: Sequence[StepRecord]) -> dict[str, int]:
    """The source models that the run goes on without, and the last step for which each was asked."""
    return {name: record.step for record in history for name in record.retired}


def to_retire(spec: FusionSpec, history: Sequence[StepRecord]) -> tuple[str, ...]:
    """The source models with ``retire`` that no longer pay, judged by the steps since the checkpoint before.

    A source pays where it predicts the text of any domain better than the target did before it learned that text. One
    that has scored nothing since then is not judged, and none is while text is read again: the target knows that text
    by heart.
    """
    window = history[-spec.training.checkpoint_every_steps :]
    sources = enumerate(spec.source_models)
    return tuple(source.name for index, source in sources if source.retire and _is_caught_up(spec, window, index))


def _is_caught_up(spec: FusionSpec, window: Sequence[StepRecord], index: int) -> bool:
    if any(record.repeated_bytes for record in window):
        return False
    domains = range(len(spec.corpus.domains)) or [None]
    gains = [gain for domain in domains if math.isfinite(gain := mean_gain(window, index, domain))]
    return bool(gains) and max(gains) <= 0.0
