"""Preparation of a model's transformer blocks for training: sharding, recomputation, compilation."""

from __future__ import annotations

import os
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from actors.training.collectives import of_all_workers
from engine.errors import TrainingError
from engine.spec import TrainingSpec


def transformer_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that the architecture names as not to be split. Before sharding, which renames their classes."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def shard(module: nn.Module, model: PreTrainedModel, training: TrainingSpec, device: torch.device) -> FSDPModule:
    """Shard a module by FSDP2: a group for each transformer block, one for everything else.

    Args:
        module: the module that training calls; it holds ``model``.
        model: the causal language model.
        training: ``precision`` of gathered parameters and activations, ``reduction`` of gradients, ``shard_within``.
        device: of this worker.

    Raises:
        TrainingError: ``shard_within`` is ``node`` and the nodes have different numbers of workers.
    """
    shape = _mesh_shape(training.shard_within, device)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("nodes", "workers")[-len(shape) :])
    gathered = torch.bfloat16 if training.precision == "bfloat16" else None
    reduced = getattr(torch, training.reduction)
    inner = MixedPrecisionPolicy(gathered, reduced)
    # The root's inputs are the training blocks: their probabilities must not be rounded to bfloat16.
    outer = MixedPrecisionPolicy(gathered, reduced, cast_forward_inputs=False)
    # Freed after the forward pass they are gathered again for the backward pass: one worker would copy all its weights.
    reshard = shape[-1] > 1
    for block in transformer_blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=inner, reshard_after_forward=reshard)
    return fully_shard(module, mesh=mesh, mp_policy=outer)


def _mesh_shape(shard_within: Literal["all", "node"], device: torch.device) -> tuple[int, ...]:
    """All workers in one dimension; or nodes, between which weights are copied, times workers, which share them.

    Ray Train numbers the workers node by node, as the second form needs, and counts those of a node in the environment.
    """
    workers = dist.get_world_size()
    if shard_within == "all":
        return (workers,)
    mine = torch.tensor([int(os.environ["LOCAL_WORLD_SIZE"])], device=device)
    on_nodes = of_all_workers(mine).flatten().tolist()
    if len(set(on_nodes)) != 1:
        raise TrainingError(
            f"training.shard_within is node, but the workers' nodes hold {sorted(set(on_nodes))} workers; each must "
            f"hold the same number: change training.num_workers or the nodes, or set it to all"
        )
    return workers // on_nodes[0], on_nodes[0]


def recompute_activations(model: PreTrainedModel) -> None:
    """Recompute each transformer block's activations in the backward pass instead of keeping them. Before sharding."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile each transformer block in place; the names of the weights stay the same. Before sharding."""
    for block in transformer_blocks(model):
        block.compile()
