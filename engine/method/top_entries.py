"""The masses of one row's tokens added up, and the highest of them written; kernels in numba.

An accumulator is float64 [V] of 0; the tokens of a row that have mass are *touched*, and their masses are cleared when
the row is done.
"""

from __future__ import annotations

import numpy as np

from engine.method.compiled import njit

#: Masses from 1 down to 2**-32 are dealt to buckets of a quarter of a factor of two.
BUCKETS, _BUCKET_SHIFT = 128, 50
_BITS_OF_ONE = int(np.float64(1.0).view(np.int64)) >> _BUCKET_SHIFT


@njit
def choosing_room(size):
    """Room to choose among one row's tokens.

    float64 [n], their masses, and these as int64; int64 [n], their buckets; int64 [BUCKETS], how many a bucket has;
    int64 [n] and float64 [n], tokens of one bucket and their masses.
    """
    values = np.empty(size)
    places = np.empty(size, np.int64), np.empty(BUCKETS, np.int64), np.empty(size, np.int64)
    return values, values.view(np.int64), *places, np.empty(size)


@njit
def add(token, mass, accumulator, touched, count):
    """Add ``mass`` to a target token; the new number of tokens with mass."""
    if mass <= 0.0:
        return count
    before = accumulator[token]
    accumulator[token] = before + mass
    touched[count] = token  # written over next, unless it is the token's first mass: no processor can foresee which
    return count + (before == 0.0)


@njit
def take_masses(accumulator, touched, count, values):
    """Move the masses of the tokens from the accumulator to ``values``; their sum."""
    mass = 0.0
    for entry in range(count):
        token = touched[entry]
        values[entry] = accumulator[token]
        accumulator[token] = 0.0
        mass += values[entry]
    return mass


@njit
def write_top(touched, count, room, scale, ids, probs, row):
    """Write the top entries of one row of [T, K], scaled, in no order; of equal ones those with the lower ids.

    Entries are counted in buckets by the exponent of their mass and two more bits. Those above the bucket in which the
    last place lies are all written; those of this bucket are sorted.

    Args:
        touched: int64, ``count`` target tokens; room: ``choosing_room``, with their masses.
    """
    values, bits, buckets, sizes, tokens, border = room
    top_k = ids.shape[1]
    if count <= top_k:
        for entry in range(count):
            ids[row, entry], probs[row, entry] = touched[entry], values[entry] * scale
        return
    sizes[:] = 0
    for entry in range(count):
        bucket = min(max(_BITS_OF_ONE - (bits[entry] >> _BUCKET_SHIFT), 0), BUCKETS - 1)
        buckets[entry] = bucket
        sizes[bucket] += 1
    above, last = 0, 0
    while above + sizes[last] < top_k:
        above += sizes[last]
        last += 1
    place, ties = 0, 0
    for entry in range(count):  # what does not belong there is written over next: no processor can foresee which
        ids[row, place], probs[row, place] = touched[entry], values[entry] * scale
        tokens[ties], border[ties] = touched[entry], values[entry]
        place += buckets[entry] < last
        ties += buckets[entry] == last
    sort_by_probability(tokens, border, 0, ties)
    for entry in range(top_k - above):
        ids[row, above + entry], probs[row, above + entry] = tokens[entry], border[entry] * scale


@njit
def sort_by_probability(tokens, values, start, end):
    """Sort ``tokens[start:end]`` and their ``values`` by descending value, ties by ascending token, by insertion."""
    for index in range(start + 1, end):
        token, value = tokens[index], values[index]
        place = index
        while place > start and (
            value > values[place - 1] or (value == values[place - 1] and token < tokens[place - 1])
        ):
            tokens[place], values[place] = tokens[place - 1], values[place - 1]
            place -= 1
        tokens[place], values[place] = token, value


def as_float16(probs: np.ndarray) -> np.ndarray:
    """Probabilities, float32 from 0 to 1, rounded to float16 as NumPy does, ties to even; 40 times as fast."""
    halves = np.empty(probs.shape, np.uint16)
    round_to_float16(probs.ravel(), probs.ravel().view(np.uint32), halves.ravel())
    return halves.view(np.float16)


@njit
def round_to_float16(values, bits, halves):
    """Fill ``halves``, uint16, with the bits of float16 numbers; ``bits``: those of ``values``, float32 from 0 to 1."""
    for index in range(values.size):
        exact = bits[index]
        odd = (exact >> np.uint32(13)) & np.uint32(1)
        normal = ((exact + np.uint32(0xFFF) + odd) >> np.uint32(13)) - np.uint32(112 << 10)
        small = np.uint32(np.int32(np.rint(values[index] * np.float32(2.0**24))))  # below the smallest normal number
        halves[index] = np.uint16(small if values[index] < np.float32(2.0**-14) else normal)
