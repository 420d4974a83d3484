"""An ensemble of models that are evaluated together: the mean of their probabilities, in bytes.

Models with equal tokenizers are averaged token by token. With different tokenizers there is no common token to average
over, but there are common places: a byte of the text where a token of *every* model ends. Between two neighbouring ones
each model has spent some tokens of its own on the same bytes, a span, and the product of their probabilities is what it
gives to the span. The ensemble gives the mean over the models. With equal tokenizers every span is one token, and this
is the usual ensemble.

What the number means, and what not:

- On every span the ensemble needs at most ``log2(n)`` bits more than the best of its n models there, and it never needs
  more than the mean of the models' bits over the same bytes (the logarithm is concave). It never beats, on a span, the
  best model there; over a text it can beat all of them, which is the point.
- A model's span counts in the one way in which its tokenizer writes it; all other ways to the same bytes would add
  probability. So each model is a little better than it looks, as it is in bits per byte altogether.
- Where the common places lie is read off the text, the one ahead included. With equal tokenizers that says no more.
  With different ones it is knowledge that a decoder does not have: over all possible texts the ensemble's probabilities
  may add up to more than 1. The number then describes the models, a little on the bright side; it is not the length of
  a code, and neither an upper nor a lower bound of one.
- An ensemble that averages byte by byte is another one: its product of means is neither always above nor always below
  this mean of products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from pipelines.evaluation.bits_per_byte import ScoredText


def ensemble(members: Sequence[ScoredText]) -> ScoredText:
    """The ensemble's score of a text that each of its models has scored.

    Args:
        members: one text, scored by each model; at least one.

    Returns:
        The same text with the common boundaries of all members; ``nats`` are those of the spans between them. Bytes
        before the first boundary of a model without BOS are not scored.
    """
    common = reduce(np.intersect1d, [member.boundaries for member in members], members[0].boundaries)
    nats = np.stack([np.diff(_nats_before(member, common)) for member in members])
    return ScoredText(common, np.log(len(members)) - np.logaddexp.reduce(-nats, axis=0))


def _nats_before(member: ScoredText, boundaries: np.ndarray) -> np.ndarray:
    """Nats that a model has spent at each of some of its boundaries; of several tokens with one end the last counts."""
    sums = np.append(0.0, np.cumsum(member.nats))
    last = np.searchsorted(member.boundaries, boundaries, side="right") - 1
    if boundaries[0] == member.boundaries[0]:
        last[0] = 0  # tokens without bytes at the very beginning belong to the first span
    return sums[last]
