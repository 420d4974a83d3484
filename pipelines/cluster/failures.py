"""From Ray's nested errors to the one sentence that a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import FusionError, causes

#: Ray Data appends to the message of a stage's error how to have it tried again, which would not help here.
_RAY_DATA_ADVICE = "\nFailed to apply UDF transform"


@contextmanager
def readable_errors() -> Iterator[None]:
    """Let a ``FusionError`` from any process of the run arrive as itself; name the root of any other failure.

    Raises:
        FusionError: whatever failed, with Ray's own error as its cause.
    """
    try:
        yield
    except FusionError as error:
        raise _innermost(error) from None
    except Exception as error:
        found = next((cause for cause in causes(error) if isinstance(cause, FusionError)), None)
        if found is not None:
            raise _innermost(found) from error
        *_, root = causes(error)
        raise FusionError(f"the run failed: {type(root).__name__}: {str(root).strip() or 'no message'}") from error


def _innermost(error: FusionError) -> FusionError:
    """The error as it was raised: Ray hands over a class of its own that carries it as ``cause``."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FusionError):
        return _innermost(cause)
    first = error.args[0] if error.args else None
    return type(error)(first.split(_RAY_DATA_ADVICE)[0]) if isinstance(first, str) else error
