"""A batch of passages as one row of the stream, so that every stage sees the batches that the reader has made.

After packing, a row is what one training worker learns of a batch.

Ray Data splits and joins tables of rows as it likes, but it never splits a row. The reader decides once what a row
holds. It stays the same however many replicas a stage has, whichever of them dies, and wherever a run resumes: a model
scores the same passages in the same call, so it gives the same numbers. (Not every model's rows depend on the passage
alone: padding and the shape of a matrix product change the last bits.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from engine.records.columns import SHARE
from engine.records.ragged import as_list, flat_values, of_list, ragged

PASSAGES = "passages"
TRAINING_BLOCKS = "training_blocks"
LEDGER_ENTRIES = "ledger_entries"
FIRST_TURN = "first_turn"

#: The block of a passage that is in a batch for company only, since its block has been learned.
LEARNED = -1


class BatchBlocks(NamedTuple):
    """The training blocks of a batch.

    Attributes:
        of_passages: int32 [B], for each passage the index of its block in ``entries``, ascending, or ``LEARNED``.
        entries: int64 [M,E], what the ledger has to know of each block (``engine.history.ledger.Entry``).
        first_turn: number of the first block in the order in which blocks are dealt out to the training workers.
    """

    of_passages: np.ndarray
    entries: np.ndarray
    first_turn: int


def as_row(passages: pa.Table, blocks: BatchBlocks) -> pa.Table:
    """A table of one row around a batch, without copies of ragged columns.

    Args:
        passages: the batch, with the columns of any stage.
        blocks: that its passages go into.
    """
    columns = {
        PASSAGES: as_list(passages),
        TRAINING_BLOCKS: ragged([blocks.of_passages], pa.int32()),
        LEDGER_ENTRIES: ragged([blocks.entries], pa.int64()),
        FIRST_TURN: pa.array([blocks.first_turn], pa.int64()),
    }
    return pa.table(columns)


def of_row(row: pa.Table) -> tuple[pa.Table, BatchBlocks]:
    """The batch in a table of one row, and its blocks."""
    of_passages, entries = (flat_values(row[name])[0] for name in (TRAINING_BLOCKS, LEDGER_ENTRIES))
    num_blocks = int(of_passages.max()) + 1
    return of_list(row[PASSAGES]), BatchBlocks(of_passages, entries.reshape(num_blocks, -1), row[FIRST_TURN][0].as_py())


def to_learn(passages: pa.Table, blocks: BatchBlocks) -> tuple[pa.Table, BatchBlocks]:
    """A batch without the passages that are in it for company only."""
    is_new = blocks.of_passages != LEARNED
    if is_new.all():
        return passages, blocks
    return passages.filter(pa.array(is_new)), blocks._replace(of_passages=blocks.of_passages[is_new])


def shares(blocks: pa.Table, num_workers: int, first_turn: int = 0) -> Iterator[pa.Table]:
    """Deal out training blocks in turn: a table of one row for each worker, which may hold no block.

    So the first steps of all workers together are the first blocks, whatever the number of workers is.

    Args:
        first_turn: number of the first one in the order of dealing out. A batch may hold fewer blocks than there are
            workers; the next batch then begins with the worker after its last.
    """
    for worker in range(num_workers):
        dealt = blocks.take(np.arange((worker - first_turn) % num_workers, len(blocks), num_workers))
        yield pa.table([as_list(dealt)], [SHARE])
