"""How many prompt tokens vLLM takes in one step, from a source's configuration; imports neither vLLM nor torch."""

from __future__ import annotations

from typing import Any

from actors.sources.backends import device_of
from actors.sources.backends.key_value_cache import DTYPE_BYTES, cache_bytes, number_of, own_dtype, token_bytes
from engine.spec import SourceModelSpec

#: On a CPU: a vocabulary row of each token of a prompt is held in float32, and larger steps are no faster.
CPU_TOKENS = 2048

#: On a GPU the first of these that fits: a step of a small model is otherwise as short as Python's work for it.
GPU_TOKENS = (16_384, 8192, 4096, 2048)

#: The GPU that a plan assumes, which may be made on a machine without one.
PLANNED_GPU_BYTES = 80 * 10**9

#: Memory of a process on a GPU before the first weight, with some room for fragments.
CONTEXT_BYTES = 10**9

#: Bytes of one logit on its way: as the model makes it, and in float32 for its softmax.
LOGIT_BYTES = 2 + 4


def step_tokens(source: SourceModelSpec, config: Any, context: int, gpu_bytes: float) -> int:
    """Prompt tokens in one step of the engine: the spec's number, else as many as the replica's memory holds.

    Args:
        config: transformers' configuration of the source.
        context: tokens of the longest prompt.
        gpu_bytes: memory of the whole GPU, of which ``num_gpus`` is the replica's; not used on a CPU.
    """
    if source.batched_tokens:
        return source.batched_tokens
    if device_of(source) == "cpu":
        return CPU_TOKENS
    room = source.num_gpus * gpu_bytes
    fitting = (tokens for tokens in GPU_TOKENS if replica_bytes(source, config, context, tokens) <= room)
    return next((tokens for tokens in fitting if _cache_holds(source, config, tokens)), GPU_TOKENS[-1])


def replica_bytes(source: SourceModelSpec, config: Any, context: int, tokens: int) -> int:
    """Memory that a replica takes on each of its GPUs with steps of so many tokens, estimated."""
    text = config.get_text_config()
    hidden, inner = _widths(text)
    activations = (4 * hidden + 3 * inner // source.tensor_parallel_size) * DTYPE_BYTES[own_dtype(source, config)]
    logits = min(tokens, context) * text.vocab_size * LOGIT_BYTES
    cache = cache_bytes(source, config, context, tokens)
    return CONTEXT_BYTES + _weight_bytes(source, config) + cache + tokens * activations + logits


def _cache_holds(source: SourceModelSpec, config: Any, tokens: int) -> bool:
    """Whether a key-value cache of the spec's own size holds two steps; one that is derived always does."""
    return not source.kv_cache_bytes or 2 * tokens * token_bytes(source, config) <= source.kv_cache_bytes


def _weight_bytes(source: SourceModelSpec, config: Any) -> int:
    """Weights of a transformer with gated layers, on each GPU: a little too many for one without gates."""
    text = config.get_text_config()
    hidden, inner = _widths(text)
    experts = number_of(text, "num_local_experts", "num_experts", "n_routed_experts")
    block = 4 * hidden * hidden + 3 * hidden * inner * experts
    weights = number_of(text, "num_hidden_layers", "n_layers", "n_layer") * block + 2 * text.vocab_size * hidden
    return weights * DTYPE_BYTES[own_dtype(source, config)] // source.tensor_parallel_size


def _widths(text: Any) -> tuple[int, int]:
    """The width of the hidden states, and inside a feed-forward layer or one expert."""
    hidden = number_of(text, "hidden_size", "d_model", "n_embd")
    names = ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
    return hidden, next((int(value) for name in names if (value := getattr(text, name, None))), 4 * hidden)
