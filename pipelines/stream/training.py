"""The hand-over of the stream to Ray Train.

When a training worker dies, Ray Train restarts all of them. They go on from the last checkpoint with a new stream,
whose reader leaves out the passages that the checkpoint has learned. An error that the engine raises on purpose (a bad
corpus, a loss that is not finite) would come again: it ends the run at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray.data
import ray.train
from ray.actor import ActorHandle
from ray.data import DataContext, DataIterator, Dataset, ExecutionOptions
from ray.data._internal.execution.execution_callback import ExecutionCallback

from actors.training.checkpoint_index import learned_passages
from engine.history.result import StepRecord
from engine.spec import FusionSpec
from pipelines.cluster.failures import refusal_inside
from pipelines.stream.fused_blocks import fused_blocks
from pipelines.stream.sizes import FlowPlan

#: Ray Data's scheduler: the largest share of a core that it takes, and its longest rest between two looks.
SCHEDULER_SHARE = 0.05
MOST_REST_SECONDS = 0.1

#: Share of the shared memory in use from which an idle stage may take more than its own part of it.
MEMORY_PRESSURE = 0.5


class _Unhurried(ExecutionCallback):
    """Lets Ray Data's scheduler rest between two looks at its tasks, longer where a look costs more.

    Where training is the slowest stage, all others have results that may not be taken yet. The scheduler finds them
    ready, can do nothing, and looks again at once. Measured: 40 % of a core without rest, 4 % with it.
    """

    def __init__(self) -> None:
        self._used_seconds = 0.0

    def on_execution_step(self, _executor: Any) -> None:
        used_seconds = time.thread_time()  # of the scheduler's own thread, which begins with its first look
        look_seconds, self._used_seconds = used_seconds - self._used_seconds, used_seconds
        time.sleep(min(look_seconds * (1 / SCHEDULER_SHARE - 1), MOST_REST_SECONDS))


class _SharedStream(ray.train.DataConfig):
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


class _StopAtFusionError(ray.train.UserCallback):
    """Makes Ray Train's controller give up at a ``FusionError``; it tries again after any other failure of a worker."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if refusal := refusal_inside(error):
                raise refusal


def train(spec: FusionSpec, flow: FlowPlan, monitor: ActorHandle) -> tuple[StepRecord, ...]:
    """Run the stream into the training workers until the last step or the end of the corpus.

    Returns:
        The records of all steps.

    Raises:
        KeyboardInterrupt: by Ctrl-C; the workers have ended.
        Exception: an error of Ray's with that of a stage or worker inside; see ``pipelines.cluster.failures``.
    """
    from ray.train.torch import TorchConfig, TorchTrainer  # see _train_worker

    def stream() -> Dataset:
        """The stream; Ray Train's controller calls this at the start and after every restart of the workers."""
        tune(DataContext.get_current())  # the driver's context does not reach the controller
        monitor.begin_stream.remote()
        return fused_blocks(spec, flow, learned_passages(spec.run.output_dir), monitor)

    training = spec.training
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"spec": spec, "monitor": monitor},
        torch_config=TorchConfig(backend="nccl" if training.num_gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=training.num_gpus_per_worker > 0,
            resources_per_worker={"CPU": training.num_cpus_per_worker, "GPU": training.num_gpus_per_worker},
            label_selector=spec.cluster.training_labels,
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=os.path.join(spec.run.output_dir, "logs"),
            failure_config=ray.train.FailureConfig(max_failures=training.max_restarts),
            callbacks=[_StopAtFusionError()],
        ),
        datasets={"train": stream},
        dataset_config=_SharedStream(preserve_order=spec.run.deterministic),
    )
    with _interruptible():
        return trainer.fit().return_value


def tune(context: DataContext) -> None:
    """Set how Ray Data runs the stream."""
    context.execution_no_progress_timeout_s = -1  # loading a large model or a long evaluation is no hang
    context.enable_progress_bars = False
    # Ray Data keeps what a task yields until it fills a block: a batch must not wait for the next.
    context.target_max_block_size = 1
    # Where batches are large for the shared memory, a stage may have no room for its next one until the reader has read
    # the whole corpus; an idle stage with work may then do a batch all the same.
    context.object_store_memory_pressure_fraction = MEMORY_PRESSURE
    context.custom_execution_callback_classes = [_Unhurried]
    context.raise_original_map_exception = True  # Ray Data's own wrapper loses the error inside when it is pickled


def _train_worker(config: dict[str, Any]) -> tuple[StepRecord, ...]:
    """Run one training worker.

    The imports stand here because several processes of Ray Train and Ray Data import this module, and torch and
    transformers would take each of them seconds.
    """
    from actors.training.loop import train_worker
    from pipelines.evaluation.held_out_blocks import held_out_blocks

    spec: FusionSpec = config["spec"]
    threads = max(1, int(spec.training.num_cpus_per_worker))
    return train_worker(spec, config["monitor"], threads, partial(held_out_blocks, spec))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C into a ``KeyboardInterrupt``; Ray Train would end the process as if the run had succeeded."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone, and Ray Train sets no handler elsewhere
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
