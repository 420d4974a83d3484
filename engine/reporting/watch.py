"""Watch a run from its driver: take a picture of it every second and hand it to the observers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol

from engine.history.result import Progress

SECONDS_BETWEEN_PICTURES = 1.0

#: Between two lines about an observer that fails.
SECONDS_BETWEEN_LINES = 600.0

#: The longest wait for the last picture: an unreachable cluster must not delay the error that reports it.
MOST_SECONDS_TO_END = 5.0


class Observer(Protocol):
    """Shows or records a run.

    Attributes:
        product: what a person knows of it, in words, for the sentence about its failure.
    """

    product: str

    def see(self, picture: Progress, now: float) -> None:
        """Take in a picture: all totals, and the steps since the last one. ``now``: monotonic time in seconds."""

    def close(self) -> None:
        """End: the run is over and the last picture was handed over."""


class Watch:
    """A context that shows a run to observers, its end included. It never stops the run.

    An observer that raises is reported and sees the next picture all the same: a store or a server that is away for a
    minute comes back. So does a cluster that gives no picture.

    Args:
        snapshot: takes a picture: all totals, and the steps after the given one.
        observers: called in one thread, one after the other.
        say: prints a line.
    """

    def __init__(self, snapshot: Callable[[int], Progress], observers: Sequence[Observer], say: Callable[[str], None]):
        self._snapshot = snapshot
        self._observers = observers
        self._next_lines: dict[int, float] = {}
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
        for place, observer in enumerate(self._observers):
            self._try(place, observer.close)

    def _watch(self) -> None:
        """Take and show pictures until the context is left, and one more then."""
        while True:
            is_last = self._left.is_set()
            try:
                picture = self._snapshot(self._last_step)
            except Exception as error:  # Ray's, while its cluster goes down: the run itself reports the cause
                self._report(-1, f"the progress of the run cannot be seen: {type(error).__name__}")
                if is_last:
                    return
                self._left.wait(SECONDS_BETWEEN_PICTURES)
                continue
            self._last_step = picture.steps[-1].step if picture.steps else self._last_step
            now = time.monotonic()
            for place, observer in enumerate(self._observers):
                self._try(place, partial(observer.see, picture, now))
            if is_last:
                return
            self._left.wait(SECONDS_BETWEEN_PICTURES)

    def _try(self, place: int, call: Callable[[], None]) -> None:
        """Call an observer; ``place``: among all."""
        try:
            call()
        except Exception as error:  # a full disk or an unreachable server must not end a run
            product = self._observers[place].product
            self._report(place, f"{product} could not be updated: {type(error).__name__}: {error}")

    def _report(self, place: int, failure: str) -> None:
        """Say what has failed, not too often; ``place``: of the observer, -1 for the picture."""
        now = time.monotonic()
        if now >= self._next_lines.get(place, now):
            self._next_lines[place] = now + SECONDS_BETWEEN_LINES
            self._say(f"{failure}; it is tried again")
