"""Checkpoints: sharded weights, optimizer and journal in one unit, through fsspec; export to Hugging Face format.

A checkpoint is a folder of torch DCP files and ``state.json``, which the first worker writes last. A folder without it
is the remains of a crash and counts for nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

import fsspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from transformers import AutoModelForCausalLM

from actors.loading import add_adapters, merge_adapters
from actors.target_model import TargetModel
from engine.checkpoint_files import load_tokenizer
from engine.errors import TrainingError

STATE_FILE = "state.json"

#: The weights that are trained: with adapters, nothing of what they stand beside.
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def save(target: TargetModel, folder: str, state: dict[str, Any]) -> None:
    """Write one checkpoint; all workers take part.

    Args:
        folder: local or fsspec path, one for each step.
        state: what JSON can hold; must be equal on all workers.
    """
    if dist.get_rank() == 0:
        _delete(folder)  # a run that went back to an earlier step comes here again: no old marker beside new files
    dist.barrier()
    dcp.save(_content(target), storage_writer=FsspecWriter(folder))
    dist.barrier()
    if dist.get_rank() == 0:
        filesystem, path = fsspec.core.url_to_fs(folder)
        data = json.dumps({**state, "step": target.step}).encode("utf8")
        filesystem.pipe_file(os.path.join(path, STATE_FILE + ".part"), data)
        filesystem.mv(os.path.join(path, STATE_FILE + ".part"), os.path.join(path, STATE_FILE))
    dist.barrier()


def load(target: TargetModel, folder: str) -> dict[str, Any]:
    """Bring weights, optimizer and step back, on any number of workers; returns the state.

    Raises:
        TrainingError: the checkpoint is damaged, or is one of another model.
    """
    content = _content(target)
    try:
        dcp.load(content, storage_reader=FsspecReader(folder))
    except CheckpointException as error:  # a BaseException: it would pass by every handler above
        raise TrainingError(
            f"checkpoint {folder}: does not fit the target model {target.config.model_type}, or is damaged: {error}. "
            f"Choose another run.output_dir, or delete this checkpoint to go on from the one before"
        ) from error
    set_state_dict(
        target.model,
        target.optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=_TRAINED,
    )
    state = read_state(folder)
    target.step = state["step"]
    return state


def _content(target: TargetModel) -> dict[str, Any]:
    """What torch stores: the shards of the trained weights and of the optimizer.

    No states of random generators: the trainer seeds them anew in every step, from the step.
    """
    weights, optimizer = get_state_dict(target.model, target.optimizer, options=_TRAINED)
    return {"model": weights, "optimizer": optimizer}


def read_state(folder: str) -> dict[str, Any]:
    """The state of a checkpoint, without its weights."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    return json.loads(filesystem.cat_file(os.path.join(path, STATE_FILE)))


def latest(folder: str) -> str | None:
    """The newest complete checkpoint below ``folder``, None if there is none."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def prune(folder: str, keep: int) -> None:
    """Delete all but the newest ``keep`` complete checkpoints, and the remains of broken ones; one worker works."""
    if dist.get_rank() == 0:
        filesystem, path = fsspec.core.url_to_fs(folder)
        kept = {os.path.basename(name) for name in _complete(folder)[-keep:]}
        for name in filesystem.ls(path, detail=False):
            if os.path.basename(name.rstrip("/")) not in kept:
                _delete(filesystem.unstrip_protocol(name))
    dist.barrier()


def export(target: TargetModel, tokenizer_checkpoint: str, folder: str) -> None:
    """Write the target model in Hugging Face format: safetensors, configuration, tokenizer; all workers take part."""
    weights = get_model_state_dict(target.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        filesystem, path = fsspec.core.url_to_fs(folder)
        filesystem.makedirs(os.path.dirname(path), exist_ok=True)
        local = "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,))
        # Beside its place, so that a local export appears by one rename; a remote one is uploaded file by file.
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path) if local else None, prefix=".export-") as temporary:
            written = os.path.join(temporary, "export")
            _write_model(target, tokenizer_checkpoint, weights, written)
            if filesystem.exists(path):
                filesystem.rm(path, recursive=True)
            if local:
                os.rename(written, path)
            else:
                filesystem.put(written + "/", path, recursive=True)
    dist.barrier()


def _write_model(target: TargetModel, tokenizer_checkpoint: str, weights: dict[str, Any], folder: str) -> None:
    with torch.device("meta"):  # only its configuration and its rules for tied weights are needed
        model = AutoModelForCausalLM.from_config(target.config)
    if target.section.lora.rank:
        weights = _merged(target, weights)
    model.save_pretrained(folder, state_dict=weights)
    if target.generation_config is not None:
        # Not by save_pretrained: it refuses settings that it has itself loaded, such as Llama 2's temperature without
        # sampling, and a long run would end without its model.
        target.generation_config.to_json_file(os.path.join(folder, "generation_config.json"))
    load_tokenizer(tokenizer_checkpoint).save_pretrained(folder)


def _merged(target: TargetModel, weights: dict[str, Any]) -> dict[str, Any]:
    """Weights and adapters as one plain model."""
    model = AutoModelForCausalLM.from_config(target.config, dtype=torch.float32)
    add_adapters(model, target.section.lora)
    model.load_state_dict(weights)
    return merge_adapters(model)


def _complete(folder: str) -> list[str]:
    """Complete checkpoints, oldest first: their names count the steps in digits of one width."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    filesystem.invalidate_cache()
    if not filesystem.exists(path):
        return []
    # Listed, not globbed: a bracket in the output folder's name would find nothing, and the run would begin anew.
    names = sorted(name.rstrip("/") for name in filesystem.ls(path, detail=False))
    return [filesystem.unstrip_protocol(name) for name in names if filesystem.exists(os.path.join(name, STATE_FILE))]


def _delete(folder: str) -> None:
    """Delete a checkpoint if it is there, its marker first: what an interruption leaves must not look complete."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    marker = os.path.join(path, STATE_FILE)
    if filesystem.exists(marker):
        filesystem.rm_file(marker)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
