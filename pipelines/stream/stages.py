"""The processes of the stream as Ray Data runs them: one row in, which names shards or is a batch, and rows out.

Ray's dashboard and a process list show the names of these classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from ray.data import ActorPoolStrategy

from engine.records.batches import as_row, of_row, shares, to_learn
from engine.spec import SourceModelSpec
from pipelines.stream.deferred import Deferred

if TYPE_CHECKING:  # each process imports its own stage's class alone
    from actors.aligner import Aligner
    from actors.reader import PassageReader
    from actors.sources.optional_source import OptionalSource
    from actors.sources.source_model import SourceModel
    from engine.blocks.packing import Packer

#: How a stage takes the stream: one row at a time, which is a batch.
ONE_BATCH = {"batch_size": 1, "batch_format": "pyarrow"}


class PassageReaderStage:
    """One reader: reads shards of the corpus and yields batches of passages.

    Args:
        read: the class that reads, which is made here, in the reader's process.
        arguments: of ``read``.
    """

    def __init__(self, read: type[PassageReader], **arguments: Any):
        self._read = Deferred(read, **arguments)

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        """The batches of some shards, one row each."""
        return self._read(task)


class SourceModelStage:
    """One replica of a source model: scores the passages of a batch.

    Args:
        score: the class that scores, which is made here, in the replica's process.
        arguments: of ``score``.
    """

    def __init__(self, score: type[SourceModel | OptionalSource], **arguments: Any):
        self._score = Deferred(score, **arguments)

    def __call__(self, row: pa.Table) -> pa.Table:
        """The same batch with the source's columns."""
        passages, blocks = of_row(row)
        return as_row(self._score(passages), blocks)


class AlignerStage:
    """One aligner: aligns and fuses a batch, packs it and shares it out among the training workers.

    Packing has no process of its own: everything would go through the object store once more.

    Args:
        align_and_fuse: the class that does so, which is made here, in the aligner's process.
        pack: lays fused passages into training blocks.
        share_out_among: number of training workers.
        arguments: of ``align_and_fuse``.
    """

    def __init__(self, align_and_fuse: type[Aligner], pack: Packer, share_out_among: int, **arguments: Any):
        self._align_and_fuse = Deferred(align_and_fuse, **arguments)
        self._pack = pack
        self._num_workers = share_out_among

    def __call__(self, row: pa.Table) -> Iterator[pa.Table]:
        """The share of the batch that each training worker learns, one row each (``records.SHARE``)."""
        passages, blocks = to_learn(*of_row(row))
        fused = self._align_and_fuse(passages)
        packed = self._pack(fused, blocks.of_passages, blocks.entries)
        return shares(packed, self._num_workers, blocks.first_turn)


def reader_pool(replicas: int) -> ActorPoolStrategy:
    """So many readers, each with one task at a time, so that all of them read from the first second to the last.

    Ray gives an actor a second task beside the one it works on. A task is a shard or all of them, which lasts long: the
    first half of the readers would have two, and the second half might have nothing to do.
    """
    return ActorPoolStrategy(size=replicas, max_tasks_in_flight_per_actor=1)


def pool(source: SourceModelSpec) -> ActorPoolStrategy:
    """As many replicas as the spec says, or as many as are needed within its bounds.

    On a GPU each replica has two batches in flight, so that the engine does not wait while one is tokenized or
    converted. On a CPU both would take the same core.
    """
    in_flight = {"max_concurrent_calls_per_actor": 2, "enable_true_multi_threading": True} if source.num_gpus else {}
    if not source.most_replicas:
        return ActorPoolStrategy(size=source.replicas, **in_flight)
    most = source.most_replicas
    return ActorPoolStrategy(min_size=source.replicas, initial_size=source.replicas, max_size=most, **in_flight)
