"""The shapes of models that the GPU benchmark makes, their checkpoints, and time on a GPU."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.support.paths import ROOT

QUICKSTART_MODELS = ROOT / "pipelines/quickstart/models"


class Shape(NamedTuple):
    """A Llama's sizes; ``context`` is of the texts and of the training blocks."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    context: int
    vocabularies: tuple[int, ...]


SHAPES = {
    "tiny": Shape(64, 128, 2, 2, 2, 128, (3_000,)),
    "1b": Shape(2048, 5632, 22, 32, 4, 2048, (32_000, 128_000)),  # TinyLlama's
    "7b": Shape(4096, 11008, 32, 32, 32, 2048, (32_000, 128_000)),  # Llama 2's
}


#: Dense bfloat16 operations a second of cards on which this was run, or may be.
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def llama_config(size: str, vocabulary: int) -> Any:
    """transformers' configuration of a Llama of that size."""
    from transformers import LlamaConfig

    shape = SHAPES[size]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=2 * shape.context,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        dtype="bfloat16",
        initializer_range=0.1,  # distributions as uneven as a language model's
    )


def gpt_neox_config(size: str, vocabulary: int) -> Any:
    """The same of a GPT-NeoX of about that size, for a stream of several architectures."""
    from transformers import GPTNeoXConfig

    shape = SHAPES[size]
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=4 * shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=2 * shape.context,
        bos_token_id=0,
        eos_token_id=1,
        dtype="bfloat16",
        initializer_range=0.1,  # distributions as uneven as a language model's
    )


def save_checkpoint(folder: Path, config: Any, tokenizer: str, device: str, dtype: torch.dtype) -> str:
    """A model with random weights, made on the device, with the tokenizer of one of the quickstart's models."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(QUICKSTART_MODELS / tokenizer / name, folder / name)
    return str(folder)


def parameters_of(config: Any) -> int:
    """Number of weights of a model of this configuration."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


def card(device: str) -> str:
    """The GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def share_of_peak(operations: float, seconds: float, device: str) -> float:
    """Operations against what the card could do in that time at most; 0 where its peak is not known."""
    peak = next((rate for name, rate in PEAK.items() if name in card(device)), 0.0)
    return operations / (seconds * peak) if peak else 0.0


def seconds_in_turns(ways: list[Callable[[], object]], device: str, rounds: int) -> list[float]:
    """Median wall seconds of each way, all work of the GPU included; one after the other, after a first time each."""
    times: list[list[float]] = [[] for _ in ways]
    for measured in range(-1, rounds):
        for way, found in zip(ways, times, strict=True):
            started = time.perf_counter()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            if measured >= 0:
                found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in times]
