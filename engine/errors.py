"""Errors with a message for a person: what is wrong, where, the value seen, the values allowed and what to do.

They cross processes: Ray pickles them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with what the user gave.

    Attributes:
        where: the dotted path in the spec (``fusion.rule``), or a file and row.
        what: the value seen and why it cannot be used.
        remedy: the values allowed, or what to do; may be empty when ``what`` says it all.
    """

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


#: Faults that a message lists; a glob of the wrong folder has thousands.
MOST_SHOWN = 50


class FusionError(Exception):
    """Base of every error that the engine raises on purpose.

    Ray Data appends advice of its own to ``args`` of an error that passes through it; ``message`` stays as it was.
    """

    def __init__(self, message: str = ""):
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple:
        return type(self), (self.message,)


class _FaultsError(FusionError):
    """An error that lists all faults at once, so that a person can correct them together."""

    headline = "something is wrong"

    def __init__(self, faults: Iterable[Fault]):
        self.faults = tuple(faults)
        plural = "" if len(self.faults) == 1 else "s"
        headline = f"{self.headline} ({len(self.faults)} fault{plural}):"
        more = len(self.faults) - MOST_SHOWN
        lines = [f"  - {fault}" for fault in self.faults[:MOST_SHOWN]] + ([f"  - and {more} more"] if more > 0 else [])
        super().__init__("\n".join([headline, *lines]))

    def __reduce__(self) -> tuple:
        return type(self), (self.faults,)


class SpecError(_FaultsError, ValueError):
    """The spec or the command line is wrong; nothing was started."""

    headline = "the spec cannot be used"


class PreflightError(_FaultsError):
    """The spec is well-formed, but files, models or the cluster do not allow this run; nothing was started."""

    headline = "the run cannot start"


class RecordError(FusionError):
    """A record between two stages, or a row of the corpus, is not what the next stage needs."""


class TokenizerError(FusionError):
    """A tokenizer cannot be used because its tokens do not add up to the bytes of the text."""


class SourceModelError(FusionError):
    """A source model cannot be loaded, or what it returned cannot be a probability distribution."""


class UnsoundRowsError(SourceModelError):
    """A model returned rows that are no log-probabilities of its tokens: its weights are broken, or its backend is."""


class TrainingError(FusionError):
    """The target model's training cannot go on, for example because of a non-finite loss."""


class StoreError(OSError):
    """A store, or a disk, did not give a file although it was asked again and again.

    It is not a ``FusionError``, which would end a run: the store may come back, so Ray Train starts the stream again at
    the last checkpoint.
    """


class NoStoreError(StoreError):
    """A URL whose store is not known here, or whose package is not installed: to ask again would not help."""


def printable(text: str) -> str:
    """Text that any file or terminal can hold: half of a surrogate pair becomes its escape, such as ``\\ud83d``."""
    return text.encode("utf8", "backslashreplace").decode("utf8")


def first_line(error: BaseException, most_characters: int = 240) -> str:
    """The first line of an error's message, with the next where it only introduces that; its type without a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return text if len(text) <= most_characters else text[: most_characters - 3] + "..."


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all errors inside it, outermost first, each once; Ray's errors carry others in attributes."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inside = [getattr(current, "cause", None), current.__cause__, current.__context__]
        # Ray Train: of its controller, and of a worker that has died.
        inside += [getattr(current, "controller_failure", None), getattr(current, "health_check_failure", None)]
        inside += list((getattr(current, "worker_failures", None) or {}).values())  # Ray Train: one for each rank
        waiting += [item for item in inside if isinstance(item, BaseException)]
