"""Tokens of the words of a text, each word tokenized once: several times faster than the library, and the same tokens.

Most words of a text have occurred before. A text is split where no token can lie across and where the tokens of both
sides are those of the two parts alone; then the tokens of the parts are those of the text. Such places are after an
ASCII letter or digit and before a space or a sign that follows a letter or digit in no entry of the vocabulary. Only
tokenizers for which this holds by construction have a cache: byte-pair encoding, whose tokens all come from its merges,
after parts that look no further than to the next character. Each tokenizer is asked about these places as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from string import ascii_letters, digits
from typing import Any

from engine.text.token_bytes import BYTE_TO_CHARACTER, SPACE_MARKER, Kind, part_types

#: Words that are kept: about 40 MB of them for each tokenizer of a process.
MOST_WORDS = 2**17

#: Before these a text may be split. No apostrophe is among them: contractions reach across.
_SIGNS = ' \n\t,.;:!?()[]{}<>"=/\\|+-*&%$#@^~`_'
_LETTERS = "A-Za-z0-9"

#: Parts of a tokenizer that look no further than to the next character.
_NORMALIZERS = {"Prepend", "Replace", "NFC"}
_PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Metaspace", "Punctuation"}

#: Texts that end with a letter or digit, and texts that follow a sign: what the tokenizer is asked about.
_LEFTS = ("a", "The", " x", "2024", "\n  b", "don't", ").c", "\xe9t", "HTTPServer", "  12")
_RIGHTS = ("", "b", " b", "  b", "\n", "1", "s", "'s", ".", ")\n", "\xe9", "\u65e5")

#: What tokenizes a text.
Encode = Callable[[str], list[int]]


class WordCache:
    """The ids of words that have occurred before.

    Args:
        signs: before these a text may be split.
        encode: tokenizes what is inside a text, where no tokenizer sets a space before it.
        token_bytes: the bytes of each id; None for ids that no word may have.
    """

    def __init__(self, signs: str, encode: Encode, token_bytes: Sequence[bytes | None]):
        others = rf"[^{_LETTERS}]++[{_LETTERS}]*+"
        self._words = re.compile(rf"[^{_LETTERS}]*+[{_LETTERS}]*+(?:(?![{re.escape(signs)}]){others})*+")
        self._places = {(letter + sign).encode() for letter in ascii_letters + digits for sign in signs}
        self._encode = encode
        self._token_bytes = token_bytes
        self._known: dict[str, list[int]] = {}
        self._inexact: set[str] = set()

    def splits(self, place: bytes) -> bool:
        """Whether a text is always split between these two bytes: the tokens before it need not be found again."""
        return place in self._places

    def tokens(self, text: str) -> tuple[str, list[int]]:
        """The beginning of ``text`` that the tokenizer must take itself, and the ids of all that follows.

        The beginning is the first word, or everything if some word's tokens are not its bytes.
        """
        if len(self._known) > MOST_WORDS:
            self._known = {}  # another thread may be reading the old one
        first, *words = self._words.findall(text) or [""]
        known = self._known
        unknown = [word for word in dict.fromkeys(words) if word not in known]
        if unknown and not self._learn(unknown, known):
            return text, []
        ids: list[int] = []
        for word in words:
            ids += known[word]
        return first, ids

    def _learn(self, words: list[str], known: dict[str, list[int]]) -> bool:
        """Tokenize words; whether the tokens of each are its bytes.

        They are words when they follow each other, too, so the tokenizer takes all of them as one text.
        """
        if not self._inexact.isdisjoint(words):
            return False
        ids = self._encode("".join(words))
        pieces = [self._token_bytes[token] for token in ids]
        place = 0
        for word in words:
            begin, data, found = place, word.encode("utf8"), b""
            while len(found) < len(data) and place < len(pieces) and pieces[place] is not None:
                found += pieces[place]
                place += 1
            if found != data:
                self._inexact.add(word)
                return False
            known[word] = ids[begin:place]
        return True


def word_cache(
    layout: Mapping[str, Any], kind: Kind, backend: Any, token_bytes: Sequence[bytes | None]
) -> WordCache | None:
    """The cache of a tokenizer; None where its tokens might lie across words.

    Args:
        layout: the serialized tokenizer.
        kind: how its vocabulary writes text.
        backend: the ``tokenizers.Tokenizer`` that takes special strings for text.
        token_bytes: see ``WordCache``.
    """
    within = _without_prefix(layout)
    if not _is_local(layout, has_prefix=within != layout):
        return None
    signs = _splitting_signs(layout, kind)
    inside = type(backend).from_str(json.dumps(within))
    inside.encode_special_tokens = True
    inside.post_processor = backend.post_processor
    encode, encode_within = _encoder(backend), _encoder(inside)
    if not signs or not _holds(signs, encode, encode_within):
        return None
    return WordCache(signs, encode_within, token_bytes)


def _encoder(backend: Any) -> Encode:
    return lambda text: backend.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _is_local(layout: Mapping[str, Any], has_prefix: bool) -> bool:
    """Whether the tokens of a word depend on the word alone, as far as the tokenizer's parts show."""
    model = layout["model"]
    added = [token for token in layout["added_tokens"] if not token["special"]]
    return (
        model["type"] == "BPE"
        and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and set(part_types(layout.get("normalizer"), "normalizers")) <= _NORMALIZERS
        and set(part_types(layout.get("pre_tokenizer"), "pretokenizers")) <= _PRE_TOKENIZERS
        and "(?<" not in json.dumps(layout.get("pre_tokenizer"))
        and not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
        and not (has_prefix and added)  # the space before a text also comes after each added token
    )


