"""A checkpoint's transformers configuration, and the limits that it names."""

from __future__ import annotations

import os
from typing import Any

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.local import local_checkpoint, read_json

#: Names under which configurations give the longest input: most of them, MPT, BLOOM.
_PLACES = ("max_position_embeddings", "max_seq_len", "seq_length")


def load_configuration(checkpoint: Checkpoint) -> Any:
    """The transformers configuration of a checkpoint.

    Raises:
        OSError, ValueError: there is no such checkpoint, or transformers does not know its architecture.
    """
    from transformers import AutoConfig  # takes seconds, and `check` and --help do without

    folder = local_checkpoint(checkpoint, weights=False)
    if os.path.isabs(folder) and not os.path.isdir(folder):
        raise ValueError(f"there is no folder {folder}")
    return AutoConfig.from_pretrained(folder)


def named_roles(checkpoint: Checkpoint) -> dict[str, set[int]]:
    """The ids that config.json and generation_config.json name as ``bos_token_id`` and ``eos_token_id``.

    They are read from the files: a configuration in transformers has values of its own where these name none.
    """
    folder = local_checkpoint(checkpoint, weights=False)
    found: dict[str, set[int]] = {"bos_token_id": set(), "eos_token_id": set()}
    for file in ("config.json", "generation_config.json"):
        values = read_json(folder, file)
        for role, ids in found.items():
            named = values.get(role)
            ids.update(token for token in (named if isinstance(named, list) else [named]) if type(token) is int)
    return found


def checkpoint_dtype(config: Any) -> Any:
    """The torch type of a checkpoint's weights outside of quantised layers, by its configuration; else float32."""
    import torch

    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32


def context_limit(config: Any, max_tokens: int, generated_tokens: int) -> int:
    """Tokens of the longest prompt, BOS and EOS included.

    Args:
        config: a transformers configuration.
        max_tokens: a limit by decision.
        generated_tokens: places that the backend needs after the prompt: vLLM always generates one token, so that
            512 places take prompts of 511.
    """
    text_config = config.get_text_config()
    places = [places for name in _PLACES if (places := getattr(text_config, name, None)) is not None]
    return min([max_tokens, *(count - generated_tokens for count in places)])
