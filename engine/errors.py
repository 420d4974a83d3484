"""The errors that a person meets: each says what is wrong, where, the value seen, the values allowed and what to do.

They cross process borders (Ray pickles them), so every one can be rebuilt from its arguments alone.
"""

from __future__ import annotations

import re
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


class FusionError(Exception):
    """Base of every error that the engine raises on purpose."""


class _FaultsError(FusionError):
    """An error that lists all faults at once, so that a person mends them in one go."""

    headline = "something is wrong"

    def __init__(self, faults: Iterable[Fault]):
        self.faults = tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        count = len(self.faults)
        lines = [f"{self.headline} ({count} fault{'s' if count != 1 else ''}):"]
        return "\n".join(lines + [f"  - {fault}" for fault in self.faults])


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


class TrainingError(FusionError):
    """The target model's training cannot go on, for example because of a non-finite loss."""


def printable(text: str) -> str:
    """Text that any file or terminal can hold: half of a surrogate pair becomes its escape, such as ``\\ud83d``."""
    return text.encode("utf8", "backslashreplace").decode("utf8")


def first_line(error: BaseException, most_characters: int = 240) -> str:
    """The first line of an error's message, with the next where it only introduces that; its type without a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return text if len(text) <= most_characters else text[: most_characters - 3] + "..."


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything inside it, outermost first, each once. Ray has ways of its own to carry errors."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inside = [getattr(current, "cause", None), current.__cause__, current.__context__]
        inside.append(getattr(current, "controller_failure", None))  # Ray Train's controller
        inside += list((getattr(current, "worker_failures", None) or {}).values())  # Ray Train: one for each rank
        inside.append(_raised_while_made(current))
        waiting += [item for item in inside if isinstance(item, BaseException)]


#: Where a traceback says which of our errors ended it; the message follows.
_OURS = re.compile(r"^engine\.errors\.(\w+): ", re.MULTILINE)


def _raised_while_made(error: BaseException) -> FusionError | None:
    """What one of our classes has raised in an actor's constructor: Ray hands over the text of the traceback alone."""
    text = str(error) if getattr(error, "actor_init_failed", False) else ""
    *_, last = (None, *_OURS.finditer(text))
    kind = globals().get(last[1]) if last else None
    if not (isinstance(kind, type) and issubclass(kind, FusionError)) or issubclass(kind, _FaultsError):
        return None
    return kind(text[last.end() :].strip())
