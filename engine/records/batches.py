"""A batch of passages as one row of the stream, so that every stage sees the batches that the reader has made.

After packing, a row is what one training worker learns of a batch.

Ray Data splits and joins tables of rows as it likes, but it never splits a row. The reader decides once what a row
holds. It stays the same however many replicas a stage has, whichever of them dies, and wherever a run resumes: a model
scores the same passages in the same call, so it gives the same numbers. (Not every model's rows depend on the passage
alone: padding and the shape of a matrix product change the last bits.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from engine.records.columns import SHARE
from engine.records.ragged import as_list, flat_values, of_list, ragged

PASSAGES = "passages"
TRAINING_BLOCKS = "training_blocks"


def as_row(passages: pa.Table, training_blocks: Sequence[int] | np.ndarray) -> pa.Table:
    """A table of one row around a batch, without copies of ragged columns.

    Args:
        passages: the batch, with the columns of any stage.
        training_blocks: for each passage the block of this batch that it goes into, ascending.
    """
    blocks = ragged([np.asarray(training_blocks)], pa.int32())
    return pa.table([as_list(passages), blocks], [PASSAGES, TRAINING_BLOCKS])


def of_row(row: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The batch in a table of one row, and its ``training_blocks``."""
    return of_list(row[PASSAGES]), flat_values(row[TRAINING_BLOCKS])[0]


def shares(blocks: pa.Table, num_workers: int, first_block: int = 0) -> Iterator[pa.Table]:
    """Deal out training blocks in turn: a table of one row for each worker, which may hold no block.

    So the first steps of all workers together are the first blocks, whatever the number of workers is.

    Args:
        first_block: number of the first one in the reader's order. A batch may hold fewer blocks than there are
            workers; the next batch then begins with the worker after its last.
    """
    for worker in range(num_workers):
        dealt = blocks.take(np.arange((worker - first_block) % num_workers, len(blocks), num_workers))
        yield pa.table([as_list(dealt)], [SHARE])
