"""Which steps a page shows tokens of: evenly spread over a run whose length is not known in advance."""

from __future__ import annotations

#: Steps that a run of any length shows, at most twice as many at any time.
FEWEST_STEPS = 8


def is_sampled(step: int, newest: int) -> bool:
    """Whether a run that has come to step ``newest`` shows the passages of ``step``.

    The first step, and every n-th; n doubles as the run grows, so that a step is shown from when it is taken, or never.
    """
    distance = 1
    while newest // distance > 2 * FEWEST_STEPS:
        distance *= 2
    return step == 1 or step % distance == 0
