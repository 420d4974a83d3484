"""From Ray's nested errors to one sentence that a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from engine.errors import FusionError, causes


@contextmanager
def readable_errors() -> Iterator[None]:
    """Raise a ``FusionError`` of any process of the run as itself, and any other failure by the name of its root.

    Raises:
        FusionError: of every failure, with Ray's own error as its cause.
    """
    try:
        yield
    except Exception as error:
        refusal = refusal_inside(error)
        if refusal is error:
            raise
        if refusal is not None:
            raise refusal from error
        *_, root = causes(error)
        raise FusionError(f"the run failed: {type(root).__name__}: {str(root).strip() or 'no message'}") from error


def refusal_inside(error: BaseException) -> FusionError | None:
    """The first ``FusionError`` inside an error, as it was raised; None if there is none.

    Ray raises a task's error as a class that is both a ``RayError`` and the error's own; the original is inside.
    """
    found = (cause for cause in causes(error) if isinstance(cause, FusionError) and not isinstance(cause, RayError))
    return next(found, None)
