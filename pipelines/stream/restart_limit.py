"""How often a run's training may start again: from checkpoint to checkpoint, lost nodes left out."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState
from ray.train.v2.api.exceptions import PreemptionError

from actors.training.checkpoint_index import checkpoints_folder, latest
from engine.errors import TrainingError, causes, first_line
from pipelines.cluster.failures import refusal_inside

#: Ray reports a lost node dead after 15 seconds. The workers that miss it fail at once.
SECONDS_UNTIL_DEAD = 20.0


class RestartLimit(ControllerCallback, WorkerGroupCallback):
    """Ends a run whose training fails again and again without getting on; Ray Train's controller calls it.

    A ``FusionError`` would come again and ends the run at once. After any other failure Ray Train starts the workers
    from the last checkpoint. Its own limit counts over the whole run, and would end a run of weeks; and it counts no
    worker that dies while it starts. This one counts both from checkpoint to checkpoint. It leaves out failures with a
    lost node of the workers, machines that a cloud has taken back, and a wait for nodes.

    Args:
        output_dir: of the run.
        max_restarts: how many failures there may be between two checkpoints.
    """

    def __init__(self, output_dir: str, max_restarts: int):
        self._output_dir = output_dir
        self._max_restarts = max_restarts
        self._nodes: frozenset[str] = frozenset()
        self._failures: list[frozenset[str]] = []  # the nodes of the workers that have failed
        self._checkpoint: str | None = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Note the nodes of new workers."""
        self._nodes = frozenset(worker.metadata.node_id for worker in worker_group.get_workers())

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Count the failure after which Ray Train starts the workers again.

        Raises:
            FusionError: as ``count``.
        """
        if isinstance(current_state, (ReschedulingState, RestartingState)):
            self.count(current_state.training_failed_error)

    def count(self, error: Exception) -> None:
        """Count a failure.

        Args:
            error: Ray Train's.

        Raises:
            FusionError: it is inside the error, or there were too many failures.
        """
        if refusal := refusal_inside(error):
            raise refusal
        if any(map(_is_no_failure, causes(error))):
            return
        checkpoint = self._checkpoint
        with suppress(Exception):  # the store is away, which may be the failure
            checkpoint = latest(checkpoints_folder(self._output_dir))
        if checkpoint != self._checkpoint:
            self._checkpoint, self._failures = checkpoint, []
        self._failures.append(self._nodes)
        if self._are_too_many():
            since = f"the checkpoint {os.path.basename(checkpoint)}" if checkpoint else "the start"
            times = "once" if len(self._failures) == 1 else f"{len(self._failures)} times"
            *_, root = causes(error)
            raise TrainingError(
                f"training has failed {times} since {since}, training.max_restarts is "
                f"{self._max_restarts}; the last error: {type(root).__name__}: {first_line(root)}"
            )

    def _are_too_many(self) -> bool:
        """Whether more failures than allowed have no lost node; waits until Ray must know of the last one's."""
        until = time.monotonic() + SECONDS_UNTIL_DEAD
        while len(self._failures) > self._max_restarts:
            dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
            self._failures = [nodes for nodes in self._failures if nodes.isdisjoint(dead)]
            if time.monotonic() >= until:
                break
            time.sleep(1.0)
        return len(self._failures) > self._max_restarts


def _is_no_failure(error: BaseException) -> bool:
    if isinstance(error, RayActorError):
        return error.preempted
    return isinstance(error, (PreemptionError, WorkerGroupStartupTimeoutError))
