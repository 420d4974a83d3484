"""Refusals of a stage's worker, raised by its first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.errors import FusionError


class Deferred:
    """A worker of a stage whose constructor may refuse; its refusal is raised by the first call instead.

    Ray carries an error of a call as an object. Of an error in an actor's constructor it keeps only a traceback's text,
    which it also prints on the driver's terminal.

    Args:
        make: the worker's class.
        arguments: of ``make``.
    """

    def __init__(self, make: Callable[..., Callable], **arguments: Any):
        self._refusal: FusionError | None = None
        try:
            self._worker = make(**arguments)
        except FusionError as error:
            self._refusal = error

    def __call__(self, *arguments: Any) -> Any:
        """Call the worker.

        Raises:
            FusionError: the worker's constructor has refused.
        """
        if self._refusal is not None:
            raise self._refusal
        return self._worker(*arguments)
