"""Watch a run from its driver: take a picture of it every second and hand it to the observers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
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
        """End: the run is over and the last picture was handed over. Called once, and no ``see`` follows."""


class Watch:
    """A context that shows a run to observers, its end included. It never stops the run.

    An observer that raises is reported and sees the next picture all the same: a store or a server that is away for a
    minute comes back. So does a cluster that gives no picture. An observer that still works on a picture some seconds
    after the end is not waited for: it is closed as soon as it is done.

    Args:
        snapshot: takes a picture: all totals, and the steps since the picture with the given mark.
        observers: called one after the other, each by one thread at a time.
        say: prints a line.
    """

    def __init__(self, snapshot: Callable[[int], Progress], observers: Sequence[Observer], say: Callable[[str], None]):
        self._snapshot = snapshot
        self._complaints = _Complaints(say)
        self._seats = [_Seat(observer, self._complaints) for observer in observers]
        self._mark = 0
        self._left = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.set()
        try:
            self._watcher.join(timeout=MOST_SECONDS_TO_END)
        finally:  # also when the wait is interrupted: the display must give the cursor back
            for seat in self._seats:
                seat.close()
            self._complaints.end()

    def _watch(self) -> None:
        """Take and show pictures until the context is left, and one more then."""
        while True:
            is_last = self._left.is_set()
            self._show()
            if is_last or all(seat.is_closed for seat in self._seats):
                return
            self._left.wait(SECONDS_BETWEEN_PICTURES)

    def _show(self) -> None:
        """Take one picture and show it to all."""
        try:
            picture = self._snapshot(self._mark)
        except Exception as error:  # Ray's, while its cluster goes down: the run itself reports the cause
            self._complaints.add("picture", f"the progress of the run cannot be seen: {type(error).__name__}")
            return
        self._mark = picture.mark
        now = time.monotonic()
        for seat in self._seats:
            seat.see(picture, now)


class _Seat:
    """The place of one observer: it is called by one thread at a time, and never again after it was closed."""

    def __init__(self, observer: Observer, complaints: _Complaints):
        self._observer = observer
        self._complaints = complaints
        self._in_use = threading.Lock()
        self._is_leaving = False
        self.is_closed = False

    def see(self, picture: Progress, now: float) -> None:
        """Show a picture, unless the observer was closed; close it afterwards if that was asked for meanwhile."""
        with self._in_use:
            if not self._is_leaving:
                self._try(lambda: self._observer.see(picture, now))
        self._close_if_leaving()

    def close(self) -> None:
        """Close the observer, or have the thread that is calling it close it afterwards."""
        self._is_leaving = True
        self._close_if_leaving()

    def _close_if_leaving(self) -> None:
        # Who sets the flag and who gives the lock back both come here afterwards, so that one of them closes.
        if self._is_leaving and self._in_use.acquire(blocking=False):
            try:
                if not self.is_closed:
                    self.is_closed = True
                    self._try(self._observer.close)
            finally:
                self._in_use.release()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # a full disk or an unreachable server must not end a run
            product = self._observer.product
            self._complaints.add(product, f"{product} could not be updated: {type(error).__name__}: {error}")


class _Complaints:
    """Says what has failed, the same not too often, and nothing once the run has ended."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._next_lines: dict[str, float] = {}
        self._has_ended = False

    def add(self, who: str, failure: str) -> None:
        """Say a failure of the picture or of an observer's product, if nothing was said of it for some minutes."""
        now = time.monotonic()
        if now >= self._next_lines.get(who, now) and not self._has_ended:
            self._next_lines[who] = now + SECONDS_BETWEEN_LINES
            self._say(f"{failure}; it is tried again")

    def end(self) -> None:
        """Say no more."""
        self._has_ended = True
