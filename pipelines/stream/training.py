"""The hand-over of the stream to Ray Train.

When a training worker dies, Ray Train restarts all of them. They go on from the last checkpoint with a new stream,
whose readers begin where the checkpoint's ledger says and leave out what has been learned. An error that the engine
raises on purpose (a bad corpus, a loss that is not finite) would come again: it ends the run at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import ray.data
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.actor import ActorHandle
from ray.data import DataContext, Dataset
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError

from actors.training.checkpoint_index import learned_blocks, recorded_steps
from engine.history.result import StepRecord
from engine.history.retirement import retired_sources
from engine.spec import FusionSpec
from pipelines.stream.fused_blocks import fused_blocks, keeps_order
from pipelines.stream.restart_limit import RestartLimit
from pipelines.stream.scheduling import Unhurried
from pipelines.stream.sizes import FlowPlan, mapping_sample
from pipelines.stream.workers import SharedStream, train_share

#: Share of the shared memory in use from which an idle stage may take more than its own part of it.
MEMORY_PRESSURE = 0.5


def train(spec: FusionSpec, flow: FlowPlan, monitor: ActorHandle) -> tuple[StepRecord, ...]:
    """Run the stream into the training workers until the last step or the end of the corpus.

    Workers that retire a source model end at that checkpoint. Training goes on from there with a stream without it, so
    that its GPUs are free, and so that a resumed run is the same.

    Returns:
        The records of all steps.

    Raises:
        KeyboardInterrupt: by Ctrl-C; the workers have ended.
        Exception: an error of Ray's with that of a stage or worker inside; see ``pipelines.cluster.failures``.
    """
    sample = mapping_sample(spec, flow)
    limit = RestartLimit(spec.run.output_dir, spec.training.max_restarts)
    while True:
        retired = retired_sources(recorded_steps(spec.run.output_dir))
        try:
            with _interruptible():
                history = _trainer(spec, flow, sample, monitor).fit().return_value
        except ControllerError as error:  # Ray Train tries no start again in which a node or a store was lost
            limit.count(error)
            continue
        if retired_sources(history) == retired:
            return history


def _trainer(spec: FusionSpec, flow: FlowPlan, sample: list[str], monitor: ActorHandle) -> TorchTrainer:
    """Ray Train's trainer for the run from its last checkpoint on."""

    def stream() -> Dataset:
        """The stream; Ray Train's controller calls this at the start and after every restart of the workers.

        An error here ends the controller, so it reads the checkpoints alone, whose store is asked again for minutes.
        """
        tune(DataContext.get_current())  # the driver's context does not reach the controller
        history = recorded_steps(spec.run.output_dir)
        monitor.begin_stream.remote(tuple(retired_sources(history)), history[-1] if history else None)
        return fused_blocks(spec, flow, sample, learned_blocks(spec.run.output_dir), history, monitor)

    training = spec.training
    filesystem, state_folder = fsspec.core.url_to_fs(os.path.join(spec.run.output_dir, "logs"))
    return TorchTrainer(
        train_share,
        train_loop_config={"spec": spec, "monitor": monitor},
        torch_config=TorchConfig(
            backend="nccl" if training.num_gpus_per_worker else "gloo",
            timeout_s=int(training.collective_timeout_hours * 3600),
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=training.num_gpus_per_worker > 0,
            resources_per_worker={"CPU": training.num_cpus_per_worker, "GPU": training.num_gpus_per_worker},
            label_selector=spec.cluster.training_labels,
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            # By fsspec, like all that a run writes: one set of credentials, and every store that fsspec knows.
            storage_filesystem=PyFileSystem(FSSpecHandler(filesystem)),
            storage_path=state_folder,
            failure_config=ray.train.FailureConfig(max_failures=-1),  # the callback counts them
            callbacks=[RestartLimit(spec.run.output_dir, training.max_restarts)],
        ),
        datasets={"train": stream},
        dataset_config=SharedStream(preserve_order=keeps_order(spec, flow.reader_replicas)),
    )


def tune(context: DataContext) -> None:
    """Set how Ray Data runs the stream."""
    context.execution_no_progress_timeout_s = -1  # loading a large model or a long evaluation is no hang
    context.enable_progress_bars = False
    # Ray Data keeps what a task yields until it fills a block: a batch must not wait for the next.
    context.target_max_block_size = 1
    # Where batches are large for the shared memory, a stage may have no room for its next one until the reader has read
    # the whole corpus; an idle stage with work may then do a batch all the same.
    context.object_store_memory_pressure_fraction = MEMORY_PRESSURE
    context.custom_execution_callback_classes = [Unhurried]
    context.raise_original_map_exception = True  # Ray Data's own wrapper loses the error inside when it is pickled


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
