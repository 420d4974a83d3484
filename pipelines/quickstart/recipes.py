"""The recipes of the quickstart's four models: architecture, tokenizer, BOS and training text.

They differ in all that knowledge fusion has to bridge: architecture, vocabulary, handling of spaces, strings of the
special tokens, tied or untied embeddings, and BOS at the start of a text or not. The source models are trained on 12 to
16 times as many tokens as the target model, and each prefers another domain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

WIDTH = 128
HEADS = 4  # of 32 dimensions, the smallest that vLLM's attention on CPUs takes
WINDOW = 512
INITIAL_SPREAD = 0.06  # of the weights; the usual 0.02 is made for wider models and starts these slowly
UNKNOWN = "<unk>"
LONGEST_TOKEN = 16  # characters: longer ones are rulers and indentation


WORDS = r"\n▁*|▁?\w+|▁?[^\w\s▁]+|▁+|\s+"
"""A line break with its indentation, a word with the space before it, punctuation with the space before it."""


@dataclass(frozen=True)
class Recipe:
    """The recipe of one model.

    Attributes:
        name: its folder.
        part: of the documents that it is trained on.
        shares: domain to its share of the training passages.
        vocabulary: number of tokens.
        special_tokens: BOS, EOS and padding.
        starts_with_bos: whether training put BOS before every passage; its tokenizer then does the same.
        is_byte_level: byte-level BPE; otherwise BPE in the manner of SentencePiece, with byte fallback.
        config: architecture for a vocabulary of that size.
        steps: of training, of eight passages each.
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
    seed: int = 0


def _llama(**shared) -> PretrainedConfig:
    return LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=352,
        initializer_range=INITIAL_SPREAD,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        **shared,
    )


def _gpt2(**shared) -> PretrainedConfig:
    return GPT2Config(
        n_embd=WIDTH,
        initializer_range=INITIAL_SPREAD,
        n_layer=4,
        n_head=HEADS,
        n_positions=WINDOW,
        tie_word_embeddings=True,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **shared,
    )


def _neox(**shared) -> PretrainedConfig:
    return GPTNeoXConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        initializer_range=INITIAL_SPREAD,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=False,
        **shared,
    )


def _mistral(**shared) -> PretrainedConfig:
    return MistralConfig(
        hidden_size=WIDTH,
        intermediate_size=352,
        initializer_range=INITIAL_SPREAD,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=WINDOW,
        sliding_window=None,
        tie_word_embeddings=False,
        **shared,
    )


RECIPES = (
    Recipe(
        "llama-docs",
        "sources",
        {"docs": 0.9, "code": 0.1},
        1500,
        ("<s>", "</s>", "<pad>"),
        True,
        True,
        _llama,
        steps=2400,
    ),
    Recipe(
        "gpt2-code",
        "sources",
        {"docs": 0.1, "code": 0.9},
        1500,
        ("<|startoftext|>", "<|endoftext|>", "<|padding|>"),
        False,
        True,
        _gpt2,
        steps=2400,
        learning_rate=3e-3,
    ),
    Recipe(
        "neox-mixed",
        "sources",
        {"docs": 0.5, "code": 0.5},
        1200,
        ("<|bos|>", "<|eos|>", "<|pad|>"),
        True,
        False,
        _neox,
        steps=1600,
    ),
    Recipe(
        "mistral-target",
        "target",
        {"docs": 0.5, "code": 0.5},
        1200,
        ("[BOS]", "[EOS]", "[PAD]"),
        True,
        True,
        _mistral,
        steps=150,
    ),
)


def make_tokenizer(recipe: Recipe, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the model's own mixture of domains."""
    build = _byte_level if recipe.is_byte_level else _sentencepiece_like
    tokenizer = build(texts, recipe.vocabulary, recipe.special_tokens)
    bos, eos, pad = recipe.special_tokens
    if recipe.starts_with_bos:
        pair = (bos, tokenizer.token_to_id(bos))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[pair]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        **({} if recipe.is_byte_level else {"unk_token": UNKNOWN}),
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def _byte_level(texts: Sequence[str], size: int, special_tokens: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, _trainer(size, special_tokens, initial_alphabet=alphabet))
    return tokenizer


def _sentencepiece_like(texts: Sequence[str], size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """BPE whose space is a visible character, with a space before the text and bytes for unknown characters.

    Training must not join words, so it splits at them; the finished tokenizer needs no splitting, because no merge
    reaches across a space. Its byte tokens are ordinary entries: ``<0x41>`` in a text is six characters.
    """
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    draft = Tokenizer(BPE())
    draft.normalizer = spaces
    draft.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    draft.train_from_iterator(texts, _trainer(size, [UNKNOWN, *special_tokens, *byte_tokens], limit_alphabet=120))
    model = json.loads(draft.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(BPE(model["vocab"], merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (UNKNOWN, *special_tokens)])
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _trainer(size: int, special_tokens: Sequence[str], **alphabet) -> BpeTrainer:
    return BpeTrainer(
        vocab_size=size,
        special_tokens=list(special_tokens),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
        **alphabet,
    )
