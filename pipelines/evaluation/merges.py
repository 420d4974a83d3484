"""Models made of other models' weights (``engine.method.merging``), written as checkpoints like any other.

All models of a merge are in memory at once, each in the type that it was saved in, one parameter in float64.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import fsspec
import numpy as np

from engine.errors import FusionError
from engine.method.merging import dare, linear, select_calculate_erase, slerp, ties
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import load_configuration
from engine.model_files.local import load_tokenizer, local_checkpoint
from engine.model_files.saving import save_model
from engine.spec import MergeSpec
from engine.store import is_there
from engine.text.tokenization import PassageTokenizer

#: Differences between two models that a message lists.
MOST_DIFFERENCES = 3


def parts_of(merge: MergeSpec) -> tuple[str, ...]:
    """Labels or checkpoints of all models that a merge needs, the one that gives configuration and tokenizer first."""
    return (merge.base, *merge.models) if merge.base else merge.models


def unlike(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Why some checkpoints cannot be merged with the first one, a sentence each; looks at no weights."""
    first, *others = checkpoints
    names, tokens = _shapes(first), PassageTokenizer.load(first).token_bytes
    reasons = []
    for other in others:
        shapes = _shapes(other)
        different = [name for name in {**names, **shapes} if names.get(name) != shapes.get(name)]
        if different:
            shown = ", ".join(
                f"{name} {_shown(names, name)} and {_shown(shapes, name)}" for name in different[:MOST_DIFFERENCES]
            )
            more = f", and {len(different) - MOST_DIFFERENCES} more" if len(different) > MOST_DIFFERENCES else ""
            reasons.append(f"{first} and {other} differ in shape: {shown}{more}")
        elif PassageTokenizer.load(other).token_bytes != tokens:
            reasons.append(f"{first} and {other} have different vocabularies, so their embeddings do not correspond")
    return reasons


def write_merge(merge: MergeSpec, checkpoints: Sequence[Checkpoint], url: str) -> str:
    """Merge models and write the result in Hugging Face format, in place of what an earlier evaluation has left.

    Args:
        merge: the recipe.
        checkpoints: of ``parts_of(merge)``, in this order.
        url: folder or fsspec URL.

    Returns:
        ``url``.

    Raises:
        FusionError: the models cannot be merged.
    """
    reasons = unlike(checkpoints)
    if reasons:
        raise FusionError(f"the merge {os.path.basename(url)} cannot be made: " + "; ".join(reasons))
    models = [_load(checkpoint) for checkpoint in checkpoints]
    _merge_into_first(merge, models)
    filesystem, place = fsspec.core.url_to_fs(url)
    if is_there(filesystem, place):
        filesystem.rm(place, recursive=True)
    with tempfile.TemporaryDirectory() as folder:
        save_model(models[0], folder)
        load_tokenizer(checkpoints[0]).save_pretrained(folder)
        filesystem.put(folder + "/", place + "/", recursive=True)
    return url


def _merge_into_first(merge: MergeSpec, models: Sequence[Any]) -> None:
    """Give the first model the merged weights, parameter by parameter; tied ones are one parameter."""
    import torch

    parameters = [dict(model.named_parameters()) for model in models]
    with torch.no_grad():
        for name, parameter in parameters[0].items():
            arrays = [found[name].double().numpy() for found in parameters]
            parameter.copy_(torch.from_numpy(_merged(merge, name, arrays)))


def _merged(merge: MergeSpec, name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One parameter of the merge, from those of ``parts_of(merge)``."""
    weights = merge.weights or [1.0] * len(merge.models)
    if merge.method == "linear":
        return linear(arrays, weights)
    if merge.method == "slerp":
        return slerp(*arrays, merge.place)
    base, *targets = arrays
    if merge.method == "ties":
        return ties(base, targets, weights, merge.keep)
    if merge.method == "dare":
        # By the parameter's name, so that its draw does not depend on the order of the parameters.
        return dare(base, targets, weights, merge.keep, np.random.default_rng([merge.seed, crc32(name.encode())]))
    return select_calculate_erase(base, targets, merge.select, merge.arithmetic)


def _load(checkpoint: Checkpoint) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(local_checkpoint(checkpoint), dtype="auto")


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, from the configuration alone."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_configuration(checkpoint)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _shown(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "missing"
