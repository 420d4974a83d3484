"""Errors of a worker's constructor, raised by its first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.errors import FusionError


class Deferred:
    """A worker of a stage, made at once; an error of its constructor is raised by the first call.

    Ray carries an error of a call as an object. Of an error in an actor's constructor it keeps only a traceback's text,
    which it also prints on the driver's terminal.

    Args:
        make: the worker's class.
        arguments: of ``make``.
    """

    def __init__(self, make: Callable[..., Callable], **arguments: Any):
        self._error: Exception | None = None
        try:
            self._worker = make(**arguments)
        except (FusionError, OSError) as error:  # after an OSError Ray Train tries again: a store may come back
            self._error = error
        except Exception as error:  # such as a package that is missing: it would come again
            self._error = FusionError(f"{make.__name__} cannot start: {type(error).__name__}: {error}")

    def __call__(self, *arguments: Any) -> Any:
        """Call the worker.

        Raises:
            FusionError, OSError: the constructor has failed.
        """
        if self._error is not None:
            raise self._error
        return self._worker(*arguments)
