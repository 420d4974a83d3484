"""Paired bootstrap: the confidence interval of a difference between two arms, over seeds and held-out documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval of ``LEVEL``, in the estimate's unit."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class ScoredDomain:
    """The scores of one model on the D documents of one domain.

    Attributes:
        bits: float64 [D].
        num_bytes: float64 [D], the number of scored bytes.
    """

    bits: np.ndarray
    num_bytes: np.ndarray


#: Domain to scored documents, for one trained model.
Scores = Mapping[str, ScoredDomain]


def mean_bits_per_byte(scores: Scores) -> float:
    """Bits over bytes in each domain, then the mean of the domains."""
    return float(np.mean([domain.bits.sum() / domain.num_bytes.sum() for domain in scores.values()]))


def paired_difference(
    ours: Sequence[Scores], theirs: Sequence[Scores], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean held-out bits per byte of ours minus theirs; below zero ours is better.

    Each resample draws seeds with replacement, and within each domain documents with replacement, the same for both
    arms and for all seeds: text that is easy for one arm is easy for the other. Percentile interval.

    Args:
        ours, theirs: one item for each seed, in the same order, with the same domains and documents.
    """
    generator = np.random.default_rng(seed)
    seeds = len(ours)
    seed_weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds  # [R, S]
    resampled = np.zeros(resamples)
    for domain in ours[0]:
        documents = len(ours[0][domain].bits)
        weights = generator.multinomial(documents, np.full(documents, 1 / documents), resamples)  # [R, D]
        for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            difference = _rates(our[domain], weights) - _rates(their[domain], weights)
            resampled += seed_weights[:, index] * difference / len(ours[0])
    estimate = float(
        np.mean([mean_bits_per_byte(a) - mean_bits_per_byte(b) for a, b in zip(ours, theirs, strict=True)])
    )
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high))


def _rates(scored: ScoredDomain, weights: np.ndarray) -> np.ndarray:
    """float64 [R]: bits per byte of every resample."""
    return (weights @ scored.bits) / (weights @ scored.num_bytes)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds, NaN for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
