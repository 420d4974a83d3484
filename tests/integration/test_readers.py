"""Every one of some readers works from the beginning."""

import pytest
import ray.data
from ray.data import DataContext

from pipelines.stream.stages import reader_pool
from pipelines.stream.training import tune
from tests.support.growing_batches import BUSY_SECONDS, WaitingReader

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("shared_ray")]

READERS = 4


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
