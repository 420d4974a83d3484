"""Watching a run from its driver: a picture of it again and again, for everybody who shows or records it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol

from engine.history.result import Progress

SECONDS_BETWEEN_PICTURES = 1.0

#: A cluster that no longer answers must not hold up the error that says so.
MOST_SECONDS_TO_END = 5.0


class Observer(Protocol):
    """Shows or records a run."""

    def see(self, picture: Progress, now: float) -> None:
        """A picture: all totals, and the steps since the one before. ``now`` is the monotonic time in seconds."""

    def close(self) -> None:
        """The run is over, and its last picture has been seen."""


class Watch:
    """A context that shows a run to observers until it is left, the end included. It never stops the run.

    An observer that fails is told about and left out; when no picture can be taken any more, watching ends.

    Args:
        snapshot: takes a picture: all totals, and the steps after the one it is given.
        observers: are called in one thread, one after the other.
        say: prints a line.
    """

    def __init__(self, snapshot: Callable[[int], Progress], observers: Sequence[Observer], say: Callable[[str], None]):
        self._snapshot = snapshot
        self._observers = list(observers)
        self._say = say
        self._last_step = 0
        self._left = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.set()
        self._watcher.join(timeout=MOST_SECONDS_TO_END)
        for observer in list(self._observers):
            self._try(observer, observer.close)

    def _watch(self) -> None:
        """Look and show, again and again, and once more when the context is left."""
        while True:
            is_last = self._left.is_set()
            try:
                picture = self._snapshot(self._last_step)
            except Exception as error:  # of Ray, while its cluster goes down: the run itself says what is wrong
                self._say(f"no progress to be had: {type(error).__name__}")
                return
            self._last_step = picture.steps[-1].step if picture.steps else self._last_step
            now = time.monotonic()
            for observer in list(self._observers):
                self._try(observer, partial(observer.see, picture, now))
            if is_last:
                return
            self._left.wait(SECONDS_BETWEEN_PICTURES)

    def _try(self, observer: Observer, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # a full disk, a server that is gone: nothing that a run should end for
            self._observers.remove(observer)
            self._say(f"{type(observer).__name__} goes on no longer: {type(error).__name__}: {error}")
