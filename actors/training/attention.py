"""Which implementation of attention the target model trains with; packed passages never see one another in any."""

from __future__ import annotations

import torch
from transformers.utils import is_flash_attn_2_available

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

    FlashAttention takes the passages of one row alone. In several rows they would see one another without a word.
    """
    return implementation == "flash_attention_2"


def passage_bounds(position_ids: torch.Tensor, longest: int) -> dict[str, torch.Tensor | int]:
    """FlashAttention's arguments for a row of passages, under transformers' names: their ends and the longest length.

    transformers would find them in the positions itself, but in every layer, and the processor would wait for the GPU
    three times in each.

    Args:
        position_ids: of the row, from 0 in every passage.
        longest: no passage is longer; larger than need be costs nothing.
    """
    positions = position_ids.flatten()
    ends = torch.tensor([len(positions)], dtype=torch.int32, device=positions.device)
    bounds = torch.cat([(positions == 0).nonzero().flatten().int(), ends])
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def _obstacle_to_flash_attention(training: TrainingSpec, device: torch.device) -> str:
    if device.type != "cuda":
        return "needs a GPU"
    if not is_flash_attn_2_available():  # FlashAttention 4 has a module of the same name
        return "needs the package flash-attn, 2.3.3 or newer"
    return "" if training.precision == "bfloat16" else f"needs training.precision bfloat16, not {training.precision}"
