"""Preparation of a model's transformer blocks for training: sharding, recomputation, compilation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel


def transformer_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that the architecture names as not to be split. Before sharding, which renames their classes."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def shard(
    module: nn.Module, model: PreTrainedModel, precision: Literal["float32", "bfloat16"], device: torch.device
) -> FSDPModule:
    """Shard a module by FSDP2 over all workers: a group for each transformer block, one for everything else.

    Args:
        module: the module that training calls; it holds ``model``.
        model: the causal language model.
        precision: of gathered parameters and activations; gradients are reduced in float32.
        device: of this worker.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    inner = outer = MixedPrecisionPolicy()
    if precision == "bfloat16":
        inner = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        # The root's inputs are the training blocks: their probabilities must not be rounded to bfloat16.
        outer = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in transformer_blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=inner)
    return fully_shard(module, mesh=mesh, mp_policy=outer)


def recompute_activations(model: PreTrainedModel) -> None:
    """Recompute each transformer block's activations in the backward pass instead of keeping them. Before sharding."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile each transformer block in place; the names of the weights stay the same. Before sharding."""
    for block in transformer_blocks(model):
        block.compile()
