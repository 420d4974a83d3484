"""Tokenizers to ids and exact UTF-8 byte end offsets; special tokens by role.

Bytes are the one scale that all tokenizers share. A token's bytes come from its vocabulary entry, not from the
character offsets of the library: those are the same for all three tokens of a split emoji. Only where the tokens'
bytes are not the text, because the tokenizer normalises it, marks what it does not know or drops spaces, do character
offsets serve (``engine.text.character_offsets``). Every encoding is checked against the text, so that a tokenizer that
loses anything is refused, not trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from engine.errors import TokenizerError, first_line
from engine.model_files.checkpoint import Checkpoint
from engine.model_files.local import load_tokenizer, local_checkpoint
from engine.spec.sections import Bos
from engine.text import character_offsets
from engine.text.token_bytes import (
    BYTE_TO_CHARACTER,
    SPACE_MARKER,
    check_token_bytes,
    is_byte_piece,
    kind_of,
    part_types,
    token_bytes,
    unified_piece,
    unknown_piece,
)
from engine.text.word_cache import word_cache

#: Ids whose bytes are compared with what they decode to when a tokenizer is loaded; takes milliseconds.
CHECKED_IDS = 512

#: The id of a role that a tokenizer does not have.
NO_ROLE = -1

#: Stands for an answer in a rendering: a character of private use.
_ANSWER = "\U00100000"

#: Where each token begins and ends, in characters of the text.
Offsets = Sequence[tuple[int, int]]


class PassageTokenizer:
    """One model's tokenizer, as alignment needs it.

    Attributes:
        name: the checkpoint, for messages.
        token_bytes: the bytes of each id; None for special tokens and ids that stand for no text.
        vocab_size: number of ids, added tokens included.
        bos_id, eos_id, pad_id, turn_end_id: ids by role, ``NO_ROLE`` where the model has none. A turn's end is what the
            model's own chat template puts after an assistant's message.
        adds_bos: whether BOS precedes a text: by the tokenizer itself, or as the checkpoint has it.
        normalizer_types: names of the parts of its normalizer, in order.
        fingerprint: changes with everything that changes ids or bytes.
        hugging_face: the tokenizer as given, for its chat template. backend: the ``tokenizers.Tokenizer`` that takes
            special strings for text.
        added_tokens: as tokenizer.json has them. special_tokens: the special ones of them.
    """

    def __init__(self, tokenizer: Any, name: str, backend: Any = None, bos: Bos = "tokenizer"):
        """Wrap a Hugging Face tokenizer (see ``load``).

        Args:
            tokenizer: as transformers loads it.
            name: for messages.
            backend: its ``tokenizers.Tokenizer``, if not its own.
            bos: whether BOS precedes a text: as the tokenizer does by itself, always, or never.
        """
        from tokenizers import Tokenizer, processors

        serialized = (backend or tokenizer.backend_tokenizer).to_str()
        self.backend = Tokenizer.from_str(serialized)
        self.backend.encode_special_tokens = True  # a special string inside the text is text
        self.backend.post_processor = processors.TemplateProcessing(single="$A")  # GPT-2's would trim the offsets
        if getattr(self.backend.model, "dropout", None):
            self.backend.model.dropout = None  # meant for training: a word would be split another way each time
        self.backend.no_truncation()
        self.backend.no_padding()
        self.name = name
        self.hugging_face = tokenizer
        layout = json.loads(serialized)
        self._model = {key: value for key, value in layout["model"].items() if key not in ("vocab", "merges")}
        self._kind = kind_of(layout, name)
        self.bos_id, self.eos_id, self.pad_id = (
            NO_ROLE if role is None else int(role)
            for role in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        )
        self.added_tokens = layout["added_tokens"]
        self.special_tokens = [token for token in layout["added_tokens"] if token["special"]]
        self.turn_end_id = _turn_end(tokenizer, self.special_tokens)
        self.adds_bos = self._takes_bos(bos)
        self.normalizer_types = part_types(layout.get("normalizer"), "normalizers")
        pieces = self.backend.get_vocab(with_added_tokens=True)
        self.token_bytes = token_bytes(layout, self._kind, pieces, self.backend)
        check_token_bytes(self.token_bytes, self._kind, self.backend, name, CHECKED_IDS)
        self.vocab_size = len(self.token_bytes)
        self._added = [token["id"] for token in layout["added_tokens"]]
        self._unknown_id = self.backend.token_to_id(unknown_piece(layout["model"]) or "")
        self._specials = {token["id"] for token in self.special_tokens} - {self._unknown_id}
        self._has_byte = np.zeros(256, bool)  # a byte-level vocabulary may lack bytes, which it then drops
        self._has_byte[[data[0] for data in self.token_bytes if data and len(data) == 1]] = self._kind == "byte_level"
        lengths = [len(data) if data is not None else 0 for data in self.token_bytes]
        self._byte_lengths = np.array(lengths, np.int32)
        roles = f"{self.bos_id} {self.eos_id} {self.pad_id} {self.turn_end_id}".encode()
        self.fingerprint = hashlib.sha256(serialized.encode() + roles).hexdigest()
        self._words = word_cache(layout, self._kind, self.backend, self.token_bytes)
        self._dummy_prefix_before = {space: self._joined(space + "a") == f" {space}a".encode() for space in ("", " ")}

    @staticmethod
    def load(checkpoint: Checkpoint) -> PassageTokenizer:
        """The tokenizer of a checkpoint; one object a process, whatever adapter lies over the weights.

        Raises:
            OSError, ValueError: there is no such checkpoint, or no tokenizer in it.
            TokenizerError: it is of a kind whose tokens cannot be read as bytes, or lacks the BOS that is asked for.
        """
        return _loaded(replace(checkpoint, adapter=""))

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize ``text``, special strings in it as plain text, without roles.

        Returns:
            ids int32 [n]; end_bytes int32 [n]: UTF-8 bytes of the text consumed after each token. Of several tokens
            with one end the last has consumed them all.

        Raises:
            TokenizerError: the tokens do not add up to the text; names the first character that is lost.
        """
        beginning, known = self._words.tokens(text) if self._words is not None else (text, [])
        tokens = self._tokens(beginning)
        ends = self._ends_by_bytes(beginning, tokens)
        if ends is None:
            tokens = self._tokens(text) if known else tokens
            return np.array(tokens, np.int32), self.end_bytes(text, tokens)
        lengths = self._byte_lengths[np.array(known, np.int32)]
        others = np.cumsum(lengths, dtype=np.int32) + np.int32(len(beginning.encode("utf8")))
        return np.array(tokens + known, np.int32), np.concatenate([ends, others])

    def splits(self, place: bytes) -> bool:
        """Whether a text that ends between these two bytes has the tokens that it has within a longer text."""
        return self._words is not None and self._words.splits(place)

    def ids(self, text: str, backend: Any) -> list[int]:
        """Ids of ``text``, without offsets, which cost a fifth more; special strings may be among them.

        Args:
            backend: as of ``tokens``.

        Raises:
            TokenizerError: the library cannot tokenize it.
        """
        with self._words_for(text):
            return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def tokens(self, text: str, backend: Any, apart: Set[int] | None = None) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of ``text``, special strings in it taken apart.

        Args:
            backend: ``self.backend``, or a copy of it that knows further tokens.
            apart: ids that no text may have; None: those of special tokens.

        The library keeps special strings from being *added* tokens; a model that has them in its vocabulary, such as
        Unigram, finds them all the same.

        Raises:
            TokenizerError: as ``ids``.
        """
        with self._words_for(text):
            encoding = backend.encode(text, add_special_tokens=False)
        apart = self._specials if apart is None else apart - {self._unknown_id}
        if apart.isdisjoint(encoding.ids):
            return encoding.ids, encoding.offsets
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for token, piece, span in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
            parts = [token]
            if token in apart:
                model = self.backend.model
                parts = [found.id for part in (piece[:1], piece[1:]) for found in model.tokenize(part)]
            ids += parts
            offsets += [span] * len(parts)
        return ids, offsets

    def end_bytes(self, text: str, tokens: Sequence[int], offsets: Offsets | None = None) -> np.ndarray:
        """UTF-8 bytes of ``text`` consumed after each of its tokens, int32 [n]; see ``encode``.

        Args:
            offsets: where each token begins and ends, in characters, as the library tells it; None: asked for where the
                tokens' own bytes do not say.

        Raises:
            TokenizerError: as ``encode``.
        """
        ends = self._ends_by_bytes(text, tokens)
        if ends is not None:
            return ends
        ids, data, joined = np.array(tokens, np.int32), text.encode("utf8"), self._bytes_of(tokens)
        kept = np.flatnonzero(self._has_byte[np.frombuffer(data, np.uint8)])
        if joined and len(kept) == len(joined) and bytes(data[place] for place in kept) == joined:
            ends = kept[np.cumsum(self._byte_lengths[ids]) - 1].astype(np.int32) + 1
            return np.append(ends[:-1], np.int32(len(data)))
        if offsets is None:
            tokens, offsets = self.tokens(text, self.backend)
        return self._ends_by_characters(text, tokens, offsets)

    def encode_with_roles(self, text: str, add_bos: bool, ends_document: bool) -> tuple[np.ndarray, np.ndarray]:
        """As ``encode``, with BOS before (end 0) and EOS after it (end = all bytes) where wanted and there is one."""
        ids, end_bytes = self.encode(text)
        before = [self.bos_id] if add_bos and self.bos_id != NO_ROLE else []
        after = [self.eos_id] if ends_document and self.eos_id != NO_ROLE else []
        num_bytes = end_bytes[-1] if len(end_bytes) else 0
        return (
            np.concatenate([before, ids, after]).astype(np.int32),
            np.concatenate([[0] * len(before), end_bytes, [num_bytes] * len(after)]).astype(np.int32),
        )

    def has_dummy_prefix(self, text: str) -> bool:
        """Whether ``encode`` begins ``text`` with a space that is not in it; some kinds add none before a space."""
        return self._dummy_prefix_before[" " if text.startswith(" ") else ""]

    @property
    def added_ids(self) -> frozenset[int]:
        """The ids of added tokens, which are found in a text before its splitting and its merges."""
        return frozenset(self._added)

    def is_byte_piece(self, token: int) -> bool:
        """Whether a token is written like ``<0x0A>``: it stands for a byte where there is no better piece."""
        return is_byte_piece(self._raw_pieces[token], self._kind)

    def tokens_within(self, data: bytes) -> list[int]:
        """The ids of ``data`` as it would be tokenized in the middle of a text, as one pre-token.

        Bytes that are no whole characters, and WordPiece's words, are covered by the longest entry that begins them.
        Empty if there is none, or a character that the vocabulary has no token for.
        """
        if self._kind == "word_piece":
            return self._longest_beginning(data)
        if self._kind == "byte_level":
            piece = "".join(BYTE_TO_CHARACTER[byte] for byte in data)
        else:
            try:
                piece = data.decode("utf8").replace(" ", SPACE_MARKER)
            except UnicodeDecodeError:
                return self._longest_beginning(data)
        try:
            return [token.id for token in self.backend.model.tokenize(piece)]
        except Exception:  # the library's only one: Unigram without a token for the unknown
            return []

    @cached_property
    def id_of_bytes(self) -> dict[bytes, int]:
        """The id for each run of bytes that is one token; of several, the one that the tokenizer itself would use.

        SentencePiece has every ASCII character twice, ``.`` as a piece and ``<0x2E>`` as a byte, and writes the byte
        only where there is no piece. An added token is found before any piece. What is left is a tie: the lowest id.
        """
        ranks = [1 + is_byte_piece(piece, self._kind) for piece in self._raw_pieces]
        for token in self._added:
            ranks[token] = 0
        found: dict[bytes, int] = {}
        for token in sorted(range(self.vocab_size), key=lambda token: (ranks[token], token)):
            data = self.token_bytes[token]
            if data:
                found.setdefault(data, token)
        return found

    @cached_property
    def pieces(self) -> list[str]:
        """Every id as written in the vocabulary, spaces as ``▁`` in all kinds; empty for ids that do not exist."""
        added = set(self._added)
        return [
            piece if token in added or not piece else unified_piece(piece, self._kind, self._model)
            for token, piece in enumerate(self._raw_pieces)
        ]

    @cached_property
    def decoded(self) -> list[str]:
        """Every id decoded alone: incomplete characters as U+FFFD, SentencePiece's leading space stripped."""
        texts = [
            piece if data is None else data.decode("utf8", errors="replace")
            for piece, data in zip(self._raw_pieces, self.token_bytes, strict=True)
        ]
        return texts if self._kind == "byte_level" else [text.removeprefix(" ") for text in texts]

    @cached_property
    def _raw_pieces(self) -> list[str]:
        pieces = [""] * self.vocab_size
        for piece, token in self.backend.get_vocab(with_added_tokens=True).items():
            pieces[token] = piece
        return pieces

    def _takes_bos(self, bos: Bos) -> bool:
        if bos == "always" and self.bos_id == NO_ROLE:
            raise TokenizerError(f"{self.name}: bos is always, but the tokenizer has no BOS; use never")
        if bos == "tokenizer" and self.bos_id != NO_ROLE:
            return self.hugging_face("a")["input_ids"][:1] == [self.bos_id]
        return bos == "always"

    def _longest_beginning(self, data: bytes) -> list[int]:
        for length in range(len(data), 0, -1):
            if data[:length] in self.id_of_bytes:
                return [self.id_of_bytes[data[:length]]]
        return []

    def _tokens(self, text: str) -> list[int]:
        """Ids of ``text``, special strings in it taken apart."""
        tokens = self.ids(text, self.backend)
        return tokens if self._specials.isdisjoint(tokens) else self.tokens(text, self.backend)[0]

    @contextmanager
    def _words_for(self, text: str) -> Iterator[None]:
        """Turn an error of the library into a ``TokenizerError``; it raises a bare ``Exception``."""
        try:
            yield
        except Exception as error:  # such as a Unigram model without a token for the unknown
            raise TokenizerError(
                f"{self.name}: a text cannot be tokenized ({text[:12]!r}): {first_line(error)}"
            ) from error

    def _joined(self, text: str) -> bytes:
        """The bytes that the tokens of ``text`` stand for."""
        return self._bytes_of(self.backend.encode(text, add_special_tokens=False).ids)

    def _bytes_of(self, tokens: Sequence[int]) -> bytes:
        return b"".join([self.token_bytes[token] or b"" for token in tokens])

    def _ends_by_bytes(self, text: str, tokens: Sequence[int]) -> np.ndarray | None:
        """As ``end_bytes`` where the tokens' own bytes are the text, None elsewhere."""
        data, joined = text.encode("utf8"), self._bytes_of(tokens)
        has_prefix = joined == b" " + data and self._kind == "space_marker"  # a space that is not in the text
        if joined != data and not has_prefix:
            return None
        return np.cumsum(self._byte_lengths[np.array(tokens, np.int32)], dtype=np.int32) - np.int32(has_prefix)

    def _ends_by_characters(self, text: str, tokens: Sequence[int], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
        if text and not tokens:
            raise TokenizerError(f"{self.name}: the text {text[:12]!r} has no token at all")
        try:
            ends = character_offsets.end_bytes(text, np.array(offsets, np.int64).reshape(-1, 2))
            return self._within_characters(text.encode("utf8"), tokens, ends)
        except character_offsets.LostTextError as lost:
            context = text[max(0, lost.place - 6) : lost.place + 6]
            raise TokenizerError(
                f"{self.name}: the tokens do not add up to the text: the character {text[lost.place]!r} at "
                f"{lost.place}, in {context!r}, is in no token, or out of order, beside the token "
                f"{self._raw_pieces[tokens[lost.token]]!r}; this tokenizer loses text and cannot be aligned by bytes"
            ) from None

    def _within_characters(self, data: bytes, tokens: Sequence[int], ends: np.ndarray) -> np.ndarray:
        """Ends of tokens that are parts of one character, by their bytes, where these are the text's.

        The library gives them all the end of the character.
        """
        firsts = np.flatnonzero(np.append(True, ends[1:] != ends[:-1]))
        lasts = np.append(firsts[1:], len(ends)) - 1
        begins = np.append(0, ends[lasts[:-1]])
        for run in np.flatnonzero(lasts > firsts):
            first, last = firsts[run], lasts[run]
            parts = [self.token_bytes[token] or b"" for token in tokens[first : last + 1]]
            if all(parts) and data[begins[run] : ends[last]].endswith(b"".join(parts)):
                ends[first:last] = ends[last] - np.cumsum([len(part) for part in parts[:0:-1]])[::-1]
        return ends


@lru_cache(maxsize=16)
def _loaded(checkpoint: Checkpoint) -> PassageTokenizer:
    from transformers import PreTrainedTokenizerFast

    tokenizer = load_tokenizer(checkpoint)
    if hasattr(tokenizer, "backend_tokenizer"):
        return PassageTokenizer(tokenizer, str(checkpoint), bos=checkpoint.bos)
    try:  # Mistral's own class runs tekken.json by itself; the fast class reads the same file
        folder = local_checkpoint(checkpoint, weights=False)
        backend = PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer
    except (OSError, ValueError, TypeError) as error:
        raise TokenizerError(
            f"{checkpoint}: the tokenizer ({type(tokenizer).__name__}) has no fast form: {error}; save it as "
            f"tokenizer.json first"
        ) from error
    return PassageTokenizer(tokenizer, str(checkpoint), backend, checkpoint.bos)


def _turn_end(tokenizer: Any, special_tokens: Sequence[Mapping[str, Any]]) -> int:
    """The first special token after an answer in the chat template's rendering; ``NO_ROLE`` if there is none.

    Args:
        special_tokens: those of tokenizer.json; the tokenizer's configuration names only some of them.
    """
    if not getattr(tokenizer, "chat_template", None):
        return NO_ROLE
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    try:
        rendering: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template is a program that may refuse anything, a conversation among them
        return NO_ROLE
    _, answer, after = rendering.rpartition(_ANSWER)
    ids = {token["content"]: int(token["id"]) for token in special_tokens}
    places = [(after.index(content), -len(content), token) for content, token in ids.items() if content in after]
    return min(places)[2] if answer and places else NO_ROLE
