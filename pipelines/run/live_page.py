"""The report while a run works: written from the first step on, at the end, and when the run fails."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from actors.training.checkpoint_index import recorded_steps
from engine.history.result import Progress, RunResult, StepRecord
from engine.history.sampling import is_sampled
from engine.history.series import StepSeries
from engine.history.totals import seconds_of_earlier_starts
from engine.model_files.checkpoint import Checkpoint
from engine.reporting.figures import duration
from engine.reporting.page import Status, earlier_data, render_report, write_page
from engine.reporting.terminal import RunState
from engine.reporting.token_view import token_data
from engine.spec import FusionSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.run.result import REPORT_FILE, result_of

#: Between two writings; longer where one takes more CPU time than this share of it.
SECONDS_BETWEEN, MOST_CPU_SHARE = 30.0, 0.01

#: Of an error's message a page shows so many characters.
MOST_LETTERS = 600


class LivePage:
    """A context that keeps a run's page up to date, and an observer of the run (``engine.reporting.watch``).

    Leaving the context by an error writes how the run failed. Only ``finish`` may raise because of the page.

    Args:
        spec: of the run.
        clock: seconds since 1970.
    """

    product = "the page report.html"

    def __init__(self, spec: FusionSpec, clock: Callable[[], float] = time.time):
        self._spec = spec
        self._clock = clock
        self._url = os.path.join(spec.run.output_dir, REPORT_FILE)
        self._began = time.monotonic()
        self._state = RunState(spec)
        self._earlier: list[StepRecord] = []
        self._series: StepSeries | None = None
        self._steps: list[StepRecord] = []
        self._looks: dict[tuple[int, str], dict[str, Any]] = {}
        self._token_bytes: Sequence[bytes | None] = ()
        self._seconds_between = SECONDS_BETWEEN
        self._next_writing = -math.inf

    def __enter__(self) -> LivePage:
        self._earlier = recorded_steps(self._spec.run.output_dir)
        if self._earlier:
            with suppress(OSError, ValueError):  # a page that cannot be read stops no run
                earlier = earlier_data(self._url).get("passages", [])
                last = self._earlier[-1].step  # later steps are taken again
                self._looks = {(look["step"], look["passage"]): look for look in earlier if look["step"] <= last}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            with suppress(Exception):  # the run's own error is the one to report
                self._write(self._words_of(error))

    def see(self, picture: Progress, now: float) -> None:
        """Take in a picture, and write the page if steps were taken and it is due."""
        self._state.update(picture, now)
        self._steps += picture.steps
        self._looks |= {(look["step"], look["passage"]): look for look in picture.looks}
        if self._steps and now >= self._next_writing:
            if self._looks and not self._token_bytes:
                self._token_bytes = self._read_tokens()
            self._next_writing = now + self._seconds_between
            started = time.thread_time()
            self._write(self._words_of_progress(), self._seconds_between)
            self._seconds_between = max(SECONDS_BETWEEN, (time.thread_time() - started) / MOST_CPU_SHARE)
            self._next_writing = now + self._seconds_between

    def close(self) -> None:
        """Write that training has ended, if an evaluation follows; a run that has failed writes how."""
        evaluation = self._spec.evaluation
        if self._steps and (evaluation.corpora or evaluation.tasks or evaluation.merges):
            self._write(f"trained for {self._state.last_step:,} steps, evaluating", self._seconds_between)

    def finish(self, result: RunResult) -> None:
        """Write the page of the whole run.

        Raises:
            StoreError: it cannot be written.
        """
        words = f"done: {result.steps:,} steps in {duration(result.wall_seconds)}"
        write_page(render_report(self._spec, result, Status(words, self._clock()), self._tokens()), self._url)

    def _write(self, words: str, seconds_between: float = 0.0) -> None:
        """Write the page of the steps so far."""
        first = self._steps[0].step if self._steps else math.inf
        history = [*(record for record in self._earlier if record.step < first), *self._steps]
        seconds = seconds_of_earlier_starts(history, Progress(steps=tuple(self._steps)))
        picture = self._state.picture
        seconds += time.monotonic() - self._began
        series = self._series_of(history)
        result = result_of(self._spec, history, picture, seconds, stopped_by=None, series=series)
        status = Status(words, self._clock(), seconds_between)
        write_page(render_report(self._spec, result, status, self._tokens(), series), self._url)

    def _series_of(self, history: Sequence[StepRecord]) -> StepSeries:
        """The numbers of the steps so far, to which each writing adds only the new ones."""
        if self._series is None or not self._steps:  # the first step decides which of the earlier ones count
            self._series = StepSeries(self._spec)
        return self._series.add(history[len(self._series) :])

    def _tokens(self) -> dict[str, Any]:
        """The data of the token view, from this start's steps and those of earlier ones."""
        newest = max((look["sample"] for look in self._looks.values()), default=0)
        self._looks = {key: look for key, look in self._looks.items() if is_sampled(look["sample"], newest)}
        if not self._looks:
            return {}
        self._token_bytes = self._token_bytes or self._read_tokens()
        return token_data(self._spec, [self._looks[key] for key in sorted(self._looks)], self._token_bytes)

    def _read_tokens(self) -> Sequence[bytes | None]:
        """The target's tokens. A large vocabulary takes ten seconds once, unless this process has read it before."""
        return PassageTokenizer.load(Checkpoint.of(self._spec.target_model)).token_bytes

    def _words_of_progress(self) -> str:
        """The step and the time left."""
        state = self._state
        words = [f"running, step {state.last_step:,} of {self._spec.training.max_steps:,}"]
        if not math.isnan(state.seconds_left):
            words.append(f"at most {duration(state.seconds_left)} left")
        return ", ".join(words)

    def _words_of(self, error: BaseException) -> str:
        """How the run ended without coming to its end."""
        step = self._state.last_step or len(self._earlier)
        where = f"after step {step:,}" if step else "before its first step"
        if isinstance(error, KeyboardInterrupt):
            return f"stopped {where}; the same command goes on from the last checkpoint"
        return f"failed {where}: {str(error)[:MOST_LETTERS] or type(error).__name__}"
