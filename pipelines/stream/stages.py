"""The stages of the stream as Ray Data runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from ray.data import ActorPoolStrategy

from engine.blocks.packing import Packer
from engine.records.batches import as_row, of_row, shares
from engine.spec import SourceModelSpec

#: One row of the stream, or several, a table each.
Rows = pa.Table | Iterator[pa.Table]


def on_batches(stage: type, onward: Callable[[pa.Table, np.ndarray], Rows] = as_row) -> type:
    """A class like ``stage``, which takes a batch and returns it changed, for a stream of rows that are batches.

    It has the stage's name, which Ray shows for its processes.

    Args:
        stage: a class whose instances take passages.
        onward: what goes down the stream, made of the changed passages and their ``training_blocks``.
    """

    class OnBatches(stage):
        def __call__(self, row: pa.Table) -> Rows:
            passages, training_blocks = of_row(row)
            return onward(super().__call__(passages), training_blocks)

    OnBatches.__name__ = stage.__name__
    return OnBatches


#: How a stage takes the stream: a row at a time, which is a batch.
ONE_BATCH = {"batch_size": 1, "batch_format": "pyarrow"}


def packed_shares(
    passages: pa.Table, training_blocks: np.ndarray, packer: Packer, num_workers: int
) -> Iterator[pa.Table]:
    """Packed where they were fused: a stage of its own would send everything once more through the object store."""
    return shares(packer(passages, training_blocks), num_workers)


def pool(source: SourceModelSpec) -> ActorPoolStrategy:
    """As many replicas as the spec says, or as many as are needed within its bounds."""
    if not source.most_replicas:
        return ActorPoolStrategy(size=source.replicas)
    return ActorPoolStrategy(min_size=source.replicas, initial_size=source.replicas, max_size=source.most_replicas)