def _without_prefix(layout: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer, which sets no space before a text."""

    def plain(part: Any) -> Any:
        if isinstance(part, list):
            return [plain(member) for member in part if not isinstance(member, dict) or member.get("type") != "Prepend"]
        if not isinstance(part, dict):
            return part
        changed = {"ByteLevel": {"add_prefix_space": False}, "Metaspace": {"prepend_scheme": "never"}}
        return {key: plain(value) for key, value in part.items()} | changed.get(part.get("type"), {})

    normalizer = layout.get("normalizer")
    is_prefix = normalizer is not None and normalizer["type"] == "Prepend"
    return {
        **layout,
        "normalizer": None if is_prefix else plain(normalizer),
        "pre_tokenizer": plain(layout.get("pre_tokenizer")),
    }


def _splitting_signs(layout: Mapping[str, Any], kind: Kind) -> str:
    """The signs that follow a letter or digit in no text that a token can stand for."""
    model = layout["model"]
    merged = {"".join(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]}
    written = merged | (set(model["vocab"]) if model.get("ignore_merges") else set())
    special = {token["content"] for token in layout["added_tokens"] if token["special"]}
    added = {token["content"] for token in layout["added_tokens"]} - special
    following = {sign for piece in written - (special - merged) for sign in re.findall(rf"(?<=[{_LETTERS}]).", piece)}
    plainly = {sign for content in added for sign in re.findall(rf"(?s)(?<=[{_LETTERS}]).", content)}
    marks = {sign: BYTE_TO_CHARACTER[ord(sign)] if kind == "byte_level" else sign for sign in _SIGNS}
    if kind != "byte_level":
        marks[" "] = SPACE_MARKER
    return "".join(sign for sign in _SIGNS if marks[sign] not in following and not {sign, marks[sign]} & plainly)


def _holds(signs: str, encode: Encode, encode_within: Encode) -> bool:
    """Whether texts that are split before a sign have the tokens of their parts."""
    lefts, rights = {left: encode(left) for left in _LEFTS}, [sign + right for sign in signs for right in _RIGHTS]
    within = {right: encode_within(right) for right in rights}
    return all(encode(left + right) == lefts[left] + within[right] for left, right in product(lefts, within))
