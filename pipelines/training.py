"""The hand-over of the stream to Ray Train."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import ray.data
import ray.train
import ray.train.torch
from ray.actor import ActorHandle
from ray.data import DataContext, DataIterator, Dataset, ExecutionOptions

from actors.trainer import learned_passages, train_worker
from engine.result import StepRecord
from engine.spec import FusionSpec
from pipelines.flow import FlowPlan
from pipelines.fused_blocks import fused_blocks
from pipelines.held_out_blocks import held_out_blocks


class _SharedStream(ray.train.DataConfig):
    """Gives every worker its share of the stream without dropping the tail.

    Ray Train's own way makes the shares equal by throwing the last rows away. Here a worker whose share is used up
    takes part in the last step with zero-weight blocks instead, so that every passage is learned.
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


def train(spec: FusionSpec, flow: FlowPlan, monitor: ActorHandle) -> tuple[StepRecord, ...]:
    """Run the stream into the training workers until the last step or the end of the corpus.

    Returns:
        The records of all steps.

    Raises:
        Whatever a stage or worker raised, inside Ray's own errors: see ``engine.runner``.
    """

    def stream() -> Dataset:
        """Called by Ray Train's controller at the start and again after every restart of the workers."""
        context = DataContext.get_current()  # the driver's is not seen in the controller
        context.execution_no_progress_timeout_s = -1  # loading a large model or a long evaluation is no hang
        context.enable_progress_bars = False
        return fused_blocks(spec, flow, learned_passages(spec.run.output_dir), monitor)

    training = spec.training
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "spec": spec,
            "monitor": monitor,
            "threads": max(1, int(training.num_cpus_per_worker)),
            "held_out": partial(held_out_blocks, spec),
        },
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if training.num_gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=training.num_gpus_per_worker > 0,
            resources_per_worker={"CPU": training.num_cpus_per_worker, "GPU": training.num_gpus_per_worker},
            label_selector=spec.cluster.training_labels,
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=os.path.join(spec.run.output_dir, "logs"),
        ),
        datasets={"train": stream},
        dataset_config=_SharedStream(preserve_order=spec.run.deterministic),
    )
    return trainer.fit().return_value
