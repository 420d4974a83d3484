"""Three small real tokenizers, trained in memory on a few sentences: the kinds that the engine must distinguish."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the cat sat on the mat.",
    "def main():\n    for index in range(10):\n        print(index)\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Voix ambiguë d'un cœur qui au zéphyr préfère les jattes de kiwis.",
    "one two three some words of a document without an end return the number of items",
    "1995, 2024, 3.14159; emoji 🙂 and 日本語 and עברית",
]
VOCABULARY = 400


def byte_level_with_bos() -> PreTrainedTokenizerFast:
    """GPT-2's alphabet; puts ``<s>`` in front of a text, as Llama-3 does with its own."""
    tokenizer = _byte_level(["<s>", "</s>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def byte_level_without_bos() -> PreTrainedTokenizerFast:
    """GPT-2's alphabet and habit: no BOS, ``<|endoftext|>`` after a document."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level([end], vocabulary=VOCABULARY - 60), bos_token=end, eos_token=end, pad_token=end
    )


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Llama-2's kind: ``▁`` for spaces, a dummy prefix, bytes for unknown characters."""
    special = ["<unk>", "<bos>", "<eos>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 30,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
        limit_alphabet=60,
    )
    tokenizer.train_from_iterator([word for text in SENTENCES for word in text.split()] * 2, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = _without_special_bytes(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<unk>"
    )


def tokenizer_folders(folder: Path) -> list[Path]:
    """All three, saved as Hugging Face folders."""
    made = {
        "byte-level-with-bos": byte_level_with_bos(),
        "byte-level-without-bos": byte_level_without_bos(),
        "sentencepiece-like": sentencepiece_like(),
    }
    for name, tokenizer in made.items():
        tokenizer.save_pretrained(folder / name)
    return [folder / name for name in made]


def _without_special_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer takes byte pieces only as special tokens; in a real model they are ordinary ones."""
    layout = json.loads(tokenizer.to_str())
    layout["added_tokens"] = [token for token in layout["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(layout))


def _byte_level(special: list[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer
