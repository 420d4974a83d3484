"""What bytes the entries of a vocabulary stand for, read from the serialized tokenizer.

Three kinds of vocabulary write text in three ways: GPT-2's byte alphabet (``Ġthe``), SentencePiece's blank marker
(``▁the``, with ``<0x0A>`` for bytes where there is byte fallback), and WordPiece (``the``, ``##ing``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from engine.errors import TokenizerError

Kind = Literal["byte_level", "space_marker", "word_piece"]
Layout = Mapping[str, Any]

SPACE_MARKER = "\u2581"
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


def kind_of(layout: Layout, name: str) -> Kind:
    """How a vocabulary writes text, told by its decoder.

    Args:
        layout: the serialized tokenizer (``tokenizer.json``).
        name: for the message.

    Raises:
        TokenizerError: no kind that says where its tokens have blanks.
    """
    parts = part_types(layout.get("decoder"), "decoders")
    if "ByteLevel" in parts:
        return "byte_level"
    if {"Metaspace", "ByteFallback"} & set(parts):
        return "space_marker"
    if "WordPiece" in parts:
        return "word_piece"
    raise TokenizerError(
        f"{name}: the tokens cannot be told as bytes (decoder: {', '.join(parts) or 'none'}); byte-level, "
        f"SentencePiece-like and WordPiece tokenizers can"
    )


def part_types(part: Mapping[str, Any] | None, inner: str) -> tuple[str, ...]:
    """Type names of a normalizer or decoder, a sequence flattened; ``inner`` is the key of its members."""
    if part is None:
        return ()
    members = part.get(inner, [])
    own = () if part["type"] == "Sequence" else (part["type"],)
    return (*own, *(name for member in members for name in part_types(member, inner)))


def token_bytes(layout: Layout, kind: Kind, pieces: Mapping[str, int]) -> list[bytes | None]:
    """The bytes of every id; None for special tokens, the unknown token and ids that stand for no text.

    Args:
        pieces: the vocabulary with added tokens, piece to id.
    """
    added = {token["id"]: token for token in layout["added_tokens"]}
    unknown = unknown_piece(layout["model"])
    found: list[bytes | None] = [None] * (max(pieces.values()) + 1)
    for piece, token in pieces.items():
        if token in added:
            found[token] = None if added[token]["special"] else piece.encode("utf8")
        elif piece != unknown or kind == "byte_level":
            found[token] = piece_bytes(piece, kind, layout["model"])
    return found


def piece_bytes(piece: str, kind: Kind, model: Mapping[str, Any]) -> bytes | None:
    """The bytes of one vocabulary entry; None if it has characters outside the byte alphabet."""
    if kind == "byte_level":
        known = all(character in CHARACTER_TO_BYTE for character in piece)
        return bytes(CHARACTER_TO_BYTE[character] for character in piece) if known else None
    if kind == "word_piece":
        return _unmarked(piece, model["continuing_subword_prefix"]).replace(SPACE_MARKER, " ").encode("utf8")
    if model.get("byte_fallback") and _BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE_MARKER, " ").encode("utf8")


def is_byte_piece(piece: str, kind: Kind) -> bool:
    """Whether a piece is written like ``<0x0A>``: it stands for a byte where there is no better piece."""
    return kind == "space_marker" and _BYTE_PIECE.fullmatch(piece) is not None


def unified_piece(piece: str, kind: Kind, model: Mapping[str, Any]) -> str:
    """A piece with the blank marker ``▁`` whatever its kind, all else as written; what MinED compares."""
    if kind == "byte_level":
        return piece.replace(BYTE_TO_CHARACTER[ord(" ")], SPACE_MARKER)
    if kind == "word_piece":
        return _unmarked(piece, model["continuing_subword_prefix"])
    return piece


def _unmarked(piece: str, continuing_prefix: str) -> str:
    """A WordPiece entry in SentencePiece's writing.

    Word starts follow a blank, save for those that are split off without one: punctuation, symbols and ideographs.
    """
    if piece.startswith(continuing_prefix):
        return piece[len(continuing_prefix) :]
    after_blank = piece[0].isalnum() and unicodedata.category(piece[0]) != "Lo"
    return SPACE_MARKER + piece if after_blank else piece


def unknown_piece(model: Mapping[str, Any]) -> str | None:
    """The piece for text that the vocabulary does not have; Unigram names it by its place."""
    if model.get("unk_id") is not None:
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's alphabet: a printable character for each byte, its own where that is printable."""
    printable: Sequence[int] = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


BYTE_TO_CHARACTER = _byte_alphabet()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
