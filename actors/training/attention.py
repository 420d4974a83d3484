"""Which implementation of attention the target model trains with; packed passages never see one another in any."""

from __future__ import annotations

import importlib.util

import torch

from engine.errors import TrainingError
from engine.spec import TrainingSpec


def attention_implementation(training: TrainingSpec, device: torch.device) -> str:
    """The name by which transformers knows it, for ``training.attention`` on this worker's device.

    Raises:
        TrainingError: the one that the spec names cannot run here.
    """
    obstacle = _obstacle_to_flash_attention(training, device)
    if training.attention == "auto":
        return "sdpa" if obstacle else "flash_attention_2"
    if training.attention == "flash_attention_2" and obstacle:
        raise TrainingError(f"training.attention is flash_attention_2, which {obstacle}; choose sdpa, or auto")
    if training.attention == "flex_attention" and device.type != "cuda":
        raise TrainingError("training.attention is flex_attention, which needs a GPU; choose sdpa, or auto")
    return training.attention


def in_one_row(implementation: str) -> bool:
    """Whether blocks go through the model as one long row.

    transformers finds the passages in a row's positions. For FlashAttention it looks only where there is one row, and
    would let the passages of several rows see one another without a word.
    """
    return implementation == "flash_attention_2"


def _obstacle_to_flash_attention(training: TrainingSpec, device: torch.device) -> str:
    if importlib.util.find_spec("flash_attn") is None:
        return "needs the package flash-attn"
    if device.type != "cuda":
        return "needs a GPU"
    return "" if training.precision == "bfloat16" else f"needs training.precision bfloat16, not {training.precision}"
