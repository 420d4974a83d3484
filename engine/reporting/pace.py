"""How long a run takes for its further steps, from the records of those that it has taken.

Pictures would not do: the time since the last step is no part of any step while the target is evaluated, a checkpoint
is written or models load again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.history.result import StepRecord
from engine.history.totals import ratio
from engine.spec import FusionSpec

#: The steps that tell the pace: the last ones that have taken so long, but no fewer and no more than so many.
PACE_SECONDS, FEWEST_STEPS, MOST_STEPS = 60.0, 10, 1000


@dataclass(frozen=True)
class Pace:
    """Seconds and tokens of a step, waiting included and pauses between steps excluded; NaN before they are known."""

    step_seconds: float = math.nan
    step_tokens: float = math.nan


class PaceKeeper:
    """The pace of a run, and its pauses: evaluations during training, and checkpoints.

    Args:
        spec: of the run.
    """

    def __init__(self, spec: FusionSpec):
        self._spec = spec
        self._first_steps: set[int] = set()
        self._evaluation_seconds = 0.0
        self._checkpoint_seconds = 0.0
        self.pace = Pace()

    def begin_stream(self, step: int) -> None:
        """Leave out the first step after ``step``: it waits for all models to load."""
        self._first_steps.add(step + 1)

    def update(self, steps: Sequence[StepRecord], num_new: int) -> None:
        """Take in the steps so far, of which the last ``num_new`` are new."""
        for place in range(max(0, len(steps) - num_new), len(steps)):
            if steps[place].held_out:
                self._evaluation_seconds = steps[place].held_out_seconds
            if place:
                self._note_pause(steps[place - 1], steps[place])
        seconds, tokens, count = 0.0, 0, 0
        for record in reversed(steps):
            if record.step not in self._first_steps:
                seconds, tokens, count = seconds + record.seconds, tokens + record.tokens, count + 1
            if (seconds >= PACE_SECONDS and count >= FEWEST_STEPS) or count >= MOST_STEPS:
                break
        self.pace = Pace(ratio(seconds, count), ratio(tokens, count))

    def seconds_left(self, last: StepRecord, tokens: int) -> float:
        """Seconds to the first limit of the spec; NaN before the pace is known.

        Args:
            last: the latest step.
            tokens: learned by all steps of the run.
        """
        training, pace = self._spec.training, self.pace
        steps = float(training.max_steps - last.step)
        if training.max_tokens:
            steps = min(steps, ratio(training.max_tokens - tokens, pace.step_tokens))
        seconds = self._seconds_of(last, max(0.0, steps))
        if training.max_hours:
            seconds = min(seconds, 3600 * training.max_hours - last.elapsed_seconds)
        return math.nan if math.isnan(pace.step_seconds) else max(0.0, seconds)

    def _seconds_of(self, last: StepRecord, steps: float) -> float:
        """Seconds of some more steps, with the pauses between them. The last step is evaluated in any case."""
        seconds, end = steps * self.pace.step_seconds, math.ceil(last.step + steps)
        every = self._spec.evaluation.every_steps
        evaluations = _multiples(every, last.step, end) + (every > 0 and end > last.step and end % every > 0)
        checkpoints = _multiples(self._spec.training.checkpoint_every_steps, last.step, end)
        return seconds + evaluations * self._evaluation_seconds + checkpoints * self._checkpoint_seconds

    def _note_pause(self, before: StepRecord, after: StepRecord) -> None:
        """Note how long a checkpoint has held up training, if one was due between two steps."""
        is_due = before.step % self._spec.training.checkpoint_every_steps == 0
        if is_due and after.step not in self._first_steps:
            between = after.elapsed_seconds - before.elapsed_seconds - after.seconds
            self._checkpoint_seconds = max(0.0, between - before.held_out_seconds)


def _multiples(every: int, first: int, last: int) -> int:
    """How many multiples of ``every`` lie after ``first`` and up to ``last``; 0 if ``every`` is 0."""
    return last // every - first // every if every else 0
