"""Shared memory that is small against a batch slows a stream down, and does not stop it."""

import time

import pytest
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from pipelines.stream.training import tune
from tests.support.growing_batches import BATCHES, Scorer, SlowReader

pytestmark = pytest.mark.timeout(100)

ONE_BATCH = {"batch_size": 1, "num_cpus": 0.5, "compute": ActorPoolStrategy(size=1)}


@pytest.fixture
def small_store(no_ray):
    """A Ray of its own; Ray Data's context is as before afterwards."""
    store_bytes = 80 * 2**20
    ray.init(address="local", num_cpus=4, object_store_memory=store_bytes, include_dashboard=False, log_to_driver=False)
    with DataContext.current(DataContext.get_current().copy()):
        yield


def test_what_is_read_first_is_learned_before_all_is_read(small_store):
    tune(DataContext.get_current())
    stream = ray.data.from_items([{"share": 0}]).map_batches(SlowReader, **ONE_BATCH)
    for _ in range(3):
        stream = stream.map_batches(Scorer, **ONE_BATCH)
    (worker,) = stream.streaming_split(1, equal=False)
    read_at, learned_at = [], []
    for batch in worker.iter_batches(batch_size=1):
        learned_at.append(time.time())
        read_at.append(batch["read_at"][0])
    assert len(read_at) == BATCHES
    # Without a fraction of memory pressure the first one arrives only when the last one has been read.
    assert sum(moment < max(read_at) for moment in learned_at) > BATCHES // 4
