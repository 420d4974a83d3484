"""Writing a model in Hugging Face format, its generation settings unchanged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel

#: Of the files with weights, as transformers writes it.
LARGEST_FILE = "5GB"


def save_model(
    model: PreTrainedModel,
    folder: str,
    weights: Mapping[str, torch.Tensor] | None = None,
    generation: GenerationConfig | None = None,
) -> None:
    """Write weights, configuration and generation settings.

    The settings are written on their own: ``save_pretrained`` refuses some that it has itself loaded, such as Llama 2's
    temperature without sampling, and a long run would end without its model.

    Args:
        weights: name to tensor; None: the model's own.
        generation: None: the model's own.
    """
    from transformers import GenerationConfig

    settings = generation or model.generation_config
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder, state_dict=weights, max_shard_size=LARGEST_FILE)
    settings.to_json_file(os.path.join(folder, "generation_config.json"))
