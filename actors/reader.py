"""The reader: shards of the corpus in, batches of passages out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from actors.measured_passages import MeasuredPassages
from actors.monitor import Meter
from engine.blocks.arrangement import Arrangement, Batch
from engine.corpus.cutting import Cutter
from engine.corpus.passages import table_of
from engine.corpus.shards import Shard
from engine.history.ledger import Entry, Ledger, ShardProgress
from engine.model_files.checkpoint import Checkpoint
from engine.records.batches import LEARNED, BatchBlocks, as_row
from engine.spec import CorpusSpec


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
        self._passages = MeasuredPassages(corpus, target_checkpoint, cut, meter)
        self._shards = shards
        self._arrangement = arrange
        self._learned = learned
        self._meter = meter

    def __call__(self, tasks: pa.Table) -> Iterator[pa.Table]:
        """Shards of the corpus to batches of ``records.PASSAGE``, each as one row (``records.batches``).

        Args:
            tasks: column ``shards``, numbers of shards that are read one after the other; ``first_turn``, the turn of
                the first one's first training block (``records.batches``).

        Raises:
            RecordError: a file or row cannot be read and ``corpus.on_error`` is ``fail``, or more rows cannot be read
                than ``corpus.most_skipped`` allows; names file, row and reason.
            StoreError: a file's store has failed again and again.
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
                self._passages.check_skipped(fewest_rows=1)

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
        passages = self._passages.of_shard(shard, progress.cursor)
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
