"""The reader: its share of the corpus in, batches of passages out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from actors.monitor import Meter
from engine.blocks.arrangement import Arrangement, MeasuredPassage, drop_learned
from engine.corpus.cutting import Cutter
from engine.corpus.documents import Conversation, Document, Unreadable, read
from engine.corpus.files import CorpusUnit
from engine.corpus.passages import Passage, table_of
from engine.corpus.reading import Reading
from engine.errors import RecordError, TokenizerError
from engine.history.ledger import Ledger
from engine.history.result import SkippedRow
from engine.model_files.checkpoint import Checkpoint
from engine.records.batches import as_row
from engine.spec import CorpusSpec
from engine.text.tokenization import PassageTokenizer

#: Rows that a reader reads before its share of skipped rows means something; at the end of its corpus any number does.
FEWEST_ROWS = 1000


class PassageReader:
    """Reads its share of the corpus and yields batches of passages.

    Args:
        corpus: the spec's section, for the columns to read and for what happens to a row that cannot be read.
        target_checkpoint: for the tokenizer that measures passages.
        cut: cuts documents into passages.
        arrange: puts passages into training blocks and these into batches.
        drop: passages that a checkpoint has learned already.
        meter: of the stage ``corpus``.

    Raises:
        FusionError: the readers have died too often.
    """

    def __init__(
        self,
        corpus: CorpusSpec,
        target_checkpoint: Checkpoint,
        cut: Cutter,
        arrange: Arrangement,
        drop: Ledger,
        meter: Meter,
    ):
        meter.start_or_refuse()
        target = PassageTokenizer.load(target_checkpoint)
        self._target = Reading(target, target.adds_bos)
        self._corpus = corpus
        self._cutter = cut
        self._arrangement = arrange
        self._learned = drop
        self._meter = meter
        self._rows = self._skipped = 0
        self._last_skipped: Unreadable | None = None
        self._noted: set[str] = set()

    def __call__(self, shares: pa.Table) -> Iterator[pa.Table]:
        """Shares of the corpus to batches of ``records.PASSAGE``, each as one row (``records.batches``).

        Args:
            shares: columns ``share``, its number, and ``units``, a list of the fields of ``CorpusUnit``.

        Raises:
            RecordError: a file or row cannot be read and ``corpus.on_error`` is ``fail``, or more rows cannot be read
                than ``corpus.most_skipped`` allows; names file, row and reason.
        """
        for share in shares.to_pylist():
            documents = self._read(share["units"])
            passages = self._measured(self._cut(documents))
            blocks = self._arrangement.blocks(passages, share["share"])
            unlearned = drop_learned(blocks, self._learned)
            started = time.perf_counter()
            for batch in self._arrangement.batches(unlearned):
                busy_seconds = time.perf_counter() - started
                self._meter.record(passages=len(batch.passages), tokens=0, busy_seconds=busy_seconds)
                yield as_row(table_of(batch.passages), batch.training_blocks)
                started = time.perf_counter()

    def _read(self, units: Iterable[dict[str, Any]]) -> Iterator[tuple[Document | Conversation, int]]:
        """Each document of the units, and the pass over the corpus that it belongs to."""
        for fields in units:
            unit = CorpusUnit(**fields)
            for document in read(unit, self._corpus.text_column, self._corpus.messages_column):
                self._rows += 1
                if isinstance(document, Unreadable):
                    self._refuse_or_skip(document)
                else:
                    yield document, unit.corpus_pass
        self._check_skipped(fewest_rows=1)

    def _cut(self, documents: Iterable[tuple[Document | Conversation, int]]) -> Iterator[Passage]:
        for document, corpus_pass in documents:
            try:
                cut = self._cutter.cut(document, corpus_pass)
            except (TokenizerError, RecordError) as error:
                self._refuse_or_skip(Unreadable(document.path, document.row, str(error)))
                continue
            if cut.left_out:
                self._meter.skip(SkippedRow(document.path, document.row, cut.left_out))
            for note in cut.notes:
                self._note(document, note)
            yield from cut.passages

    def _measured(self, passages: Iterable[Passage]) -> Iterator[MeasuredPassage]:
        """Each passage with the number of tokens that the aligner will find."""
        for passage in passages:
            yield MeasuredPassage(passage, len(self._target.read(passage, passage.ends_document).token_ids))

    def _note(self, document: Document | Conversation, note: str) -> None:
        """Report what holds for many rows at the first of them."""
        if note not in self._noted:
            self._noted.add(note)
            self._meter.skip(SkippedRow(document.path, document.row, f"{note}; this is the first such row"))

    def _refuse_or_skip(self, unreadable: Unreadable) -> None:
        if self._corpus.on_error == "fail":
            raise RecordError(f"{unreadable}; fix it, or set corpus.on_error: skip to leave it out")
        self._meter.skip(SkippedRow(unreadable.path, unreadable.row, unreadable.reason))
        self._skipped += 1
        self._last_skipped = unreadable
        self._check_skipped(FEWEST_ROWS)

    def _check_skipped(self, fewest_rows: int) -> None:
        """Refuse a corpus of which too much cannot be read, once there are ``fewest_rows``."""
        bound = self._corpus.most_skipped
        if self._rows >= fewest_rows and self._skipped > bound * self._rows:
            raise RecordError(
                f"{self._skipped} of {self._rows} rows of the corpus cannot be read, corpus.most_skipped allows "
                f"{bound:.1%}; the last one is {self._last_skipped}; correct the files or the column's name, or raise "
                f"corpus.most_skipped"
            )
