"""Stand-ins for a slow reader and for source models; their batches are large for the shared memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np

BATCHES = 60
BATCH_BYTES = 3 * 2**20

#: Seconds for which a reader keeps its one share.
BUSY_SECONDS = 8.0

#: Seconds that a replica takes for a batch; sixty of them are longer than two more replicas take to start.
REPLICA_SECONDS = 0.5


class SlowReader:
    """Yield all batches from one call, as the reader of a corpus does."""

    def __call__(self, _share: dict) -> Iterator[dict]:
        for _ in range(BATCHES):
            time.sleep(0.1)
            yield {"content": np.zeros((1, BATCH_BYTES // 8), np.uint8), "read_at": np.array([time.time()])}


class WaitingReader:
    """Yield the process and the time at which it got its share, and be busy for longer than other readers start."""

    def __call__(self, share: dict) -> Iterator[dict]:
        yield {"share": share["share"], "process": np.array([os.getpid()]), "began": np.array([time.time()])}
        time.sleep(BUSY_SECONDS)


class BusyReplica:
    """Return each batch after a while, with the process that had it and the time."""

    def __call__(self, batch: dict) -> dict:
        time.sleep(REPLICA_SECONDS)
        return {**batch, "process": np.array([os.getpid()]), "ended": np.array([time.time()])}


class Scorer:
    """Return larger batches than it receives, as a source model does."""

    def __call__(self, batch: dict) -> dict:
        added = np.zeros((1, BATCH_BYTES), np.uint8)
        return {**batch, "content": np.concatenate([batch["content"], added], axis=1)}
