"""GGUF files of tiny Llamas, as llama.cpp's own script writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests.support.tiny_models import POSITIONS


def write_gguf(
    checkpoint: str,
    file: Path,
    quantized: bool = False,
    left_out: Sequence[str] = (),
    adds_bos: bool | None = None,
    chat_template: str = "",
) -> str:
    """A Llama with a byte-level tokenizer as a GGUF file; returns its path.

    Args:
        quantized: whether matrices have 8 bits a weight. left_out: tensors that the file lacks, as it names them.
        adds_bos: what the file says about BOS; None: nothing.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, json.loads((Path(checkpoint) / "tokenizer.json").read_text()))
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    if chat_template:
        writer.add_chat_template(chat_template)
    for name, tensor in model.state_dict().items():
        weights, known = _as_stored(name, tensor.numpy(), config), _name(name)
        if known in left_out or (known == "output.weight" and config.tie_word_embeddings):
            continue
        if quantized and weights.ndim > 1:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(known, quants.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(known, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def _add_tokenizer(writer: GGUFWriter, layout: dict) -> None:
    vocabulary = layout["model"]["vocab"] | {token["content"]: token["id"] for token in layout["added_tokens"]}
    special = {token["content"] for token in layout["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in layout["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _name(name: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
    }
    names |= {f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkv"}
    names |= {f"mlp.{kind}_proj": f"ffn_{kind}" for kind in ("gate", "up", "down")}
    names |= {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for known, written in names.items():
        name = name.replace(known, written)
    return name


def _as_stored(name: str, weights: np.ndarray, config: PreTrainedConfig) -> np.ndarray:
    """llama.cpp keeps the two halves of a rotated pair side by side."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weights
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    halves = weights.reshape(heads, 2, -1, weights.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))
