"""The report while a run works: written from the first step on, at the end, and when the run fails."""

from __future__ import annotations

import math
import os
import threading
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
from engine.reporting.page import Status, earlier_data, render_report, with_status, write_page
from engine.reporting.run_state import RunState
from engine.reporting.token_view import token_data
from engine.spec import FusionSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.run.result import REPORT_FILE, result_of

#: Between two writings; longer where one takes more CPU time than this share of it.
SECONDS_BETWEEN, MOST_CPU_SHARE = 30.0, 0.01

#: The longest wait for another writing to end before the page of a failure is given up.
MOST_SECONDS_TO_END = 10.0

#: Of an error's message a page shows so many characters.
MOST_LETTERS = 600


class LivePage:
    """A context that keeps a run's page up to date, and an observer of the run (``engine.reporting.watch``).

    The page goes on from "running" to "evaluating" and to how the run has ended, never back. Leaving the context by an
    error writes how the run failed. Only ``finish`` may raise because of the page.

    Args:
        spec: of the run.
        clock: seconds since 1970.

    Attributes:
        earlier: steps of earlier starts of the run, once the context was entered.
    """

    product = "the page report.html"

    def __init__(self, spec: FusionSpec, clock: Callable[[], float] = time.time):
        self._spec = spec
        self._clock = clock
        self._url = os.path.join(spec.run.output_dir, REPORT_FILE)
        self._began = time.monotonic()
        self._state = RunState(spec)
        self.earlier: list[StepRecord] = []
        self._stream = 0
        self._series: StepSeries | None = None
        self._looks: dict[tuple[int, str], dict[str, Any]] = {}
        self._token_bytes: Sequence[bytes | None] = ()
        self._seconds_between = SECONDS_BETWEEN
        self._next_writing = -math.inf
        self._writing = threading.Lock()  # of all that follows, which several threads call
        self._has_ended = threading.Event()

    def __enter__(self) -> LivePage:
        self.earlier = recorded_steps(self._spec.run.output_dir)
        self._state = RunState(self._spec, self.earlier)
        if self.earlier:
            with suppress(OSError, ValueError):  # a page that cannot be read stops no run
                passages = earlier_data(self._url).get("passages", [])
                last = self.earlier[-1].step  # later steps are taken again
                self._looks = {(look["step"], look["passage"]): look for look in passages if look["step"] <= last}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._has_ended.set()
        # A writing that hangs must not hold up the error.
        if error is not None and self._writing.acquire(timeout=MOST_SECONDS_TO_END):
            with suppress(Exception):  # the run's own error is the one to report
                write_page(with_status(self._render(), Status(self._words_of(error), self._clock())), self._url)
            self._writing.release()

    def see(self, picture: Progress, now: float) -> None:
        """Take in a picture, and write the page if steps were taken and it is due."""
        with self._writing:
            self._take(picture, now)
            has_begun = self._state.steps or math.isfinite(self._next_writing)  # a restart may void all steps
            if has_begun and now >= self._next_writing and not self._has_ended.is_set():
                self._next_writing = now + self._seconds_between
                if self._looks and not self._token_bytes:
                    self._token_bytes = self._read_tokens()
                page = self._render_in_time()
                self._next_writing = now + self._seconds_between
                self._stamp(page, self._words_of_progress())

    def close(self) -> None:
        """Write that training has ended, and go on writing it, if an evaluation follows."""
        evaluation = self._spec.evaluation
        with self._writing:
            if not self._state.steps or not (evaluation.corpora or evaluation.tasks or evaluation.merges):
                return
            if not self._has_ended.is_set():
                page, began = self._render_in_time(), time.monotonic()
                self._stamp(page, self._words_of_evaluation())
                follow = (page, began)
                threading.Thread(target=self._follow_evaluation, args=follow, name="page", daemon=True).start()

    def finish(self, result: RunResult) -> None:
        """Write the page of the whole run.

        Raises:
            StoreError: it cannot be written.
        """
        self._has_ended.set()
        words = f"done: {result.steps:,} steps in {duration(result.wall_seconds)}"
        with self._writing:
            write_page(render_report(self._spec, result, Status(words, self._clock()), self._tokens()), self._url)

    @property
    def _last_step(self) -> int:
        """Number of the run's latest step, 0 before the first."""
        return self._state.last_step or len(self.earlier)

    def _take(self, picture: Progress, now: float) -> None:
        """Take in a picture; what a restart has made void is dropped."""
        self._state.update(picture, now)
        if picture.void_after is not None:
            self._series = None
        if picture.stream != self._stream:
            self._stream = picture.stream
            self._looks = {key: look for key, look in self._looks.items() if look["step"] <= picture.began_at}
        self._looks |= {(look["step"], look["passage"]): look for look in picture.looks}

    def _follow_evaluation(self, page: str, began: float) -> None:
        """Say every half minute for how long the run has been evaluated: a page that falls silent is that of a killed
        run."""
        while not self._has_ended.wait(self._seconds_between):
            with self._writing, suppress(Exception):  # a store that is away comes back
                if not self._has_ended.is_set():
                    self._stamp(page, f"{self._words_of_evaluation()} for {duration(time.monotonic() - began)}")

    def _render_in_time(self) -> str:
        """The page of the steps so far. Sets the time to the next one by what this one has cost."""
        started = time.thread_time()
        page = self._render()
        self._seconds_between = max(SECONDS_BETWEEN, (time.thread_time() - started) / MOST_CPU_SHARE)
        return page

    def _stamp(self, page: str, words: str) -> None:
        """Write a page with what the run does and when the next page follows."""
        write_page(with_status(page, Status(words, self._clock(), self._seconds_between)), self._url)

    def _render(self) -> str:
        """The page of the steps so far, without a status."""
        steps = self._state.steps
        first = steps[0].step if steps else math.inf
        history = [*(record for record in self.earlier if record.step < first), *steps]
        seconds = seconds_of_earlier_starts(history, Progress(steps=tuple(steps))) + time.monotonic() - self._began
        series = self._series_of(history)
        result = result_of(self._spec, history, self._state.picture, seconds, stopped_by=None, series=series)
        return render_report(self._spec, result, Status("", 0.0), self._tokens(), series)

    def _series_of(self, history: Sequence[StepRecord]) -> StepSeries:
        """The numbers of the steps so far, to which each writing adds only the new ones."""
        self._series = self._series or StepSeries(self._spec)
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
        words = [f"running, step {self._last_step:,} of {self._spec.training.max_steps:,}"]
        if not math.isnan(state.seconds_left):
            words.append(f"at most {duration(state.seconds_left)} left")
        return ", ".join(words)

    def _words_of_evaluation(self) -> str:
        return f"trained for {self._last_step:,} steps, evaluating"

    def _words_of(self, error: BaseException) -> str:
        """How the run ended without coming to its end."""
        where = f"after step {self._last_step:,}" if self._last_step else "before its first step"
        if isinstance(error, KeyboardInterrupt):
            return f"stopped {where}; the same command goes on from the last checkpoint"
        return f"failed {where}: {str(error)[:MOST_LETTERS] or type(error).__name__}"
