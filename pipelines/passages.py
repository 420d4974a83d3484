"""From documents to passages short enough for every tokenizer, cut on the original bytes.

A passage is a run of bytes of its document. Cuts lie where a token of *every* tokenizer ends, so that no model sees
half of its own token; nothing is decoded and encoded again, and every byte is covered exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.run_monitor import Meter
from engine.chat import ChatTemplate, Message, content_of
from engine.errors import RecordError, TokenizerError
from engine.ledger import Ledger
from engine.records import MESSAGES, PASSAGE, schema
from engine.result import SkippedRow
from engine.tokenization import PassageTokenizer
from pipelines.arrangement import Arrangement
from pipelines.batches import as_row
from pipelines.conversations import ConversationCutter
from pipelines.corpus import Conversation, CorpusUnit, Unreadable, read

#: Text that is tokenized at once to find one cut, in bytes a token of the smallest window. Text that a tokenizer knows
#: has three to five bytes a token, so eight reach beyond the window; the cost is linear in the document's length.
LOOKAHEAD_BYTES_PER_TOKEN = 8


#: A row of ``records.PASSAGE``, and of a conversation ``records.MESSAGES``.
Passage = tuple[str, str, int, int, bool] | tuple[str, str, int, int, bool, list[Message]]


class PassageCutter:
    """Cuts documents so that each passage fits into the window of every tokenizer.

    Args:
        tokenizers: of the target model and all source models.
        windows: the number of text tokens (BOS and EOS not counted) that each model can take; at least 8.
        overlap_bytes: text before a passage that it repeats as context, at most.
    """

    def __init__(self, tokenizers: Sequence[PassageTokenizer], windows: Sequence[int], overlap_bytes: int = 0):
        self._tokenizers = list(zip(tokenizers, windows, strict=True))
        self._lookahead = LOOKAHEAD_BYTES_PER_TOKEN * min(windows)
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
            end = _character_boundary(data, begin + self._lookahead)
            passage = self._longest_prefix(data[begin:end], end == len(data), start - begin)
            if begin == start or (passage and all(start - begin in ends for ends in self._ends(passage))):
                return passage, start - begin
        raise AssertionError("the last beginning is without context and always serves")

    def _beginnings(self, data: bytes, start: int) -> Iterator[int]:
        """Where a passage may begin: at the first blank within the overlap, or without context."""
        if self._overlap_bytes:
            for begin in range(max(0, start - self._overlap_bytes), start):
                if begin == 0 or data[begin : begin + 1].isspace():
                    yield begin
                    break
        yield start

    def _ends(self, text: str) -> list[np.ndarray]:
        return [tokenizer.encode(text)[1] for tokenizer, _ in self._tokenizers]

    def _longest_prefix(self, data: bytes, is_tail: bool, context_bytes: int) -> str:
        """The longest good beginning of ``data`` that fits every window; all of it if it is the tail and fits.

        Nothing if there is context and no more than that fits.
        """
        text = data.decode("utf8")
        ends = self._ends(text)
        fits = all(len(end) <= window for end, (_, window) in zip(ends, self._tokenizers, strict=True))
        if fits and is_tail:
            return text
        for cut in self._cuts(data, ends):
            prefix = data[:cut].decode("utf8")
            if cut > context_bytes and self._fits(
                prefix
            ):  # a beginning alone may tokenize into more than it did inside the longer text
                return prefix
        if context_bytes:
            return ""
        raise RecordError(f"no beginning of {text[:40]!r} fits every model's window; raise max_context_tokens")

    def _cuts(self, data: bytes, ends: Sequence[np.ndarray]) -> Iterator[int]:
        """Places to cut, best first: common token ends before a blank, any common token ends, any characters."""
        windows = [window for _, window in self._tokenizers]
        limit = min(int(end[min(len(end), window) - 1]) for end, window in zip(ends, windows, strict=True))
        common = ends[0]
        for other in ends[1:]:
            common = np.intersect1d(common, other, assume_unique=False)
        common = [int(cut) for cut in np.unique(common) if 0 < cut <= limit and _is_boundary(data, int(cut))]
        before_blank = [cut for cut in common if cut > limit // 2 and data[cut : cut + 1].isspace()]
        yield from reversed(before_blank)
        yield from reversed(common)
        while limit > 0:
            yield _character_boundary(data, limit)
            limit //= 2

    def _fits(self, text: str) -> bool:
        return all(len(tokenizer.encode(text)[0]) <= window for tokenizer, window in self._tokenizers)


class PassageReader:
    """Reads its share of the corpus and yields batches of passages; what cannot be read stops the run or is counted.

    Args:
        checkpoints: of the target model and all source models, for their tokenizers.
        windows, overlap_bytes: see ``PassageCutter``.
        text_column, messages_column: see the spec.
        on_error: ``fail`` or ``skip``.
        learned: passages that a checkpoint has learned already; they are left out.
        arrangement: of the passages.
        meter: of the stage ``corpus``.

    Raises:
        FusionError: the readers have died too often.
    """

    def __init__(
        self,
        checkpoints: Sequence[str],
        windows: Sequence[int],
        overlap_bytes: int,
        text_column: str,
        on_error: str,
        learned: Ledger,
        arrangement: Arrangement,
        meter: Meter,
        messages_column: str = "",
    ):
        meter.start_or_refuse()
        tokenizers = {checkpoint: PassageTokenizer.load(checkpoint) for checkpoint in checkpoints}
        self._cutter = PassageCutter([tokenizers[checkpoint] for checkpoint in checkpoints], windows, overlap_bytes)
        self._target = tokenizers[checkpoints[0]]
        self._text_column = text_column
        self._messages_column = messages_column
        if messages_column:
            self._conversations = ConversationCutter([tokenizers[name] for name in checkpoints], windows)
        self._on_error = on_error
        self._learned = learned
        self._arrangement = arrangement
        self._meter = meter

    def __call__(self, shares: pa.Table) -> Iterator[pa.Table]:
        """Shares (columns ``share``, its number, and ``units``) to batches of ``records.PASSAGE``, each as one row.

        Raises:
            RecordError: a file or row cannot be read and ``on_error`` is ``fail``; names both and the reason.
        """
        for share in shares.to_pylist():
            passages = self._measured(passage for unit in share["units"] for passage in self._passages_of(unit))
            started = time.perf_counter()
            for rows, training_blocks in self._arrangement.batches(passages, share["share"], self._learned):
                self._meter.record(passages=len(rows), tokens=0, busy_seconds=time.perf_counter() - started)
                yield as_row(self._table(rows), training_blocks)
                started = time.perf_counter()

    def _measured(self, passages: Iterable[Passage]) -> Iterator[tuple[Passage, int]]:
        """Each passage with T, as the aligner will find it."""
        for passage in passages:
            _, text, _, _, ends_document, *messages = passage
            if messages:
                yield passage, len(ChatTemplate(self._target).encode(messages[0]).token_ids)
            else:
                yield passage, len(self._target.encode_with_roles(text, self._target.adds_bos, ends_document)[0])

    def _passages_of(self, unit: dict[str, Any]) -> Iterator[Passage]:
        corpus_pass = unit.pop("corpus_pass")
        return self._passages(CorpusUnit(**unit), corpus_pass)

    def _passages(self, unit: CorpusUnit, corpus_pass: int) -> Iterator[Passage]:
        for document in read(unit, self._text_column, self._messages_column):
            if isinstance(document, Unreadable):
                self._report(document)
                continue
            try:
                if isinstance(document, Conversation):
                    yield self._conversation(document, corpus_pass)
                    continue
                passages = list(self._cutter.cut_with_context(document.text))
            except (TokenizerError, RecordError) as error:
                self._report(Unreadable(document.path, document.row, str(error)))
            else:
                for index, (text, context_bytes) in enumerate(passages):
                    passage_id = f"{corpus_pass}/{document.path}:{document.row}:{index}"
                    yield passage_id, text, len(text.encode("utf8")), context_bytes, index == len(passages) - 1

    def _conversation(self, found: Conversation, corpus_pass: int) -> Passage:
        messages = self._conversations.cut(found.messages)
        if content_of(messages) != content_of(found.messages):
            reason = f"messages {len(messages) + 1} to {len(found.messages)} do not fit every model and are left out"
            self._meter.skip(SkippedRow(found.path, found.row, reason))
        text = content_of(messages)
        return f"{corpus_pass}/{found.path}:{found.row}:0", text, len(text.encode("utf8")), 0, True, messages

    def _report(self, unreadable: Unreadable) -> None:
        if self._on_error == "fail":
            raise RecordError(f"{unreadable}; mend it, or set corpus.on_error: skip to go on without it")
        self._meter.skip(SkippedRow(unreadable.path, unreadable.row, unreadable.reason))

    def _table(self, rows: Sequence[Passage]) -> pa.Table:
        columns = list(zip(*rows, strict=True))
        fields = schema([*PASSAGE, MESSAGES] if self._messages_column else PASSAGE)
        return pa.table([pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)], fields)


def _is_boundary(data: bytes, position: int) -> bool:
    """Whether a character starts (or the text ends) at ``position``: UTF-8 continuation bytes are 0b10xxxxxx."""
    return position >= len(data) or data[position] & 0xC0 != 0x80


def _character_boundary(data: bytes, position: int) -> int:
    """The last character boundary at or before ``position``; the first one behind the start if there is none."""
    position = min(position, len(data))
    while not _is_boundary(data, position):
        position -= 1
    if position:
        return position
    return next(end for end in range(1, len(data) + 1) if _is_boundary(data, end))
