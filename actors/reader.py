"""The reader: shards of the corpus in, batches of passages out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from actors.monitor import Meter
from engine.blocks.arrangement import Arrangement, Batch, MeasuredPassage, Place
from engine.corpus.cutting import Cutter
from engine.corpus.documents import Conversation, Document, Unreadable, read
from engine.corpus.passages import Passage, table_of
from engine.corpus.reading import Reading
from engine.corpus.shards import Shard
from engine.errors import RecordError, TokenizerError
from engine.history.ledger import Cursor, Entry, Ledger, ShardProgress
from engine.history.result import SkippedRow
from engine.model_files.checkpoint import Checkpoint
from engine.records.batches import LEARNED, BatchBlocks, as_row
from engine.spec import CorpusSpec
from engine.text.tokenization import PassageTokenizer

#: Rows that a reader reads before its share of skipped rows means something; of a whole corpus any number does.
FEWEST_ROWS = 1000


class PassageReader:
    """Reads shards of the corpus and yields batches of passages.

    Args:
        corpus: the spec's section, for the columns to read and for what happens to a row that cannot be read.
        shards: of all passes over the corpus.
        target_checkpoint: for the tokenizer that measures passages.
        cut: cuts documents into passages.
        arrange: puts passages into training blocks and these into batches.
        learned: the training blocks that a checkpoint has learned already, and where reading begins for the others.
        meter: of the stage ``corpus``.

    Raises:
        FusionError: the readers have died too often.
    """

    def __init__(
        self,
        corpus: CorpusSpec,
        shards: Sequence[Shard],
        target_checkpoint: Checkpoint,
        cut: Cutter,
        arrange: Arrangement,
        learned: Ledger,
        meter: Meter,
    ):
        meter.start_or_refuse()
        target = PassageTokenizer.load(target_checkpoint)
        self._target = Reading(target, target.adds_bos)
        self._corpus = corpus
        self._shards = shards
        self._cutter = cut
        self._arrangement = arrange
        self._learned = learned
        self._meter = meter
        self._rows = self._skipped = 0
        self._last_skipped: Unreadable | None = None
        self._noted: set[str] = set()

    def __call__(self, tasks: pa.Table) -> Iterator[pa.Table]:
        """Shards of the corpus to batches of ``records.PASSAGE``, each as one row (``records.batches``).

        Args:
            tasks: column ``shards``, numbers of shards that are read one after the other; ``first_turn``, the turn of
                the first one's first training block (``records.batches``).

        Raises:
            RecordError: a file or row cannot be read and ``corpus.on_error`` is ``fail``, or more rows cannot be read
                than ``corpus.most_skipped`` allows; names file, row and reason.
        """
        for task in tasks.to_pylist():
            turn = task["first_turn"]
            for shard in (self._shards[number] for number in task["shards"]):
                end = 0
                for batch, row in self._rows_of_shard(shard, turn):
                    end = batch.end
                    yield row
                turn += end
            if self._is_whole_corpus(task["shards"]):
                self._check_skipped(fewest_rows=1)

    def _is_whole_corpus(self, numbers: Sequence[int]) -> bool:
        """Whether some shards are those of a pass or more, and were read from their beginnings."""
        of_pass = sum(shard.corpus_pass == 0 for shard in self._shards)
        return len(numbers) >= of_pass and not self._learned.is_begun

    def _rows_of_shard(self, shard: Shard, turn: int) -> Iterator[tuple[Batch, pa.Table]]:
        """Each batch of a shard of which anything has not been learned, and its row.

        Args:
            turn: of the shard's first training block.
        """
        progress = self._learned.progress(shard.number)
        passages = self._passages(shard, progress.cursor)
        started = time.perf_counter()
        for batch in self._arrangement.batches(self._arrangement.lots(passages, shard.number, progress.cursor)):
            blocks = _blocks(batch, shard.number, progress, turn)
            if len(blocks.entries) == 0:
                continue
            row = as_row(table_of([passage for block in batch.blocks for passage in block]), blocks)
            busy_seconds = time.perf_counter() - started
            self._meter.record(passages=len(blocks.of_passages), tokens=0, busy_seconds=busy_seconds)
            yield batch, row
            started = time.perf_counter()

    def _passages(self, shard: Shard, start: Cursor) -> Iterator[MeasuredPassage]:
        """Each passage of a shard from a place on, with the number of tokens that the aligner will find."""
        for document, place in self._read(shard, start):
            for index, passage in enumerate(self._cut(document, shard.corpus_pass)):
                if place == start[1:-1] and index < start.passage:
                    continue
                tokens = len(self._target.read(passage, passage.ends_document).token_ids)
                yield MeasuredPassage(passage, tokens, Place(*place, index))

    def _read(self, shard: Shard, start: Cursor) -> Iterator[tuple[Document | Conversation, tuple[int, int, int]]]:
        """Each document of a shard from a place on, with its own place: unit, rows and bytes before it."""
        for index, unit in enumerate(shard.units[start.unit :], start=start.unit):
            begun = unit.after(start.rows, start.offset) if index == start.unit else unit
            for document in read(begun, self._corpus.text_column, self._corpus.messages_column):
                self._rows += 1
                if isinstance(document, Unreadable):
                    self._refuse_or_skip(document)
                else:
                    yield document, (index, document.row - unit.first_row, document.offset)

    def _cut(self, document: Document | Conversation, corpus_pass: int) -> Sequence[Passage]:
        try:
            cut = self._cutter.cut(document, corpus_pass)
        except (TokenizerError, RecordError) as error:
            self._refuse_or_skip(Unreadable(document.path, document.row, str(error)))
            return ()
        if cut.left_out:
            self._meter.skip(SkippedRow(document.path, document.row, cut.left_out))
        for note in cut.notes:
            self._note(document, note)
        return cut.passages

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


def _blocks(batch: Batch, shard: int, progress: ShardProgress, turn: int) -> BatchBlocks:
    """The training blocks of a batch that have not been learned."""
    of_passages: list[int] = []
    entries: list[list[int]] = []
    new = [number for number in range(batch.first_block, batch.end) if number not in progress.learned]
    for number, passages in enumerate(batch.blocks, start=batch.first_block):
        is_new = number in new
        of_passages += [len(entries) if is_new else LEARNED] * len(passages)
        if is_new:
            entries.append(Entry(shard, number, batch.end, batch.after).numbers())
    first_turn = turn + (new[0] if new else batch.first_block)
    return BatchBlocks(np.array(of_passages, np.int32), np.array(entries, np.int64), first_turn)
