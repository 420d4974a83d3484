"""An alarm for a run that hangs: it says so, and what each stage was doing."""

from __future__ import annotations

from collections.abc import Callable

from engine.history.result import Progress, StageTotals


class StallAlarm:
    """An observer that speaks when no stage has done anything for some minutes, and again after each such time.

    Args:
        minutes: without a passage, a step or the start of a process.
        say: prints a line.
    """

    product = "the stall alarm"

    def __init__(self, minutes: float, say: Callable[[str], None]):
        self._seconds = 60 * minutes
        self._say = say
        self._seen: dict[str, StageTotals] = {}
        self._changed: dict[str, float] = {}
        self._last_said = 0.0

    def see(self, picture: Progress, now: float) -> None:
        """Compare the stages with those of the picture before."""
        stages = picture.stages or (StageTotals("the first process"),)
        for stage in stages:
            if self._seen.get(stage.name) != stage:
                self._seen[stage.name], self._changed[stage.name] = stage, now
        quiet_since = max([self._last_said, *self._changed.values()])
        if now - quiet_since >= self._seconds:
            self._last_said = now
            self._say(
                f"no stage has made progress for {(now - max(self._changed.values())) / 60:.0f} minutes: "
                + "; ".join(_state(stage, now - self._changed[stage.name]) for stage in stages)
                + ". See Ray's dashboard or `ray status` for what waits for a place"
            )

    def close(self) -> None:
        """Nothing to do."""


def _state(stage: StageTotals, seconds: float) -> str:
    if not stage.replicas:
        return f"{stage.name} has not started"
    if not stage.passages:
        return f"{stage.name} is loading ({stage.replicas} started, {seconds / 60:.0f} minutes ago)"
    return f"{stage.name} has done {stage.passages:,} passages, the last {seconds / 60:.0f} minutes ago"
