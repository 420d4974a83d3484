"""Merging the weights of equal architectures: the weighted mean, or SCE (FuseChat, arXiv 2408.07990, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np


def linear(models: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted mean of one parameter of several models (model soups), in float64.

    Args:
        models: float arrays of one shape.
        weights: one for each, of any sum but 0; they are divided by it.
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    return np.tensordot(shares, np.stack([np.asarray(model, np.float64) for model in models]), axes=1)


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
