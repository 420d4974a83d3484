"""Loading of the target model: the first worker reads the weights, every worker receives its shard.

Every worker builds the model without memory (torch's ``meta`` device) and shards it before it receives weights. Only
the first worker ever holds the whole model, in main memory, not on its GPU.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.errors import TrainingError
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.configuration import load_configuration
from engine.model_files.local import local_checkpoint
from engine.spec import LoraSpec, TargetModelSpec


def empty_causal_lm(spec: TargetModelSpec, attention: str = "sdpa") -> PreTrainedModel:
    """Build the model without its weights; with ``lora.rank`` all parameters but the adapters' are frozen.

    Args:
        spec: the section ``target_model``.
        attention: transformers' name of the implementation.

    Raises:
        TrainingError: ``lora.target_modules`` names no module, or one that must not have an adapter.
    """
    config = load_configuration(Checkpoint.of(spec))
    if hasattr(config, "quantization_config"):  # of the checkpoint's weights; training and export have plain ones
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    if spec.lora.rank:
        add_adapters(model, spec.lora)
    return model


def read_causal_lm(spec: TargetModelSpec) -> PreTrainedModel:
    """Read the whole model into main memory, in float32 and evaluation mode; new adapters do not change its output."""
    model = AutoModelForCausalLM.from_pretrained(local_checkpoint(Checkpoint.of(spec)), dtype=torch.float32)
    if spec.lora.rank:
        add_adapters(model, spec.lora)
    return model.eval()


def fill(sharded: FSDPModule, empty: nn.Module, whole: nn.Module | None, device: torch.device) -> None:
    """Give an empty, sharded model its weights; all workers take part.

    Args:
        sharded: the module that was sharded, ``empty`` or a module that holds it.
        empty: the model whose parameters have the names of those of ``whole``.
        whole: the model with the weights on the first worker, None on the others.
    """
    sharded.to_empty(device=device)
    for module in reversed([module for module in sharded.modules() if isinstance(module, FSDPModule)]):
        module.unshard()  # to_empty gave each tied weight its own tensor; gathering and freeing ties them again
        module.reshard()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(empty, whole.state_dict() if whole is not None else {}, options=options)
    for name, buffer in empty.named_buffers():  # checkpoints do not hold all buffers, such as rotary frequencies
        if whole is not None:
            buffer.copy_(whole.get_buffer(name))
        dist.broadcast(buffer, 0)


def add_adapters(model: PreTrainedModel, lora: LoraSpec) -> None:
    """Add low-rank adapters to the layers and freeze all other parameters; the model's output stays the same.

    Raises:
        TrainingError: no module has one of the given names, or the lm_head or a weight tied to it is among them.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    without = _without_adapter(model)
    parts = [(name, getattr(part, "weight", None)) for name, part in model.named_modules() if name not in without]
    names = {name.rpartition(".")[2] for name, weight in parts if weight is not None and weight.ndim == 2}
    where = f"target_model.lora.target_modules {list(lora.target_modules)}"
    remedy = f"Choose from {', '.join(sorted(names))}, or leave it empty for all linear layers but the lm_head"
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
    )
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise TrainingError(f"{where}: {error} {remedy}") from error
    adapted = [name for name in without if isinstance(model.get_submodule(name), BaseTunerLayer)]
    faults = [f"{name} {without[name]}" for name in adapted]
    if faults:
        raise TrainingError(f"{where}: {'; '.join(faults)}. {remedy}")


def _without_adapter(model: PreTrainedModel) -> dict[str, str]:
    """The modules that must not have an adapter: name to the reason."""
    head = model.get_output_embeddings()
    untrained = "is the lm_head: the loss reads only its weight and would never train its adapter"
    untied = "shares the lm_head's weight: the export would merge its adapter into both, training uses it in one"
    return {
        name: untrained if part is head else untied
        for name, part in model.named_modules()
        if getattr(part, "weight", None) is head.weight
    }


def merge_adapters(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Merge the adapters into the weights; returns the state under the names of the plain model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
