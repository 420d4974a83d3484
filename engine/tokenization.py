"""Tokenizers to ids and exact UTF-8 byte end offsets; special tokens by role.

Bytes are the one scale that all tokenizers share. A token's bytes come from its vocabulary entry, not from the
character offsets of the library: those cannot tell the three tokens of a split emoji apart. Every encoding is checked
against the text, so a tokenizer that drops or changes anything is refused, not trusted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from engine.errors import TokenizerError

#: The id of a role that a tokenizer does not have.
NO_ROLE = -1

_SPACE_MARKER = "\u2581"
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class PassageTokenizer:
    """One model's tokenizer, as alignment needs it.

    Attributes:
        name: the checkpoint, for messages.
        token_bytes: the bytes of each id; None for special tokens and ids that stand for no text.
        vocab_size: number of ids, added tokens included.
        bos_id, eos_id, pad_id: ids by role, ``NO_ROLE`` where the model has none.
        adds_bos: whether the tokenizer puts BOS in front of a text by itself.
        fingerprint: changes with everything that changes ids or bytes.
    """

    def __init__(self, tokenizer: Any, name: str):
        """Wrap a fast Hugging Face tokenizer; see ``load``."""
        from tokenizers import Tokenizer

        if not getattr(tokenizer, "is_fast", False):
            raise TokenizerError(f"{name}: the tokenizer has no tokenizer.json; save it in the fast format first")
        serialized = tokenizer.backend_tokenizer.to_str()
        self._tokenizer = Tokenizer.from_str(serialized)
        self._tokenizer.encode_special_tokens = True  # a special string inside the text is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = name
        layout = json.loads(serialized)
        self._is_byte_level = _is_byte_level(layout, name)
        self.bos_id, self.eos_id, self.pad_id = (
            NO_ROLE if role is None else int(role)
            for role in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        )
        self.adds_bos = self.bos_id != NO_ROLE and tokenizer("a")["input_ids"][0] == self.bos_id
        self.token_bytes = self._all_token_bytes(layout)
        self.vocab_size = len(self.token_bytes)
        self._ranks = self._all_ranks(layout)
        lengths = [len(data) if data is not None else 0 for data in self.token_bytes]
        self._byte_lengths = np.array(lengths, np.int32)
        roles = f"{self.bos_id} {self.eos_id} {self.pad_id}"
        self.fingerprint = hashlib.sha256((serialized + roles).encode("utf8")).hexdigest()
        self._dummy_prefix_before = {blank: self._joined(blank + "a") == f" {blank}a".encode() for blank in ("", " ")}

    @staticmethod
    @lru_cache(maxsize=16)
    def load(checkpoint: str) -> PassageTokenizer:
        """The tokenizer of a Hugging Face folder or hub name; one object a process and checkpoint.

        Raises:
            OSError, ValueError: there is no tokenizer.
            TokenizerError: it is of a kind whose tokens cannot be told as bytes.
        """
        from transformers import AutoTokenizer

        return PassageTokenizer(AutoTokenizer.from_pretrained(checkpoint), checkpoint)

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize ``text``, special strings in it as plain text, nothing added.

        Returns:
            ids int32 [n]; end_bytes int32 [n]: UTF-8 bytes of the text consumed after each token.

        Raises:
            TokenizerError: the tokens do not add up to the text; names the first place where they differ.
        """
        ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        data = text.encode("utf8")
        pieces = [self.token_bytes[token] for token in ids]
        joined = b"".join(piece for piece in pieces if piece is not None)
        end_bytes = np.cumsum(self._byte_lengths[ids], dtype=np.int32)
        if joined == data:
            return ids, end_bytes
        if joined == b" " + data:  # SentencePiece's dummy prefix: a space that is not in the text
            return ids, end_bytes - 1
        raise TokenizerError(self._difference(text, joined))

    def encode_with_roles(self, text: str, add_bos: bool, ends_document: bool) -> tuple[np.ndarray, np.ndarray]:
        """As ``encode``, with BOS in front (end 0) and EOS behind (end = all bytes) where wanted and there is one."""
        ids, end_bytes = self.encode(text)
        before = [self.bos_id] if add_bos and self.bos_id != NO_ROLE else []
        after = [self.eos_id] if ends_document and self.eos_id != NO_ROLE else []
        num_bytes = end_bytes[-1] if len(end_bytes) else 0
        return (
            np.concatenate([before, ids, after]).astype(np.int32),
            np.concatenate([[0] * len(before), end_bytes, [num_bytes] * len(after)]).astype(np.int32),
        )

    def has_dummy_prefix(self, text: str) -> bool:
        """Whether ``encode`` begins ``text`` with a blank that is not in it; some kinds add none before a blank."""
        return self._dummy_prefix_before[" " if text.startswith(" ") else ""]

    def tokens_within(self, data: bytes) -> list[int]:
        """The ids of ``data`` as it would be tokenized in the middle of a text, as one pre-token.

        Bytes that are no whole characters are covered by the longest entry that begins them. Empty if there is none.
        """
        if self._is_byte_level:
            piece = "".join(_BYTE_TO_CHARACTER[byte] for byte in data)
        else:
            try:
                piece = data.decode("utf8").replace(" ", _SPACE_MARKER)
            except UnicodeDecodeError:
                return self._longest_beginning(data)
        return [token.id for token in self._tokenizer.model.tokenize(piece)]

    def _longest_beginning(self, data: bytes) -> list[int]:
        for length in range(len(data), 0, -1):
            if data[:length] in self.id_of_bytes:
                return [self.id_of_bytes[data[:length]]]
        return []

    @cached_property
    def id_of_bytes(self) -> dict[bytes, int]:
        """The id for each run of bytes that is one token; of several, the one that the tokenizer itself would use.

        SentencePiece has every ASCII character twice, ``.`` as a piece and ``<0x2E>`` as a byte, and writes the byte
        only where there is no piece. An added token is found before any piece. What is left is a tie: the lowest id.
        """
        found: dict[bytes, int] = {}
        for token in sorted(range(self.vocab_size), key=lambda token: (self._ranks[token], token)):
            data = self.token_bytes[token]
            if data:
                found.setdefault(data, token)
        return found

    def _joined(self, text: str) -> bytes:
        """The bytes that the tokens of ``text`` stand for."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return b"".join(self.token_bytes[token] or b"" for token in ids)

    def _all_ranks(self, layout: dict[str, Any]) -> np.ndarray:
        """int8 [V]: 0 for added tokens, 1 for pieces, 2 for bytes of the byte fallback."""
        ranks = np.ones(self.vocab_size, np.int8)
        for piece, token in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if not self._is_byte_level and _BYTE_PIECE.fullmatch(piece):
                ranks[token] = 2
        ranks[[token["id"] for token in layout["added_tokens"]]] = 0
        return ranks

    def _all_token_bytes(self, layout: dict[str, Any]) -> list[bytes | None]:
        """The bytes of every id, from the vocabulary; added tokens stand for their own text, special ones for none."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = {token["id"]: token for token in layout["added_tokens"]}
        found: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
        byte_pieces = bool(layout["model"].get("byte_fallback"))
        unknown = layout["model"].get("unk_token")
        for piece, token in vocabulary.items():
            if token in added:
                found[token] = None if added[token]["special"] else piece.encode("utf8")
            elif piece == unknown and not self._is_byte_level:
                found[token] = None
            else:
                found[token] = self._piece_bytes(piece, byte_pieces)
        return found

    def _piece_bytes(self, piece: str, byte_pieces: bool) -> bytes | None:
        if self._is_byte_level:
            known = all(character in _CHARACTER_TO_BYTE for character in piece)
            return bytes(_CHARACTER_TO_BYTE[character] for character in piece) if known else None
        if byte_pieces and _BYTE_PIECE.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE_MARKER, " ").encode("utf8")

    def _difference(self, text: str, joined: bytes) -> str:
        data = text.encode("utf8")
        if joined.startswith(b" ") and not data.startswith(b" "):
            joined = joined[1:]  # the dummy prefix is no difference
        start = next((i for i, (a, b) in enumerate(zip(data, joined, strict=False)) if a != b), len(joined))
        character = len(data[:start].decode("utf8", errors="ignore"))
        return (
            f"{self.name}: the tokens do not add up to the text: at character {character} (byte {start}) the text has "
            f"{text[character : character + 12]!r}, the tokens have {joined[start : start + 12]!r}; this tokenizer "
            f"changes its input and cannot be aligned by bytes"
        )


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's alphabet: a printable character for each byte, its own where that is printable."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


_BYTE_TO_CHARACTER = _byte_alphabet()
_CHARACTER_TO_BYTE = {character: byte for byte, character in _BYTE_TO_CHARACTER.items()}


def _is_byte_level(layout: dict[str, Any], name: str) -> bool:
    """True for the byte-level alphabet, False for SentencePiece's space marker; other kinds are refused."""
    parts = _decoder_types(layout.get("decoder"))
    if "ByteLevel" in parts:
        return True
    if {"Metaspace", "ByteFallback"} & set(parts):
        return False
    kinds = ", ".join(parts) or "none"
    raise TokenizerError(
        f"{name}: tokens cannot be told as bytes (decoder: {kinds}); byte-level and SentencePiece-like ones can"
    )


def _decoder_types(decoder: dict[str, Any] | None) -> Sequence[str]:
    if decoder is None:
        return []
    inner = decoder.get("decoders", [])
    return [decoder["type"], *(kind for part in inner for kind in _decoder_types(part))]
