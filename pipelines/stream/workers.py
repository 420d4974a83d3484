"""What Ray Train's controller and workers call in their own processes; each of them imports this file.

It leaves out the stream's stages: their compiled kernels would cost each of these processes a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.train
from ray.data import DataIterator, Dataset, ExecutionOptions
from ray.exceptions import RayActorError

from actors.training.checkpoint_index import checkpoints_folder, latest, recorded_steps
from actors.training.early_stream import begun
from engine.errors import TrainingError, causes, first_line
from engine.history.result import StepRecord
from engine.history.stopping import reached
from engine.records import SHARE, of_list
from engine.spec import FusionSpec
from pipelines.cluster.failures import refusal_inside


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


class RestartLimit(ray.train.UserCallback):
    """Ends a run whose workers fail again and again without getting on; Ray Train's controller calls it.

    A ``FusionError`` would come again and ends the run at once. After any other failure Ray Train starts the workers
    from the last checkpoint. Its own limit counts over the whole run, and would end a run of weeks. This one counts
    from checkpoint to checkpoint, and leaves out failures with a lost node or a machine that a cloud has taken back.

    Args:
        output_dir: of the run.
        max_restarts: how many failures the workers may have between two checkpoints.
    """

    def __init__(self, output_dir: str, max_restarts: int):
        self._output_dir = output_dir
        self._max_restarts = max_restarts
        self._lost_nodes = _lost_nodes()
        self._checkpoint: str | None = None
        self._failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Count a failure of the workers.

        Args:
            worker_exceptions: rank to error of the workers that have failed.

        Raises:
            FusionError: a worker's, or that they have failed too often.
        """
        errors = list(worker_exceptions.values())
        for error in errors:
            if refusal := refusal_inside(error):
                raise refusal
        lost_nodes, known = _lost_nodes(), self._lost_nodes
        self._lost_nodes = lost_nodes
        if lost_nodes - known or any(isinstance(error, RayActorError) and error.preempted for error in errors):
            return
        checkpoint = latest(checkpoints_folder(self._output_dir))
        if checkpoint != self._checkpoint:
            self._checkpoint, self._failures = checkpoint, 0
        self._failures += 1
        if self._failures > self._max_restarts:
            since = f"the checkpoint {checkpoint}" if checkpoint else "the start"
            *_, root = causes(errors[0])
            raise TrainingError(
                f"training: workers have failed {self._failures} times since {since}, training.max_restarts is "
                f"{self._max_restarts}; the last error: {type(root).__name__}: {first_line(root)}"
            )


def _lost_nodes() -> set[str]:
    """Ids of the nodes that Ray reports dead."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


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
