"""Pools of processes: every reader works from the beginning, and Ray Data adds replicas to a busy source model."""

import pytest
import ray.data
from ray.data import DataContext

from engine.spec import SourceModelSpec
from pipelines.stream.stages import pool, reader_pool
from pipelines.stream.training import tune
from tests.support.growing_batches import BUSY_SECONDS, BusyReplica, WaitingReader

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("shared_ray")]

READERS = 4
REPLICAS, MOST_REPLICAS, BATCHES = 1, 3, 60


def test_each_reader_has_one_share_while_the_others_work():
    with DataContext.current(DataContext.get_current().copy()):
        tune(DataContext.get_current())
        shares = ray.data.from_items([{"share": share} for share in range(READERS)], override_num_blocks=READERS)
        stream = shares.map_batches(WaitingReader, batch_size=1, num_cpus=0.5, compute=reader_pool(READERS))
        rows = stream.take_all()
    assert sorted(row["share"] for row in rows) == list(range(READERS))
    assert len({row["process"] for row in rows}) == READERS
    began = [row["began"] for row in rows]
    assert max(began) - min(began) < BUSY_SECONDS, "the last one had its share before the first one was done"


def test_a_busy_source_model_grows_to_its_most_replicas():
    """Nothing asks for the new replicas but ``source_models[].most_replicas``."""
    source = SourceModelSpec(name="a", checkpoint="a", replicas=REPLICAS, most_replicas=MOST_REPLICAS)
    with DataContext.current(DataContext.get_current().copy()):
        tune(DataContext.get_current())
        batches = ray.data.range(BATCHES, override_num_blocks=BATCHES)
        scored = batches.map_batches(BusyReplica, batch_size=1, num_cpus=source.num_cpus, compute=pool(source))
        rows = sorted(scored.take_all(), key=lambda row: row["ended"])
    processes = [row["process"] for row in rows]
    assert sorted(row["id"] for row in rows) == list(range(BATCHES))
    assert len(set(processes[:2])) == REPLICAS, "it begins with the replicas of the spec"
    assert len(set(processes)) == MOST_REPLICAS
