"""Cutting: from documents and conversations to passages that every model can take at once.

A document's passage is a run of its bytes. Cuts lie where a token of *every* tokenizer ends, so that no model sees half
of its own token; nothing is decoded and encoded again, and every byte is covered exactly once. A conversation is one
passage: whole turns from the beginning, as many as fit every model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.corpus.documents import Conversation, Document
from engine.corpus.passages import Passage
from engine.corpus.windows import SPECIAL_TOKENS
from engine.errors import RecordError
from engine.model_files.checkpoint import Checkpoint
from engine.text.chat import ChatTemplate, Message, Rendering, beginnings, content_of
from engine.text.tokenization import PassageTokenizer

#: Text that is tokenized at once to find one cut, in bytes a token of the smallest window: first the lesser, and the
#: greater where that does not fill any window. Text that a tokenizer knows has three to five bytes a token, so eight
#: reach beyond the window; the cost is linear in the document's length.
FIRST_BYTES_PER_TOKEN, MOST_BYTES_PER_TOKEN = 5, 8

#: Tokens before the end of a text that may be others in a longer text.
UNSURE_TOKENS = 32


@dataclass(frozen=True)
class Cut:
    """The passages of one document or conversation.

    Attributes:
        passages: in order.
        left_out: a sentence on what does not fit and is in no passage; empty where everything fits.
        notes: sentences on what models pass over, each the same for many conversations.
    """

    passages: list[Passage]
    left_out: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cutter:
    """Cuts documents and conversations into passages that fit every model.

    It loads its tokenizers where it cuts, so it can be made in one process and used in another.

    Attributes:
        checkpoints: of the target model and all source models, for their tokenizers.
        windows: the text tokens (BOS and EOS not counted) that each model can take; at least 8.
        overlap_bytes: text before a passage that it repeats as context, at most.
    """

    checkpoints: Sequence[Checkpoint]
    windows: Sequence[int]
    overlap_bytes: int = 0

    def cut(self, document: Document | Conversation, corpus_pass: int) -> Cut:
        """The passages of one document or conversation.

        Args:
            document: from the corpus.
            corpus_pass: number of the pass over the corpus, which is part of a passage's id.

        Raises:
            RecordError: no beginning of it fits every model.
            TokenizerError: a tokenizer loses text, or a model's template refuses the conversation.
        """
        prefix = f"{corpus_pass}/{document.path}:{document.row}"
        if isinstance(document, Conversation):
            return self._cut_conversation(document, f"{prefix}:0")
        pieces = list(self._documents.cut_with_context(document.text))
        passages = [
            Passage(f"{prefix}:{index}", text, len(text.encode("utf8")), context_bytes, index == len(pieces) - 1)
            for index, (text, context_bytes) in enumerate(pieces)
        ]
        return Cut(passages)

    def _cut_conversation(self, conversation: Conversation, passage_id: str) -> Cut:
        messages, notes = self._conversations.cut_with_notes(conversation.messages)
        if conversation.unread_keys:
            notes = (*notes, f"messages have keys that no model reads: {', '.join(conversation.unread_keys)}")
        text, left_out = content_of(messages), ""
        if text != content_of(conversation.messages):
            first, last = len(messages) + 1, len(conversation.messages)
            left_out = f"messages {first} to {last} do not fit every model and are left out"
        return Cut([Passage(passage_id, text, len(text.encode("utf8")), 0, True, messages)], left_out, notes)

    @cached_property
    def _documents(self) -> DocumentCutter:
        return DocumentCutter(self._tokenizers, self.windows, self.overlap_bytes)

    @cached_property
    def _conversations(self) -> ConversationCutter:
        return ConversationCutter(self._tokenizers, self.windows)

    @property
    def _tokenizers(self) -> list[PassageTokenizer]:
        return [PassageTokenizer.load(checkpoint) for checkpoint in self.checkpoints]


class DocumentCutter:
    """Cuts documents so that each passage fits into the window of every tokenizer.

    Args:
        tokenizers: of the target model and all source models.
        windows: the number of text tokens (BOS and EOS not counted) that each model can take; at least 8.
        overlap_bytes: text before a passage that it repeats as context, at most.
    """

    def __init__(self, tokenizers: Sequence[PassageTokenizer], windows: Sequence[int], overlap_bytes: int = 0):
        smallest: dict[str, tuple[PassageTokenizer, int]] = {}  # models that share a tokenizer share their tokens
        for tokenizer, window in zip(tokenizers, windows, strict=True):
            _, other = smallest.get(tokenizer.fingerprint, (tokenizer, window))
            smallest[tokenizer.fingerprint] = (tokenizer, min(window, other))
        self._tokenizers = list(smallest.values())
        self._lookaheads = [bytes_each * min(windows) for bytes_each in (FIRST_BYTES_PER_TOKEN, MOST_BYTES_PER_TOKEN)]
        self._overlap_bytes = overlap_bytes

    def cut(self, document: str) -> Iterator[str]:
        """The passages of one document, in order; without overlap they join to the document."""
        return (passage for passage, _ in self.cut_with_context(document))

    def cut_with_context(self, document: str) -> Iterator[tuple[str, int]]:
        """Each passage, and how many bytes at its beginning are context; without these they join to the document."""
        data = document.encode("utf8")
        start = 0
        while start < len(data):
            passage, context_bytes = self._next(data, start)
            yield passage, context_bytes
            start += len(passage.encode("utf8")) - context_bytes

    def _next(self, data: bytes, start: int) -> tuple[str, int]:
        """The passage whose new text begins at ``start``, with context if every tokenizer has a token end there."""
        for begin in self._beginnings(data, start):
            passage = self._longest_prefix(data, begin, start - begin)
            if begin == start or (passage and all(start - begin in ends for ends in self._ends(passage))):
                return passage, start - begin
        raise AssertionError("the last beginning is without context and always serves")

    def _beginnings(self, data: bytes, start: int) -> Iterator[int]:
        """Where a passage may begin: at the first space within the overlap, or without context."""
        if self._overlap_bytes:
            for begin in range(max(0, start - self._overlap_bytes), start):
                if begin == 0 or data[begin : begin + 1].isspace():
                    yield begin
                    break
        yield start

    def _ends(self, text: str) -> list[np.ndarray]:
        return [tokenizer.encode(text)[1] for tokenizer, _ in self._tokenizers]

    def _longest_prefix(self, document: bytes, begin: int, context_bytes: int) -> str:
        """The longest good text from ``begin`` on that fits every window; all the rest if it fits.

        Empty if there is context and only context fits.
        """
        data, ends = self._ahead(document, begin)
        text = data.decode("utf8")
        fits = all(len(end) <= window for end, (_, window) in zip(ends, self._tokenizers, strict=True))
        if fits and begin + len(data) == len(document):
            return text
        for cut in self._cuts(data, ends):
            if cut > context_bytes and self._fits(data, cut, ends):
                return data[:cut].decode("utf8")
        if context_bytes:
            return ""
        raise RecordError(f"no beginning of {text[:40]!r} fits every model's window; raise max_context_tokens")

    def _ahead(self, document: bytes, begin: int) -> tuple[bytes, list[np.ndarray]]:
        """Text from ``begin`` on that fills a window, or all that is looked at; every tokenizer's ends in it."""
        for lookahead in self._lookaheads:
            data = document[begin : _character_boundary(document, begin + lookahead)]
            ends = self._ends(data.decode("utf8"))
            fill = max(len(end) - window for end, (_, window) in zip(ends, self._tokenizers, strict=True))
            if fill > UNSURE_TOKENS or begin + len(data) == len(document):
                break
        return data, ends

    def _cuts(self, data: bytes, ends: Sequence[np.ndarray]) -> Iterator[int]:
        """Places to cut, best first: common token ends before a space, any common token ends, any characters."""
        windows = [window for _, window in self._tokenizers]
        limit = min(int(end[min(len(end), window) - 1]) for end, window in zip(ends, windows, strict=True))
        is_common = np.append(np.frombuffer(data, np.uint8) & 0xC0 != 0x80, True)[: limit + 1]
        is_common[0] = False
        for end in ends:
            is_end = np.zeros(limit + 1, bool)
            is_end[end[end <= limit]] = True
            is_common &= is_end
        common = np.flatnonzero(is_common)[::-1].tolist()
        yield from (cut for cut in common if cut > limit // 2 and data[cut : cut + 1].isspace())
        yield from common
        while limit > 0:
            yield _character_boundary(data, limit)
            limit //= 2

    def _fits(self, data: bytes, cut: int, ends: Sequence[np.ndarray]) -> bool:
        """Whether the first ``cut`` bytes fit every window; alone they may have more tokens than within ``data``.

        Args:
            ends: of every tokenizer in ``data``.
        """
        place, prefix = data[cut - 1 : cut + 1], data[:cut].decode("utf8")
        return all(
            (np.searchsorted(end, cut, "right") if tokenizer.splits(place) else len(tokenizer.encode(prefix)[0]))
            <= window
            for (tokenizer, window), end in zip(self._tokenizers, ends, strict=True)
        )


def _is_boundary(data: bytes, position: int) -> bool:
    """Whether a character starts (or the text ends) at ``position``: UTF-8 continuation bytes are 0b10xxxxxx."""
    return position >= len(data) or data[position] & 0xC0 != 0x80


def _character_boundary(data: bytes, position: int) -> int:
    """The last character boundary at or before ``position``; the first one after the start if there is none."""
    position = min(position, len(data))
    while not _is_boundary(data, position):
        position -= 1
    if position:
        return position
    return next(end for end in range(1, len(data) + 1) if _is_boundary(data, end))


class ConversationCutter:
    """Cuts conversations after an answer, before the first one that does not fit every model.

    The turns after the cut are not learned: without the turns before they would be another conversation.

    Args:
        tokenizers: of the target model and all source models.
        windows: the text tokens that each model can take; a template may use the places of BOS and EOS as well.

    Raises:
        TokenizerError: a tokenizer has no chat template that can be learned from.
    """

    def __init__(self, tokenizers: Sequence[PassageTokenizer], windows: Sequence[int]):
        self._limits = [
            (tokenizer.name, ChatTemplate.of(tokenizer), window + SPECIAL_TOKENS)
            for tokenizer, window in zip(tokenizers, windows, strict=True)
        ]

    def cut(self, messages: Sequence[Message]) -> list[Message]:
        """The longest beginning that ends with an answer and fits every model; see ``cut_with_notes``."""
        return self.cut_with_notes(messages)[0]

    def cut_with_notes(self, messages: Sequence[Message]) -> tuple[list[Message], tuple[str, ...]]:
        """The longest beginning that ends with an answer and fits every model; sentences on what templates leave out.

        Raises:
            RecordError: not even the first answer fits.
            TokenizerError: a model's template refuses the conversation.
        """
        for beginning in beginnings(messages):
            renderings = []
            for name, template, limit in self._limits:
                renderings.append(template.encode(beginning))
                tokens = len(renderings[-1].token_ids)
                if tokens > limit:
                    too_long = f"{tokens} tokens for {name}, which takes {limit}"
                    break
            else:
                return beginning, self._notes(renderings)
        raise RecordError(f"the conversation up to its first answer does not fit: {too_long}; raise the model's limit")

    def _notes(self, renderings: Sequence[Rendering]) -> tuple[str, ...]:
        return tuple(
            f"the chat template of {name} leaves out messages with the role {role!r}"
            for (name, *_), rendering in zip(self._limits, renderings, strict=True)
            for role in dict.fromkeys(rendering.left_out)
        )
