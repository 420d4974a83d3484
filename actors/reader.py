"""The reader: its share of the corpus in, batches of passages out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from actors.monitor import Meter
from engine.blocks.arrangement import Arrangement
from engine.corpus.conversations import ConversationCutter
from engine.corpus.documents import Conversation, Unreadable, read
from engine.corpus.files import CorpusUnit
from engine.corpus.passages import Passage, PassageCutter
from engine.errors import RecordError, TokenizerError
from engine.history.ledger import Ledger
from engine.history.result import SkippedRow
from engine.model_files.checkpoint import Checkpoint
from engine.records import MESSAGES, PASSAGE, schema
from engine.records.batches import as_row
from engine.text.chat import ChatTemplate, content_of
from engine.text.tokenization import PassageTokenizer


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
        checkpoints: Sequence[Checkpoint],
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
