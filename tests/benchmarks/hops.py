"""Whether a batch stays on its node from source to source: what stays does not go over the network.

    python -m tests.benchmarks.hops

``hops_on_one_node``: share of the hops from one source's pool to the next that end on the node where they began. Two
Ray nodes on this machine, three pools of two replicas each, placed and fed as a run's are; a replica takes a tenth of a
second for a batch, give or take a half. It is against hops to a replica drawn at random.
"""

from __future__ import annotations

import os
import random
import time
from itertools import pairwise

import numpy as np
import ray
import ray.data
from ray.cluster_utils import Cluster
from ray.data import DataContext

from engine.spec import SourceModelSpec
from pipelines.cluster.session import LOCAL, QUIET
from pipelines.stream.stages import ONE_BATCH, pool
from pipelines.stream.training import tune
from tests.benchmarks.figures import say

NODES, POOLS, BATCHES = 2, 3, 200
SECONDS_A_BATCH = 0.1

#: What a source adds. Ray keeps objects of less than 100 kB outside of the nodes' stores, where they have no place.
ADDED_BYTES = 2**20


class Replica:
    """Adds its node and a source's bytes to the row of each batch."""

    def __init__(self, column: str):
        self._column = column
        self._node = ray.get_runtime_context().get_node_id()

    def __call__(self, batch):
        time.sleep(random.uniform(0.5, 1.5) * SECONDS_A_BATCH)
        batch = batch.append_column(f"{self._column}, bytes", [[bytes(ADDED_BYTES)]])
        return batch.append_column(self._column, [[self._node]])


def main() -> None:
    """Measure all hops of all batches."""
    os.environ.update({**QUIET, **LOCAL})
    node = {"num_cpus": POOLS + 1, "object_store_memory": 2**28}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(NODES - 1):
        cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    tune(DataContext.get_current())
    stream = ray.data.from_items([{"batch": number} for number in range(BATCHES)], override_num_blocks=BATCHES)
    columns = [f"source {number}" for number in range(POOLS)]
    source = SourceModelSpec(name="source", checkpoint="source", replicas=NODES)
    for column in columns:
        stream = stream.map_batches(
            Replica, fn_constructor_args=(column,), **ONE_BATCH, num_cpus=source.num_cpus, compute=pool(source)
        )
    rows = stream.select_columns(columns).take_all()
    hops = [row[before] == row[after] for row in rows for before, after in pairwise(columns)]
    places = {column: len({row[column] for row in rows}) for column in columns}
    say(
        "hops_on_one_node", float(np.mean(hops)), "of all hops", "replicas at random", float(np.mean(hops)) * NODES,
        nodes=NODES, replicas=NODES, nodes_of_each_pool=places,
    )  # fmt: skip
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
