"""The hand-over of the stream to Ray Train, and what happens when a training worker dies.

Ray Train then starts all workers anew. They go on from the last checkpoint, with a new stream, whose reader leaves out
what that checkpoint has learned. An error that the engine raised on purpose (a bad corpus, a loss that is not finite)
would only come again: it ends the run at once.
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
from engine.errors import FusionError, causes
from engine.history.result import StepRecord
from engine.spec import FusionSpec
from pipelines.stream.fused_blocks import fused_blocks
from pipelines.stream.sizes import FlowPlan

#: Of Ray Data's scheduler: the most that it takes of a core, and the longest that it rests between two looks.
SCHEDULER_SHARE = 0.05
MOST_REST_SECONDS = 0.1

#: Share of the shared memory that Ray Data plans with from which on an idle stage may go beyond its own part of it.
MEMORY_PRESSURE = 0.5


class _Unhurried(ExecutionCallback):
    """Lets Ray Data's scheduler rest between two looks at its tasks, longer where a look costs more.

    Where training is the slowest stage, all the others have results that nobody may take yet. The scheduler finds them
    ready, can do nothing, and looks again at once: two fifths of a core, and workers that wait for its answers.
    """

    def __init__(self) -> None:
        self._used_seconds = 0.0

    def on_execution_step(self, _executor: Any) -> None:
        used_seconds = time.thread_time()  # of the scheduler's own thread, which begins with its first look
        look_seconds, self._used_seconds = used_seconds - self._used_seconds, used_seconds
        time.sleep(min(look_seconds * (1 / SCHEDULER_SHARE - 1), MOST_REST_SECONDS))


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


class _StopAtFusionError(ray.train.UserCallback):
    """Has Ray Train's controller, which tries again after any other failure of a worker, give up."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            for cause in causes(error):
                if isinstance(cause, FusionError):
                    raise cause


def train(spec: FusionSpec, flow: FlowPlan, monitor: ActorHandle) -> tuple[StepRecord, ...]:
    """Run the stream into the training workers until the last step or the end of the corpus.

    Returns:
        The records of all steps.

    Raises:
        KeyboardInterrupt: by Ctrl-C; the workers have been ended.
        Whatever a stage or worker raised, inside Ray's own errors: see ``pipelines.run.runner``.
    """
    from ray.train.torch import TorchConfig, TorchTrainer  # see _train_worker

    def stream() -> Dataset:
        """Called by Ray Train's controller at the start and again after every restart of the workers."""
        tune(DataContext.get_current())  # the driver's is not seen in the controller
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
    # Where a batch is large against shared memory, a stage may have no room left for its next one until the reader
    # has read the corpus to its end; a stage that is idle and has work may then do a batch all the same.
    context.object_store_memory_pressure_fraction = MEMORY_PRESSURE
    context.custom_execution_callback_classes = [_Unhurried]


def _train_worker(config: dict[str, Any]) -> tuple[StepRecord, ...]:
    """The work of one worker.

    It imports here what it needs: several processes of Ray Train and Ray Data import this module, and torch and
    transformers take each of them seconds.
    """
    from actors.training.loop import train_worker
    from pipelines.evaluation.held_out_blocks import held_out_blocks

    spec: FusionSpec = config["spec"]
    threads = max(1, int(spec.training.num_cpus_per_worker))
    return train_worker(spec, config["monitor"], threads, partial(held_out_blocks, spec))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be a ``KeyboardInterrupt``: Ray Train ends the process instead, as if all had gone well."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands interrupts to the main thread alone, and Ray Train knows
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
