"""Four small language models: what each is, how it is made from random weights, and how good it became.

The four differ in everything that knowledge fusion has to bridge: architecture, tokenizer, special tokens, and whether
a text begins with BOS. Each takes one CPU thread, with the matrix products in bfloat16.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import AutoModelForCausalLM as AnyModel

from pipelines.quickstart.texts import DOMAINS, Document

WIDTH = 128
HEADS = 4  # of 32 dimensions, the smallest that vLLM's attention on CPUs takes
WINDOW = 512
PASSAGE_TOKENS = 256
PASSAGE_BYTES = (128, 640)
"""A training passage has a random size in this range, so that a model is used to short and long contexts."""

EVALUATION_BYTES = 384
LONGEST_TOKEN = 16


@dataclass(frozen=True)
class Recipe:
    """How one model is made.

    Attributes:
        name: its folder.
        part: of the documents that it is trained on.
        shares: domain to its share of the training passages.
        vocabulary: number of tokens.
        special_tokens: BOS, EOS and padding.
        starts_with_bos: whether training put BOS before every passage; its tokenizer then does the same.
        is_byte_level: byte-level BPE; otherwise BPE in the manner of SentencePiece, with byte fallback.
        config: architecture for a vocabulary of that size.
        steps: of training, of ``batch`` passages each.
    """

    name: str
    part: str
    shares: dict[str, float]
    vocabulary: int
    special_tokens: tuple[str, str, str]
    starts_with_bos: bool
    is_byte_level: bool
    config: Callable[..., PretrainedConfig]
    steps: int
    learning_rate: float = 4e-3
    batch: int = 8
    seed: int = 0


def _llama(**shared) -> PretrainedConfig:
    return LlamaConfig(
        hidden_size=WIDTH, intermediate_size=352, num_hidden_layers=4, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=WINDOW, tie_word_embeddings=True, **shared,
    )


def _gpt2(**shared) -> PretrainedConfig:
    return GPT2Config(
        n_embd=WIDTH, n_layer=4, n_head=HEADS, n_positions=WINDOW, tie_word_embeddings=True,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **shared,
    )


def _neox(**shared) -> PretrainedConfig:
    return GPTNeoXConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=HEADS,
        max_position_embeddings=WINDOW, tie_word_embeddings=False, **shared,
    )


def _mistral(**shared) -> PretrainedConfig:
    return MistralConfig(
        hidden_size=WIDTH, intermediate_size=352, num_hidden_layers=3, num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2, max_position_embeddings=WINDOW, sliding_window=None,
        tie_word_embeddings=False, **shared,
    )


RECIPES = (
    Recipe("llama-docs", "sources", {"docs": 0.9, "code": 0.1}, 1500, ("<s>", "</s>", "<pad>"), True, True, _llama,
           steps=6000),
    Recipe("gpt2-code", "sources", {"docs": 0.1, "code": 0.9}, 1500,
           ("<|startoftext|>", "<|endoftext|>", "<|padding|>"), False, True, _gpt2, steps=6000, learning_rate=3e-3),
    Recipe("neox-mixed", "sources", {"docs": 0.5, "code": 0.5}, 1200, ("<|bos|>", "<|eos|>", "<|pad|>"), True, False,
           _neox, steps=6000),
    Recipe("mistral-target", "target", {"docs": 0.5, "code": 0.5}, 1200, ("[BOS]", "[EOS]", "[PAD]"), True, True,
           _mistral, steps=150),
)


def make_tokenizer(recipe: Recipe, documents: Sequence[Document]) -> PreTrainedTokenizerFast:
    """Train a tokenizer on a sample of the text that its model is trained on."""
    sample = [text for text, _ in _take(passages(recipe, documents), 4_000)]
    build = _byte_level if recipe.is_byte_level else _sentencepiece_like
    tokenizer = build(sample, recipe.vocabulary, recipe.special_tokens)
    bos, eos, pad = recipe.special_tokens
    if recipe.starts_with_bos:
        pair = (bos, tokenizer.token_to_id(bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B",
                                                                 special_tokens=[pair])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad,
                                   model_max_length=WINDOW, clean_up_tokenization_spaces=False)


def _byte_level(sample: Sequence[str], size: int, special_tokens: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(sample, _trainer(size, special_tokens, initial_alphabet=alphabet))
    return tokenizer


def _sentencepiece_like(sample: Sequence[str], size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """BPE whose space is a visible character, with a space before the text and bytes for unknown characters.

    Training must not join words, so it splits at them; the finished tokenizer needs no splitting, because no merge
    reaches across a space. Its byte tokens are ordinary entries: ``<0x41>`` in a text is six characters.
    """
    unknown, byte_tokens = "<unk>", [f"<0x{byte:02X}>" for byte in range(256)]
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    draft = Tokenizer(BPE())
    draft.normalizer = spaces
    draft.pre_tokenizer = pre_tokenizers.Split(_words(), behavior="isolated")
    draft.train_from_iterator(sample, _trainer(size, [unknown, *special_tokens, *byte_tokens], limit_alphabet=120))
    learned = _learned(draft)
    tokenizer = Tokenizer(BPE(*learned, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([unknown, *special_tokens])
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer
