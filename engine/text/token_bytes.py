"""The bytes that the entries of a vocabulary stand for, read from the serialized tokenizer.

Three kinds of vocabulary write text in three ways: GPT-2's byte alphabet (``Ġthe``), SentencePiece's space marker
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

#: What decoders write for bytes that are no characters.
REPLACEMENT = "\ufffd"

_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


def kind_of(layout: Layout, name: str) -> Kind:
    """How a vocabulary writes text, by its decoder.

    Args:
        layout: the serialized tokenizer (``tokenizer.json``).
        name: for the message.

    Raises:
        TokenizerError: no kind that says where its tokens have spaces.
    """
    parts = part_types(layout.get("decoder"), "decoders")
    if "ByteLevel" in parts:
        return "byte_level"
    if {"Metaspace", "ByteFallback"} & set(parts):
        return "space_marker"
    if "WordPiece" in parts:
        return "word_piece"
    raise TokenizerError(
        f"{name}: the tokens cannot be read as bytes (decoder: {', '.join(parts) or 'none'}); byte-level, "
        f"SentencePiece-like and WordPiece tokenizers can"
    )


def part_types(part: Mapping[str, Any] | None, inner: str) -> tuple[str, ...]:
    """Type names of a normalizer or decoder, a sequence flattened; ``inner`` is the key of its members."""
    if part is None:
        return ()
    members = part.get(inner, [])
    own = () if part["type"] == "Sequence" else (part["type"],)
    return (*own, *(name for member in members for name in part_types(member, inner)))


def token_bytes(layout: Layout, kind: Kind, pieces: Mapping[str, int], backend: Any) -> list[bytes | None]:
    """The bytes of every id; None for special tokens, the unknown token and ids that do not exist.

    An added token that is not special stands for what the tokenizer decodes it to: Gemma's ``▁▁▁▁`` for four spaces.
    Where that is no text, because its characters happen to be letters of the byte alphabet, it stands for itself.

    Args:
        pieces: the vocabulary with added tokens, piece to id.
        backend: the ``tokenizers.Tokenizer``.
    """
    added = {token["id"]: token for token in layout["added_tokens"]}
    unknown = unknown_piece(layout["model"])
    found: list[bytes | None] = [None] * (max(pieces.values()) + 1)
    for piece, token in pieces.items():
        if token not in added and (piece != unknown or kind == "byte_level"):
            found[token] = piece_bytes(piece, kind, layout["model"])
    written = {token: added[token]["content"] for token in added if not added[token]["special"]}
    decoded = decoded_within(backend, list(written)) if kind != "word_piece" else [None] * len(written)
    for (token, content), text in zip(written.items(), decoded, strict=True):
        found[token] = (content if text is None or REPLACEMENT in text else text).encode("utf8")
    return found


def decoded_within(backend: Any, tokens: Sequence[int]) -> list[str | None]:
    """The text of each id between two letters, where decoders strip nothing; None if a decoder changes the letters."""
    letter = backend.encode("a", add_special_tokens=False).ids[-1:]
    before = backend.decode(letter, skip_special_tokens=False)
    after = backend.decode(letter * 2, skip_special_tokens=False)[len(before) :]
    texts = backend.decode_batch([[*letter, token, *letter] for token in tokens], skip_special_tokens=False)
    return [
        text[len(before) : len(text) - len(after)]
        if before and after and text.startswith(before) and text.endswith(after)
        else None
        for text in texts
    ]


def check_token_bytes(found: Sequence[bytes | None], kind: Kind, backend: Any, name: str, most: int) -> None:
    """Compare the bytes of up to ``most`` ids, spread over the vocabulary, with what the tokenizer decodes them to.

    Left out are ids whose bytes are no whole characters, and WordPiece, whose decoder sets spaces by rules of its own.

    Raises:
        TokenizerError: an id decodes to other bytes.
    """
    if kind == "word_piece":
        return
    tokens = [token for token in range(0, len(found), max(1, len(found) // most)) if _is_text(found[token])]
    for token, text in zip(tokens, decoded_within(backend, tokens), strict=True):
        data = found[token]
        if data is not None and text is not None and REPLACEMENT not in text and text.encode("utf8") != data:
            raise TokenizerError(
                f"{name}: the token {backend.id_to_token(token)!r} ({token}) should stand for {data!r}, and decodes to "
                f"{text!r}; this tokenizer cannot be aligned by bytes"
            )


def _is_text(data: bytes | None) -> bool:
    try:
        return data is not None and bool(data.decode("utf8"))
    except UnicodeDecodeError:
        return False


def piece_bytes(piece: str, kind: Kind, model: Mapping[str, Any]) -> bytes:
    """The bytes of one vocabulary entry.

    A byte-level entry with a character outside the alphabet comes from no text; it decodes to itself.
    """
    if kind == "byte_level":
        try:
            return piece.translate(_LATIN_OF_ALPHABET).encode("latin-1")
        except UnicodeEncodeError:
            return piece.encode("utf8")
    if kind == "word_piece":
        return _unmarked(piece, model["continuing_subword_prefix"]).replace(SPACE_MARKER, " ").encode("utf8")
    if model.get("byte_fallback") and _BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE_MARKER, " ").encode("utf8")


def is_byte_piece(piece: str, kind: Kind) -> bool:
    """Whether a piece is written like ``<0x0A>``: it stands for a byte where there is no better piece."""
    return kind == "space_marker" and _BYTE_PIECE.fullmatch(piece) is not None


def unified_piece(piece: str, kind: Kind, model: Mapping[str, Any]) -> str:
    """A piece with the space marker ``▁`` whatever its kind, all else as written; what MinED compares."""
    if kind == "byte_level":
        return piece.replace(BYTE_TO_CHARACTER[ord(" ")], SPACE_MARKER)
    if kind == "word_piece":
        return _unmarked(piece, model["continuing_subword_prefix"])
    return piece


def _unmarked(piece: str, continuing_prefix: str) -> str:
    """A WordPiece entry in SentencePiece's writing.

    Word starts follow a space, except those that are split off without one: punctuation, symbols and ideographs.
    """
    if piece.startswith(continuing_prefix):
        return piece[len(continuing_prefix) :]
    after_space = piece[:1].isalnum() and unicodedata.category(piece[0]) != "Lo"
    return SPACE_MARKER + piece if after_space else piece


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

#: The alphabet's characters to those of Latin-1, whose code is the byte; what is outside the alphabet to none of them.
_LATIN_OF_ALPHABET = dict.fromkeys(range(256), REPLACEMENT) | {
    ord(character): chr(byte) for character, byte in CHARACTER_TO_BYTE.items()
}
