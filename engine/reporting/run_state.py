"""The state of a run as a person sees it: its steps, how fast it is, how long it still takes, what happened last."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from engine.history.result import TRAIN, DomainTotals, Progress, StageTotals, StepRecord
from engine.history.totals import DomainSums
from engine.reporting.figures import duration
from engine.reporting.pace import PaceKeeper
from engine.reporting.rates import FlowRates
from engine.spec import FusionSpec


class RunState:
    """What a display shows: the spec, the steps, the latest picture, the rates of the last half minute.

    Args:
        spec: of the run.
        earlier: steps of earlier starts of the run, up to the checkpoint that this one goes on from.
        now: monotonic time of the start.

    Attributes:
        steps: of this start, those that stand.
        step, evaluated: the latest step, and the latest one after which the target was evaluated; None before that.
        tokens: learned by all starts.
        elapsed_seconds, run_seconds: since this start began, and with the training of the earlier ones.
    """

    def __init__(self, spec: FusionSpec, earlier: Sequence[StepRecord] = (), now: float | None = None):
        self.spec = spec
        self.picture = Progress()
        self.steps: list[StepRecord] = []
        self.step: StepRecord | None = None
        self.evaluated: StepRecord | None = None
        self.rates = FlowRates(spec)
        self.elapsed_seconds = 0.0
        self._earlier = tuple(earlier)
        self._pace = PaceKeeper(spec)
        self._pace.begin_stream(self._earlier[-1].step if self._earlier else 0)
        self._loading = _Loading()
        self._began = time.monotonic() if now is None else now
        self._event, self._event_seconds = "", 0.0
        self._add_up()

    @property
    def last_step(self) -> int:
        """Number of the latest step of this start, 0 before the first."""
        return self.step.step if self.step else 0

    @property
    def run_seconds(self) -> float:
        """Wall time over all starts; of earlier ones only the training up to their last checkpoint."""
        return self.elapsed_seconds + (self._earlier[-1].elapsed_seconds if self._earlier else 0.0)

    @property
    def seconds_left(self) -> float:
        """Seconds to the first limit of the spec at the pace of the last steps; NaN before the pace is known."""
        return self._pace.seconds_left(self.step, self.tokens) if self.step is not None else math.nan

    @property
    def domains(self) -> tuple[DomainTotals, ...]:
        """What all starts have learned of each domain of the corpus."""
        return self._domains.totals()

    def update(self, picture: Progress, now: float) -> None:
        """Take in a picture and the time of it."""
        self.elapsed_seconds = now - self._began
        if picture.stream != self.picture.stream:
            self._pace.begin_stream(picture.began_at)
            if self.picture.stream:  # the first one began with the run
                self._loading = _Loading(picture.stages, self.elapsed_seconds)
        self._note_events(picture)
        self._take_steps(picture)
        self._loading.update(picture.stages, self.elapsed_seconds)
        self._pace.update(self.steps, len(picture.steps))
        self.rates.update(picture, self.last_step, now)
        self.picture = picture

    @property
    def headline(self) -> str:
        """The current activity of the run; before a stream's first step the phases of its start with their seconds."""
        if self.last_step > self.picture.began_at:
            return self.rates.bottleneck()
        return self._loading.words(
            [source.name for source in self.spec.source_models if source.name not in self.picture.retired]
        )

    def is_loading(self, stage: str) -> bool:
        """Whether a stage has started, but has not done a passage yet."""
        return self._loading.is_loading(stage)

    def loading_time(self, stage: str) -> str:
        """Time from the start of a stage's first process to its first passages, or until now."""
        return self._loading.time_of(stage)

    @property
    def last_event(self) -> str:
        """The last event and how long ago it was; empty before the first."""
        return f"{self._event}, {whole_seconds(self.elapsed_seconds - self._event_seconds)} ago" if self._event else ""

    def _take_steps(self, picture: Progress) -> None:
        """Add the new steps, after those that are void are dropped."""
        if picture.void_after is not None:
            self.steps = [record for record in self.steps if record.step <= picture.void_after]
            self._add_up()
        self.steps += picture.steps
        self._add(picture.steps)

    def _add_up(self) -> None:
        """Count all steps from the first one on."""
        self.tokens, self.step, self.evaluated = 0, None, None
        self._domains = DomainSums(self.spec)
        self._add(self._earlier)
        self.step = None  # what it shows is of this start
        self._add(self.steps)

    def _add(self, records: Sequence[StepRecord]) -> None:
        self.tokens += sum(record.tokens for record in records)
        self._domains.add(records)
        self.step = records[-1] if records else self.step
        self.evaluated = next((record for record in reversed(records) if record.held_out), self.evaluated)

    def _note_events(self, picture: Progress) -> None:
        """Note the last of the events that are new in a picture."""
        replaced = {stage.name: stage.starts - stage.replicas for stage in self.picture.stages}
        events = [
            "training was restarted" if stage.name == TRAIN else f"{stage.name} lost a process, which was replaced"
            for stage in picture.stages
            if stage.starts - stage.replicas > max(0, replaced.get(stage.name, 0))
        ]
        if not self.steps and picture.steps:
            events.append(f"first step, {whole_seconds(self.elapsed_seconds)} after the start")
        events += [f"evaluated after step {record.step}" for record in picture.steps if record.held_out]
        new = [checkpoint for checkpoint in picture.checkpoints if checkpoint not in self.picture.checkpoints]
        events += [f"checkpoint of step {checkpoint.step}" for checkpoint in new]
        if events:
            self._event, self._event_seconds = events[-1], self.elapsed_seconds


class _Loading:
    """Which stages of a stream have started and loaded, and how long that took.

    Args:
        stages: totals when the stream began; the work of earlier streams counts in them.
        began: when that was, seconds since the start.
    """

    def __init__(self, stages: Sequence[StageTotals] = (), began: float = 0.0):
        self._before = {stage.name: stage.passages for stage in stages}
        self._began = self._now = began
        self._started: dict[str, float] = {}
        self._loaded: dict[str, float] = {}

    def update(self, stages: Sequence[StageTotals], now: float) -> None:
        """Take in the totals at a time."""
        self._now = now
        for stage in stages:
            if stage.replicas or stage.passages > self._before.get(stage.name, 0):
                self._started.setdefault(stage.name, now)
            if stage.passages > self._before.get(stage.name, 0):
                self._loaded.setdefault(stage.name, now)

    def words(self, names: Sequence[str]) -> str:
        """What of some stages has loaded, what loads, and what has not started."""
        loaded = [f"{name} {self.time_of(name)}" for name in names if name in self._loaded]
        loading = [f"{name} {self.time_of(name)}" for name in names if self.is_loading(name)]
        missing = [name for name in names if name not in self._started]
        waited = whole_seconds(self._now - self._began)
        phases = [f"loaded {', '.join(loaded)}"] if loaded else []
        phases += [f"loading {', '.join(loading)}"] if loading else []
        phases += [f"starting {', '.join(missing)} {waited}"] if missing else []
        return "; ".join(phases if loading or missing else [*phases, f"waiting for the first step {waited}"])

    def is_loading(self, stage: str) -> bool:
        """Whether a stage has started, but has not done a passage yet."""
        return stage in self._started and stage not in self._loaded

    def time_of(self, stage: str) -> str:
        """Time from a stage's start to its first passages, or until now."""
        return whole_seconds(self._loaded.get(stage, self._now) - self._started[stage])


def whole_seconds(seconds: float) -> str:
    """Whole seconds below a minute, then minutes or hours."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)
