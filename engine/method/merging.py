"""Merging the weights of equal architectures, one parameter at a time, in float64.

``linear`` is the weighted mean, ``slerp`` a point on the arc between two models. The others merge changes against a
common base: ``ties`` (arXiv 2306.01708), ``dare`` (arXiv 2311.03099) and SCE (FuseChat, arXiv 2408.07990, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

#: Cosine between two models beyond which their arc counts as straight.
STRAIGHT = 0.9995


def linear(models: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted mean of one parameter of several models (model soups), in float64.

    Args:
        models: float arrays of one shape.
        weights: one for each, of any sum but 0; they are divided by it.
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    return np.tensordot(shares, np.stack([np.asarray(model, np.float64) for model in models]), axes=1)


def slerp(first: np.ndarray, second: np.ndarray, place: float) -> np.ndarray:
    """The point at ``place`` (0: the first, 1: the second) of the arc between two parameters, taken as vectors.

    Vectors that point almost the same way, or the opposite way, have no stable arc: their straight line is taken.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    cosine = np.clip((first * second).sum() / lengths, -1.0, 1.0) if lengths else 1.0
    if abs(cosine) > STRAIGHT:
        return (1.0 - place) * first + place * second
    angle = np.arccos(cosine)
    return (np.sin((1.0 - place) * angle) * first + np.sin(place * angle) * second) / np.sin(angle)


def ties(
    base: np.ndarray, targets: Sequence[np.ndarray], weights: Sequence[float], keep: float, scale: float = 1.0
) -> np.ndarray:
    """Trim, elect signs and merge (TIES, section 3): the weighted mean of the changes that agree with the majority.

    Args:
        base, targets: float arrays of one shape.
        weights: one for each target, not all 0.
        keep: share of each target's changes that are kept, the largest, in (0, 1].
        scale: of the merged change, the paper's lambda.
    """
    deltas = np.stack([_largest(np.asarray(target, np.float64) - base, keep) for target in targets])
    return base + scale * _mean_of_majority(deltas, np.asarray(weights, np.float64))


def dare(
    base: np.ndarray, targets: Sequence[np.ndarray], weights: Sequence[float], keep: float, random: np.random.Generator
) -> np.ndarray:
    """Drop changes at random and rescale the others (DARE, section 3), then take their weighted mean.

    Args:
        keep: probability of each change to stay, in (0, 1]; what stays is divided by it.
        base, targets, weights: as for ``ties``.
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    merged = np.zeros(np.shape(base), np.float64)
    for share, target in zip(shares, targets, strict=True):
        stays = random.random(merged.shape) < keep
        merged += share * np.where(stays, np.asarray(target, np.float64) - base, 0.0) / keep
    return base + merged


def _largest(deltas: np.ndarray, share: float) -> np.ndarray:
    """The changes with the largest magnitudes, one at least; 0 elsewhere."""
    count = max(1, int(share * deltas.size))
    kept = np.zeros(deltas.shape)
    places = np.argsort(-np.abs(deltas).ravel(), kind="stable")[:count]
    kept.flat[places] = deltas.flat[places]
    return kept


def _mean_of_majority(deltas: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each element the weighted mean of the changes whose sign is that of their weighted sum; 0 counts as plus."""
    weights = weights.reshape(-1, *[1] * (deltas.ndim - 1))
    weighted = weights * deltas
    majority = np.where(weighted.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = np.sign(weighted) == majority
    mass = (weights * agrees).sum(axis=0)
    return np.divide((weighted * agrees).sum(axis=0), mass, out=np.zeros(mass.shape), where=mass > 0)


def select_calculate_erase(
    pivot: np.ndarray, targets: Sequence[np.ndarray], select: float, form: Literal["paper", "published_code"]
) -> np.ndarray:
    """Merge one parameter matrix of several models that come from one pivot.

    Select the elements that vary most between the targets, weigh each target by the energy of its selected changes,
    erase changes against the majority's sign, and add the other changes to the pivot.

    Args:
        pivot, targets: float arrays of one shape.
        select: share of the elements that vary at all, in (0, 1]; 1 selects the others too.
        form: the paper adds the selected changes; the authors' code uses the selection for the weights alone, adds all
            changes, and renormalises the weights for each element over the targets that are not erased there.
    """
    deltas = np.stack([np.asarray(target, np.float64) - pivot for target in targets])
    selected = _most_varying(deltas, select)
    energy = np.where(selected, deltas, 0.0).reshape(len(deltas), -1)
    energy = (energy**2).sum(axis=1)
    total = energy.sum()
    weights = energy / total if total else np.full(len(deltas), 1 / len(deltas))
    weights = weights.reshape(-1, *[1] * (deltas.ndim - 1))
    kept = np.sign(deltas) == np.sign(deltas.sum(axis=0))
    if form == "paper":
        return pivot + (weights * np.where(kept & selected, deltas, 0.0)).sum(axis=0)
    mass = (weights * kept).sum(axis=0)
    merged = (weights * np.where(kept, deltas, 0.0)).sum(axis=0)
    return pivot + np.divide(merged, mass, out=np.zeros_like(merged), where=mass > 0)


def _most_varying(deltas: np.ndarray, share: float) -> np.ndarray:
    """The elements that vary most over the targets, bool: ``share`` of those that vary at all, or all elements."""
    if share == 1.0:
        return np.ones(deltas.shape[1:], bool)
    variance = deltas.var(axis=0)
    count = int(share * np.count_nonzero(np.ptp(deltas, axis=0)))  # rounding gives equal numbers some variance
    selected = np.zeros(variance.shape, bool)
    selected.flat[np.argsort(-variance.ravel(), kind="stable")[:count]] = True
    return selected
