"""Export of the trained target model as a checkpoint that transformers loads."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import fsspec
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM

from actors.training.loading import add_adapters, merge_adapters
from actors.training.target_model import TargetModel
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import checkpoint_dtype, load_configuration
from engine.model_files.local import load_tokenizer
from engine.model_files.saving import save_model
from engine.store import is_there


def export(target: TargetModel, checkpoint: Checkpoint, folder: str, dtype: str = "auto") -> None:
    """Write the target model in Hugging Face format: safetensors, configuration, tokenizer; all workers take part.

    Args:
        target: on this worker; its adapters, if any, are merged into the weights.
        checkpoint: the target's, for its tokenizer and chat template.
        folder: local or fsspec path; an export that is there already is replaced.
        dtype: torch's name of the type of the written weights; ``auto``: the checkpoint's.
    """
    weights = get_model_state_dict(target.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        filesystem, path = fsspec.core.url_to_fs(folder)
        filesystem.makedirs(os.path.dirname(path), exist_ok=True)
        local = "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,))
        # Written next to its place, a local export appears by one rename; a remote one is uploaded file by file.
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path) if local else None, prefix=".export-") as temporary:
            written = os.path.join(temporary, "export")
            _write_model(target, checkpoint, weights, written, dtype)
            if is_there(filesystem, path):
                filesystem.rm(path, recursive=True)
            if local:
                os.rename(written, path)
            else:
                filesystem.put(written + "/", path, recursive=True)
    dist.barrier()


def _write_model(target: TargetModel, checkpoint: Checkpoint, weights: dict[str, Any], folder: str, dtype: str) -> None:
    wanted = checkpoint_dtype(load_configuration(checkpoint)) if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):  # needed for its configuration and its rules for tied weights alone
        model = AutoModelForCausalLM.from_config(target.config, dtype=wanted)
    if target.spec.lora.rank:
        weights = _merged(target, weights)
    weights = {name: tensor.to(wanted) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_model(model, folder, weights, target.generation_config)
    load_tokenizer(checkpoint).save_pretrained(folder)


def _merged(target: TargetModel, weights: dict[str, Any]) -> dict[str, Any]:
    """The state of a plain model: the weights with the adapters merged into them."""
    model = AutoModelForCausalLM.from_config(target.config, dtype=torch.float32)
    add_adapters(model, target.spec.lora)
    model.load_state_dict(weights)
    return merge_adapters(model)
