"""The reader of a mixture: a shard of every domain side by side in, batches of their training blocks out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pyarrow as pa

from actors.measured_passages import MeasuredPassages
from actors.monitor import Meter
from engine.blocks.arrangement import Arrangement
from engine.blocks.mixture import MixedBlock, batch_of, blocks_to_learn, in_batches, mixed
from engine.corpus.cutting import Cutter
from engine.corpus.domains import Domain, shard_numbers, shard_of
from engine.corpus.passages import table_of
from engine.errors import RecordError
from engine.history.ledger import Ledger
from engine.model_files.checkpoint import Checkpoint
from engine.records.batches import as_row
from engine.spec import CorpusSpec


class MixedPassageReader:
    """Reads the domains of the corpus side by side and yields batches of passages, whose blocks are of all domains.

    Args:
        corpus: the spec's section, as in ``actors.reader``.
        domains: of the corpus.
        learned_bytes: of each domain, up to the checkpoint.
        target_checkpoint, cut, arrange, learned, meter: as in ``actors.reader``.

    Raises:
        FusionError: the readers have died too often.
    """

    def __init__(
        self,
        corpus: CorpusSpec,
        domains: Sequence[Domain],
        learned_bytes: Sequence[int],
        target_checkpoint: Checkpoint,
        cut: Cutter,
        arrange: Arrangement,
        learned: Ledger,
        meter: Meter,
    ):
        meter.start_or_refuse()
        self._passages = MeasuredPassages(corpus, target_checkpoint, cut, meter)
        self._corpus = corpus
        self._domains = domains
        self._learned_bytes = learned_bytes
        self._arrangement = arrange
        self._learned = learned
        self._meter = meter

    def __call__(self, tasks: pa.Table) -> Iterator[pa.Table]:
        """Lanes of the corpus to batches of ``records.PASSAGE``, each as one row (``records.batches``).

        Args:
            tasks: column ``lane``, a number below that in ``lanes``. The shards of each domain that are left are dealt
                out to the lanes in turn, which begins one lane later with each pass: so no lane gets only shards of a
                domain that give no passage.

        Raises:
            RecordError, StoreError: as in ``actors.reader``.
            RecordError: a domain that is repeated gives no passage; names it.
        """
        for task in tasks.to_pylist():
            yield from self._rows_of_lane(task["lane"], task["lanes"])
            if task["lanes"] == 1 and not self._learned.is_begun:
                self._passages.check_skipped(fewest_rows=1)

    def _rows_of_lane(self, lane: int, lanes: int) -> Iterator[pa.Table]:
        weights = [domain.weight for domain in self._domains]
        domains = [self._blocks_of_domain(index, lane, lanes) for index in range(len(self._domains))]
        blocks = mixed(domains, weights, [num_bytes // lanes for num_bytes in self._learned_bytes])
        turn, started = 0, time.perf_counter()
        for batch in in_batches(blocks, self._arrangement.batch_blocks):
            passages, batch_blocks = batch_of(batch, turn)
            row = as_row(table_of(passages), batch_blocks)
            self._meter.record(passages=len(passages), tokens=0, busy_seconds=time.perf_counter() - started)
            yield row
            turn, started = turn + len(batch), time.perf_counter()

    def _blocks_of_domain(self, index: int, lane: int, lanes: int) -> Iterator[MixedBlock]:
        """The blocks of a domain in a lane that have not been learned."""
        passes, domain = self._corpus.passes, self._domains[index]
        repeats = self._corpus.exhausted == "repeat"
        numbers = shard_numbers(self._domains, index, None if repeats else passes)
        left = (number for number in numbers if not self._learned.is_done(number))
        size = len(domain.shards)
        own = (number for turn, number in enumerate(left) if (turn % size + turn // size) % lanes == lane)
        gives_passages = self._learned_bytes[index] > 0
        for count, number in enumerate(own, start=1):
            for block in self._blocks_of_shard(number):
                gives_passages = True
                yield block
            if repeats and not gives_passages and count == size:  # by now this lane has read every shard once
                reason = f"corpus.domains.{domain.name} gives no passage, and would be read for ever"
                raise RecordError(f"{reason}; correct its paths, corpus.text_column or corpus.messages_column")

    def _blocks_of_shard(self, number: int) -> Iterator[MixedBlock]:
        shard, progress = shard_of(self._domains, number), self._learned.progress(number)
        passages = self._passages.of_shard(shard, progress.cursor)
        lots = self._arrangement.lots(passages, number, progress.cursor)
        return blocks_to_learn(lots, number, progress, is_surplus=shard.corpus_pass >= self._corpus.passes)
