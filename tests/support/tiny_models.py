"""Small models with random weights, on a scale at which no two rows look alike."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

POSITIONS = 128
WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "initializer_range": 0.25}
GATED = {**WIDE, "intermediate_size": 128, "num_key_value_heads": 2}


def tiny_model(
    architecture: str, vocabulary: int, seed: int = 0, tied: bool = False, positions: int = POSITIONS
) -> PreTrainedModel:
    """One of ``llama``, ``mistral``, ``gpt2`` and ``gpt-neox``, random, in float32."""
    torch.manual_seed(seed)
    shared = {"vocab_size": vocabulary, "tie_word_embeddings": tied, "max_position_embeddings": positions}
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**GATED, **shared))
    if architecture == "mistral":
        return MistralForCausalLM(MistralConfig(**GATED, **shared, sliding_window=None))
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=64, n_head=2, n_layer=2, initializer_range=0.25, **shared))
    return GPTNeoXForCausalLM(GPTNeoXConfig(**WIDE, intermediate_size=128, rotary_pct=0.5, **shared))


def tiny_checkpoint(folder: Path, architecture: str, tokenizer: Path | None = None, seed: int = 0, **how) -> str:
    """Save a tiny model, and its tokenizer if given, in Hugging Face format."""
    size = len(AutoTokenizer.from_pretrained(tokenizer)) if tokenizer else 400
    model = tiny_model(architecture, size, seed, **how)
    if tokenizer:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
        loaded.save_pretrained(folder)
        model.config.bos_token_id, model.config.eos_token_id = loaded.bos_token_id, loaded.eos_token_id
    model.save_pretrained(folder)
    return str(folder)


def single_layer_checkpoint(folder: Path, like: Path) -> str:
    """Save a Llama of one small layer with the tokenizer of another checkpoint, for runs whose models take no time."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(like)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
