"""What every reader does with a shard: its documents are read, checked, cut and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from actors.monitor import Meter
from engine.blocks.arrangement import MeasuredPassage, Place
from engine.corpus.cutting import Cutter
from engine.corpus.documents import Conversation, Document, Unreadable, read
from engine.corpus.passages import Passage
from engine.corpus.reading import Reading
from engine.corpus.shards import Shard
from engine.errors import RecordError, TokenizerError
from engine.history.ledger import Cursor
from engine.history.result import SkippedRow
from engine.model_files.checkpoint import Checkpoint
from engine.spec import CorpusSpec
from engine.text.tokenization import PassageTokenizer

#: Rows that a reader reads before its share of skipped rows means something; of a whole corpus any number does.
FEWEST_ROWS = 1000


class MeasuredPassages:
    """Reads the passages of shards, measures them, and counts the rows that cannot be read.

    Args:
        corpus, target_checkpoint, cut, meter: as in ``actors.reader``.
    """

    def __init__(self, corpus: CorpusSpec, target_checkpoint: Checkpoint, cut: Cutter, meter: Meter):
        target = PassageTokenizer.load(target_checkpoint)
        self._target = Reading(target, target.adds_bos)
        self._corpus = corpus
        self._cutter = cut
        self._meter = meter
        self._rows = self._skipped = 0
        self._last_skipped: Unreadable | None = None
        self._noted: set[str] = set()

    def of_shard(self, shard: Shard, start: Cursor) -> Iterator[MeasuredPassage]:
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
        self.check_skipped(FEWEST_ROWS)

    def check_skipped(self, fewest_rows: int) -> None:
        """Refuse a corpus of which too much cannot be read, once there are ``fewest_rows``.

        Raises:
            RecordError: names the last row that was skipped.
        """
        bound = self._corpus.most_skipped
        if self._rows >= fewest_rows and self._skipped > bound * self._rows:
            raise RecordError(
                f"{self._skipped} of {self._rows} rows of the corpus cannot be read, corpus.most_skipped allows "
                f"{bound:.1%}; the last one is {self._last_skipped}; correct the files or the column's name, or raise "
                f"corpus.most_skipped"
            )
