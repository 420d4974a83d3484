"""What to grow when training waits for data: which pool of the stream, and by how many replicas.

All stages see the same passages, so that a pool's work grows with the speed of training. A pool of r replicas that are
busy for the share b of their time, while training is busy for the share t of its own, needs r·b/t replicas for a
training that never waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

#: Share of its time that training must wait before anything is said.
STARVED_SHARE = 0.2

#: A pool that would be no busier than this beside a busy training is large enough.
FULL_SHARE = 1.05


@dataclass(frozen=True)
class Load:
    """A pool of the stream: its name, its number of replicas, and the share of their time that they work, in [0, 1]."""

    name: str
    replicas: int
    busy_share: float


def replicas_needed(load: Load, training_busy_share: float) -> int:
    """Replicas of a pool that keep training busy; at least those that it has.

    Args:
        training_busy_share: in (0, 1].
    """
    if math.isnan(load.busy_share) or not load.replicas:
        return load.replicas
    needed = math.ceil(load.replicas * load.busy_share / training_busy_share / FULL_SHARE)
    return max(load.replicas, needed)


def starvation(loads: Iterable[Load], training_busy_share: float) -> str:
    """Say which pools to grow and by how much; empty while training waits little, has not begun, or no pool is full.

    Args:
        loads: of all pools before training.
        training_busy_share: share of its time that training works, in [0, 1]; NaN before its first step.
    """
    waits = 1.0 - training_busy_share
    if math.isnan(waits) or waits < STARVED_SHARE or not training_busy_share:
        return ""
    added = {load.name: replicas_needed(load, training_busy_share) - load.replicas for load in loads}
    advice = [f"{name}: add {count} replica{'s' * (count > 1)}" for name, count in added.items() if count > 0]
    return f"{', '.join(advice)}, training waits {100 * waits:.0f} %" if advice else ""
