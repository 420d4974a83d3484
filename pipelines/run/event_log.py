"""The events of a run for other tools, in ``logs/events.jsonl`` of its output folder."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any

from actors.training.checkpoint_index import checkpoints_folder, latest
from engine.history.result import LeftOut, Progress, RunResult, SkippedRow
from engine.reporting.event_file import EventFile
from engine.spec import FusionSpec

EVENTS_FILE = os.path.join("logs", "events.jsonl")

#: Between two writings to an object store. A disk gets every event at once.
SECONDS_BETWEEN_WRITINGS = 30.0

#: Between two events that count rows: there may be a hundred thousand of them.
SECONDS_BETWEEN_COUNTS = 60.0

#: The longest wait for another writing to end before the event of the run's end is given up.
MOST_SECONDS_TO_END = 10.0

#: Of a reason or an error's message an event keeps so many characters.
MOST_LETTERS = 600


class EventLog:
    """A context that notes how a run starts and stops, and an observer (``engine.reporting.watch``) of all between.

    A file that cannot be written ends no run.

    Args:
        spec: of the run.
        clock: seconds since 1970.
    """

    product = "the events (logs/events.jsonl)"

    def __init__(self, spec: FusionSpec, clock: Callable[[], float] = time.time):
        self._spec = spec
        self._clock = clock
        self._file: EventFile | None = None
        self._began = clock()
        self._step = 0
        self._next_writing = -math.inf
        self._working: set[str] = set()
        self._replaced: dict[str, int] = {}
        self._committed = 0.0
        self._picture = Progress()
        self._counts = (0, 0)
        self._next_count = -math.inf
        self._writing = threading.Lock()  # the watch may still be in a call when the run stops
        self._has_stopped = False

    def __enter__(self) -> EventLog:
        with suppress(Exception):  # every store has errors of its own, and the run's first checkpoint meets them too
            output_dir = self._spec.run.output_dir
            self._file = EventFile(os.path.join(output_dir, EVENTS_FILE))
            checkpoint = latest(checkpoints_folder(output_dir))
            self._step = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
            sources = [source.name for source in self._spec.source_models]
            target = self._spec.target_model.checkpoint
            self._add("started", target=target, sources=sources, max_steps=self._spec.training.max_steps)
            self._file.write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self._stop({"reason": reason, "error": str(error)[:MOST_LETTERS] or type(error).__name__})

    def see(self, picture: Progress, now: float) -> None:
        """Note what is new in a picture.

        Raises:
            OSError: the events cannot be written.
        """
        with self._writing:
            if not self._has_stopped:
                self._see(picture, now)

    def close(self) -> None:
        """Write what the pictures have shown; the evaluation follows, unless the run has failed."""
        with self._writing:
            if not self._has_stopped:
                self._note_counts()
                self._write()

    def finish(self, result: RunResult) -> None:
        """Note the evaluation and the end of a run."""
        totals = {"seconds": round(result.wall_seconds, 1), "tokens": result.tokens, "passages": result.passages}
        stopped = {"reason": result.stopped_by, **totals, "export": result.export_dir}
        self._stop(stopped, step=result.steps, bits_per_byte=result.bits_per_byte)

    def _stop(self, stopped: Mapping[str, Any], step: int = 0, bits_per_byte: Mapping[str, Any] | None = None) -> None:
        """Note how the run has ended. An observer's call that hangs must not hold that up, and notes nothing later."""
        self._has_stopped = True
        if self._writing.acquire(timeout=MOST_SECONDS_TO_END):
            self._step = step or self._step
            if bits_per_byte:
                self._add("evaluated", bits_per_byte=bits_per_byte)
            self._add("stopped", **stopped)
            self._write()
            self._writing.release()

    def _see(self, picture: Progress, now: float) -> None:
        if picture.void_after is not None:
            self._step = picture.void_after
        for checkpoint in picture.checkpoints:
            if checkpoint.time > self._committed:
                self._committed = checkpoint.time
                self._add_at("checkpoint", checkpoint.time, checkpoint.step, {})
        self._note_stages(picture)
        for record in picture.steps:
            self._step = record.step
            if record.retired:
                self._add("retired", sources=record.retired)
            if record.held_out:
                self._add("evaluated", held_out_bits_per_byte=record.held_out, seconds=record.held_out_seconds)
        self._picture = picture
        if now >= self._next_count:
            self._next_count = now + SECONDS_BETWEEN_COUNTS * self._note_counts()
        if self._file is not None and not self._file.is_written and now >= self._next_writing:
            self._next_writing = now if self._file.is_on_disk else now + SECONDS_BETWEEN_WRITINGS
            self._file.write()

    def _note_stages(self, picture: Progress) -> None:
        for stage in picture.stages:
            if stage.passages and stage.name not in self._working:
                self._working.add(stage.name)
                self._add("working", stage=stage.name, seconds=round(self._clock() - self._began, 1))
            replaced = max(0, stage.starts - stage.replicas)
            if replaced > self._replaced.get(stage.name, 0):
                self._replaced[stage.name] = replaced
                self._add("replaced", stage=stage.name, count=replaced)

    def _note_counts(self) -> bool:
        """Note the rows that were skipped and the passages that were left out; whether there are new ones."""
        picture, before = self._picture, self._counts
        self._counts = (picture.num_skipped, picture.num_left_out)
        if self._counts[0] > before[0]:
            self._add("skipped", count=picture.num_skipped, first=_bounded(picture.skipped[0]))
        if self._counts[1] > before[1]:
            self._add("left_out", count=picture.num_left_out, first=_bounded(picture.left_out[0]))
        return self._counts != before

    def _add(self, event: str, **fields: Any) -> None:
        """Add an event of this moment, after the last step."""
        self._add_at(event, self._clock(), self._step, fields)

    def _add_at(self, event: str, at: float, step: int, fields: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.add(event, at, self._spec.run.name, step, fields)

    def _write(self) -> None:
        with suppress(Exception):  # the run's own error is the one to report
            if self._file is not None and not self._file.is_written:
                self._file.write()


def _bounded(row: SkippedRow | LeftOut) -> dict[str, Any]:
    """The fields of a row, the reason cut short."""
    return asdict(row) | {"reason": row.reason[:MOST_LETTERS]}
