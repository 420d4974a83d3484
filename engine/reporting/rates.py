"""The rates of a running stream over the last half minute, and the stage that the others wait for."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from engine.history.result import TRAIN, Progress, StageTotals
from engine.history.totals import ratio
from engine.reporting.figures import busy_share, replicas
from engine.reporting.starvation import Load, starvation
from engine.spec import FusionSpec

#: The window of the rates: several batches of a large source model, yet short enough to show a change.
WINDOW_SECONDS = 30.0

#: A stage below this busy share does not hold up the others.
BOTTLENECK_SHARE = 0.5


def in_stream_order(stages: Iterable[StageTotals], spec: FusionSpec) -> list[StageTotals]:
    """Sort stages as passages go through them: the corpus, the sources of the spec, the stages after them, training."""
    first = ["corpus", *(source.name for source in spec.source_models)]

    def position(stage: StageTotals) -> int:
        if stage.name == TRAIN:
            return len(first) + 1
        return first.index(stage.name) if stage.name in first else len(first)

    return sorted(stages, key=position)


@dataclass(frozen=True)
class StageRate:
    """The current rates of one stage.

    Attributes:
        name, passages: as in ``StageTotals``.
        tokens_per_second: in the window, over all replicas; NaN for a stage that counts no tokens, and before its
            second picture.
        busy_share: share of the window's time that the stage worked, in [0, 1].
        replicas: their number, and the number of replaced ones, as text.
    """

    name: str
    passages: int
    tokens_per_second: float
    busy_share: float
    replicas: str


@dataclass(frozen=True)
class _Look:
    """The totals of a picture and the time."""

    now: float
    stages: dict[str, StageTotals]


class FlowRates:
    """Rates over the last ``WINDOW_SECONDS`` of pictures, those of the present stream alone."""

    def __init__(self, spec: FusionSpec):
        self._spec = spec
        self._looks: deque[_Look] = deque()
        self._changes: dict[str, list[tuple[float, int]]] = {}
        self._stream = self._began_at = 0
        self._before: dict[str, StageTotals] = {}  # when the stream began

    def update(self, picture: Progress, step: int, now: float) -> None:
        """Take in a picture. Drop those that are too old, except the last one before the window.

        Args:
            step: number of the latest step.
        """
        if picture.stream != self._stream or picture.void_after is not None:
            self._begin_stream(picture)
        # The first step of a stream has waited for all models to load: training is looked at from then on.
        stages = [stage for stage in picture.stages if stage.name != TRAIN or step > picture.began_at]
        self._looks.append(_Look(now, {stage.name: stage for stage in stages}))
        while len(self._looks) > 2 and self._looks[1].now <= now - WINDOW_SECONDS:
            self._looks.popleft()
        self._note("", step, now)
        for stage in stages:
            self._note(stage.name, stage.tokens, now)

    def stages(self) -> list[StageRate]:
        """All stages that have reported, in the order of the stream."""
        stages = in_stream_order(self._looks[-1].stages.values() if self._looks else (), self._spec)
        done = [self._of_stream(stage).passages for stage in stages]
        arrived = [0, *done]
        return [self._rate(stage, before > own) for stage, before, own in zip(stages, arrived, done, strict=False)]

    @property
    def train_tokens_per_second(self) -> float:
        """Target tokens learned per second, NaN before the second picture."""
        return next((rate.tokens_per_second for rate in self.stages() if rate.name == TRAIN), math.nan)

    def bottleneck(self) -> str:
        """Say which stage the others wait for, and how long training waits for data."""
        rates = [rate for rate in self.stages() if not math.isnan(rate.busy_share)]
        if not rates:
            return "no stage has reported yet"
        slowest = max(rates, key=lambda rate: rate.busy_share)
        train = next((rate for rate in rates if rate.name == TRAIN), None)
        waits = f"training waits for data {100 * (1 - train.busy_share):.0f} % of the time" if train else ""
        if slowest.name == TRAIN and slowest.busy_share >= BOTTLENECK_SHARE:
            return f"training is busy {100 * slowest.busy_share:.0f} % of the time: the other stages wait for it"
        if slowest.busy_share < BOTTLENECK_SHARE:
            words = "no stage is busy for more than half of its time"
        else:
            words = f"{slowest.name} is {100 * slowest.busy_share:.0f} % busy: the others wait for it"
        return "; ".join(filter(None, (words, waits)))

    def loads(self) -> tuple[list[Load], float]:
        """The loads of all pools before training, and the share of its time that training works.

        The latter is NaN until the stream has taken two steps: the first one has waited for all models to load.
        """
        counts = {stage.name: stage.replicas for stage in (self._looks[-1].stages.values() if self._looks else ())}
        shares = {rate.name: rate.busy_share for rate in self.stages()}
        training = shares.pop(TRAIN, math.nan)
        changes = self._changes.get("", ())
        if len(changes) < 2 or changes[0][1] <= self._began_at:
            training = math.nan
        return [Load(name, counts[name], share) for name, share in shares.items()], training

    def starvation(self) -> str:
        """Say which pools to grow and by how much, while training waits for data; else empty."""
        return starvation(*self.loads())

    def _begin_stream(self, picture: Progress) -> None:
        """Forget what an earlier stream has done: its work for steps that are void counts in some totals only."""
        if self._stream:
            self._before = {stage.name: stage for stage in picture.stages}
        self._stream, self._began_at = picture.stream, picture.began_at
        self._looks.clear()
        self._changes.clear()

    def _of_stream(self, stage: StageTotals) -> StageTotals:
        """What of a stage's totals the present stream has done."""
        return _difference(stage, self._before.get(stage.name, StageTotals(stage.name)))

    def _rate(self, stage: StageTotals, has_input: bool) -> StageRate:
        first = next(look for look in self._looks if stage.name in look.stages)
        earlier, seconds = first.stages[stage.name], self._looks[-1].now - first.now
        return StageRate(
            name=stage.name,
            passages=stage.passages,
            tokens_per_second=self._tokens_per_second(stage, earlier, seconds),
            busy_share=self._recent_busy_share(stage, earlier, has_input),
            replicas=replicas(stage),
        )

    def _tokens_per_second(self, stage: StageTotals, earlier: StageTotals, seconds: float) -> float:
        if stage.tokens > earlier.tokens:
            return ratio(stage.tokens - earlier.tokens, seconds)
        return self._slow_rate(stage.name) if stage.tokens else math.nan

    def _note(self, name: str, count: int, now: float) -> None:
        """Keep the last two changes of a stage's tokens, or of the latest step's number, which has the name ``""``."""
        changes = self._changes.setdefault(name, [])
        if not changes or changes[-1][1] != count:
            changes.append((now, count))
            del changes[:-2]

    def _slow_rate(self, name: str) -> float:
        """Units per second of what changes less than once in a window, NaN before its second change.

        The rate falls while the next change is later than the last one was.
        """
        if len(self._changes.get(name, ())) < 2:
            return math.nan
        (before, start), (last, end) = self._changes[name]
        return (end - start) / max(last - before, self._looks[-1].now - last)

    def _recent_busy_share(self, stage: StageTotals, earlier: StageTotals, has_input: bool) -> float:
        """Busy share within the window.

        A stage without a report in the window is in the middle of a long batch if passages wait for it: its share is
        then that of the whole stream. Otherwise it is idle.
        """
        share = busy_share(_difference(stage, earlier))
        if not math.isnan(share):
            return share
        return busy_share(self._of_stream(stage)) if has_input or len(self._looks) == 1 else 0.0


def _difference(stage: StageTotals, earlier: StageTotals) -> StageTotals:
    """What a stage has done since earlier totals of it."""
    return replace(
        stage,
        passages=stage.passages - earlier.passages,
        tokens=stage.tokens - earlier.tokens,
        busy_seconds=stage.busy_seconds - earlier.busy_seconds,
        wait_seconds=stage.wait_seconds - earlier.wait_seconds,
    )
