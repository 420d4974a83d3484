"""The size of vLLM's key-value cache, from a source's configuration; imports neither vLLM nor torch."""

from __future__ import annotations

from typing import Any

from engine.model_files.configuration import checkpoint_dtype
from engine.spec import SourceModelSpec

#: The smallest size that is chosen: below it, memory is not what limits a node.
LEAST_BYTES = 2**28

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def cache_bytes(source: SourceModelSpec, config: Any, context: int, step_tokens: int) -> int:
    """Bytes of the cache on each of a replica's GPUs: the spec's number, else enough for two steps or two passages.

    Args:
        config: transformers' configuration of the source.
        context: tokens of the longest prompt.
        step_tokens: prompt tokens in one step of the engine (``step_size``).
    """
    if source.kv_cache_bytes:
        return source.kv_cache_bytes
    return max(LEAST_BYTES, 2 * max(step_tokens, context + 1) * token_bytes(source, config))


def least_cache_bytes(source: SourceModelSpec, config: Any, context: int) -> int:
    """Bytes without which the cache cannot hold one passage of ``context`` tokens and the token after it.

    Layers with a sliding window or a state of constant size are not counted: they need less, by rules of vLLM's own.
    """
    kinds = getattr(config.get_text_config(), "layer_types", None)
    layers = _layers(config) if kinds is None else sum(kind == "full_attention" for kind in kinds)
    if kinds is None and getattr(config.get_text_config(), "sliding_window", None):
        layers = 0
    return (context + 1) * token_bytes(source, config, layers)


def token_bytes(source: SourceModelSpec, config: Any, layers: int | None = None) -> int:
    """Bytes of one token on one GPU, in ``layers`` layers of attention (None: all); GPUs share the heads out."""
    layers = _layers(config) if layers is None else layers
    text = config.get_text_config()
    if getattr(text, "kv_lora_rank", None):  # DeepSeek's latent attention keeps one vector on every GPU
        width = text.kv_lora_rank + getattr(text, "qk_rope_head_dim", 0)
    else:
        heads = number_of(text, "num_attention_heads", "n_heads", "n_head")
        head_width = getattr(text, "head_dim", None) or number_of(text, "hidden_size", "d_model", "n_embd") // heads
        width = 2 * max(1, _kept_heads(text, heads) // source.tensor_parallel_size) * head_width
    return layers * width * DTYPE_BYTES[own_dtype(source, config)]


def own_dtype(source: SourceModelSpec, config: Any) -> str:
    """The type of the weights and activations: the spec's, or the checkpoint's."""
    return str(checkpoint_dtype(config)).removeprefix("torch.") if source.dtype == "auto" else source.dtype


def _kept_heads(text: Any, heads: int) -> int:
    """Heads of keys and values; Falcon's first models and StarCoder share one among all."""
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    return getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or heads


def _layers(config: Any) -> int:
    return number_of(config.get_text_config(), "num_hidden_layers", "n_layers", "n_layer")


def number_of(config: Any, *names: str) -> int:
    """The first of several names that a configuration has; 1 if it has none, as a model without attention."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), 1)
