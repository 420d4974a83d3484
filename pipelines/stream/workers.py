"""What Ray Train's controller and workers call in their own processes; each of them imports this file.

It leaves out the stream's stages: their compiled kernels would cost each of these processes a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray.train
from ray.data import DataIterator, Dataset, ExecutionOptions

from actors.training.checkpoint_index import recorded_steps
from actors.training.early_stream import begun
from engine.history.result import StepRecord
from engine.history.stopping import reached
from engine.records import SHARE, of_list
from engine.spec import FusionSpec


class SharedStream(ray.train.DataConfig):
    """Gives every worker its share of the stream, to the last row.

    Ray Train's default drops the last rows to make the shares equal. Here a worker whose share is used up takes part in
    the last step with blocks without weight, so that every passage is learned.
    """

    def __init__(self, preserve_order: bool):
        super().__init__(execution_options=ExecutionOptions(preserve_order=preserve_order))

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *_handles: Any, **_extra: Any
    ) -> list[dict[str, DataIterator]]:
        stream = datasets["train"]
        stream.set_name("train")
        stream.context.execution_options = self._resolve_execution_options("train")
        return [{"train": split} for split in stream.streaming_split(world_size, equal=False)]


def train_share(config: dict[str, Any]) -> tuple[StepRecord, ...]:
    """Run one training worker: it learns its share of the stream.

    The stream starts first: the source models load while this worker imports torch and loads the target model. The
    import stands here for that reason, and because only the workers need torch and transformers, which take seconds.
    """
    spec: FusionSpec = config["spec"]
    shares = _shares(ray.train.get_dataset_shard("train"))
    if reached(spec, recorded_steps(spec.run.output_dir)) is None:  # a finished run needs no source models
        shares = begun(shares)

    from actors.training.loop import train_worker
    from pipelines.evaluation.held_out_blocks import held_out_blocks

    threads = max(1, int(spec.training.num_cpus_per_worker))
    return train_worker(spec, config["monitor"], threads, shares, partial(held_out_blocks, spec))


def _shares(shard: DataIterator) -> Iterator[pa.Table]:
    """A worker's training blocks of each batch of the stream."""
    for row in shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
        yield of_list(row[SHARE])
