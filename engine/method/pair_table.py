"""A hash table in numba whose keys are pairs of numbers below 2**31."""

from __future__ import annotations

import numpy as np

from engine.method.compiled import njit


def empty_table(most: int) -> np.ndarray:
    """An int64 [., 2] table of keys and values with room for ``most`` pairs; the key of a free slot is -1."""
    return np.full((1 << max(4, most.bit_length()), 2), -1, np.int64)


@njit
def slot_of(table, left, right):
    """The slot of a pair, or the free one where it would be; and its key."""
    key = (np.int64(left) << 32) | np.int64(right)
    mask = table.shape[0] - 1
    slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
    while table[slot, 0] != -1 and table[slot, 0] != key:
        slot = (slot + 1) & mask
    return slot, key
