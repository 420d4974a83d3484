"""The size of vLLM's key-value cache, from a source's configuration; imports neither vLLM nor torch."""

from __future__ import annotations

from typing import Any

from actors.sources.backends import device_of
from engine.model_files.configuration import checkpoint_dtype
from engine.spec import SourceModelSpec

#: Prompt tokens in one step of the engine; a vocabulary row of each is held in float32 on the CPU runner.
BATCHED_TOKENS = {"cpu": 2048, "cuda": 4096}

#: The smallest size that is chosen: below it, memory is not what limits a node.
LEAST_BYTES = 2**28

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def cache_bytes(source: SourceModelSpec, config: Any, context: int) -> int:
    """Bytes of the cache on each of a replica's GPUs: the spec's number, else enough for two steps or two passages.

    Args:
        config: transformers' configuration of the source.
        context: tokens of the longest prompt.
    """
    if source.kv_cache_bytes:
        return source.kv_cache_bytes
    tokens = 2 * max(BATCHED_TOKENS[device_of(source)], context + 1)
    return max(LEAST_BYTES, tokens * _token_bytes(source, config, _layers(config)))


def least_cache_bytes(source: SourceModelSpec, config: Any, context: int) -> int:
    """Bytes without which the cache cannot hold one passage of ``context`` tokens and the token after it.

    Layers with a sliding window or a state of constant size are not counted: they need less, by rules of vLLM's own.
    """
    kinds = getattr(config.get_text_config(), "layer_types", None)
    layers = _layers(config) if kinds is None else sum(kind == "full_attention" for kind in kinds)
    if kinds is None and getattr(config.get_text_config(), "sliding_window", None):
        layers = 0
    return (context + 1) * _token_bytes(source, config, layers)


def _token_bytes(source: SourceModelSpec, config: Any, layers: int) -> int:
    """Bytes of one token in ``layers`` layers of attention on one GPU; heads are shared out among the GPUs."""
    text = config.get_text_config()
    if getattr(text, "kv_lora_rank", None):  # DeepSeek's latent attention keeps one vector on every GPU
        width = text.kv_lora_rank + getattr(text, "qk_rope_head_dim", 0)
    else:
        heads = _number(text, "num_attention_heads", "n_heads", "n_head")
        head_width = getattr(text, "head_dim", None) or _number(text, "hidden_size", "d_model", "n_embd") // heads
        width = 2 * max(1, _kept_heads(text, heads) // source.tensor_parallel_size) * head_width
    own_bytes = checkpoint_dtype(config).itemsize if source.dtype == "auto" else _DTYPE_BYTES[source.dtype]
    return layers * width * own_bytes


def _kept_heads(text: Any, heads: int) -> int:
    """Heads of keys and values; Falcon's first models and StarCoder share one among all."""
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    return getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or heads


def _layers(config: Any) -> int:
    return _number(config.get_text_config(), "num_hidden_layers", "n_layers", "n_layer")


def _number(config: Any, *names: str) -> int:
    """The first of several names that a configuration has; 1 if it has none, as a model without attention."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), 1)
