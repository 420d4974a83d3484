"""Asking an autoscaler, if the cluster has one, for the nodes of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ray.autoscaler.sdk import request_resources

from engine.history.result import Progress
from pipelines.cluster.needs import Need


@contextmanager
def nodes_asked_for(needs: Sequence[Need]) -> Iterator[None]:
    """Ask for nodes for all processes at once; the demand ends with the block, or earlier by ``release_nodes``.

    A cluster does not say whether an autoscaler works on it, so every cluster is asked: where none does, the demand is
    an entry that is not read. Ray's first autoscaler leaves the labels out, so it may add nodes of a group that the
    processes cannot use; its second one (``RAY_enable_autoscaler_v2``; KubeRay: ``autoscalerOptions.version: v2``)
    heeds them.
    """
    each = [need for need in needs for _ in range(need.count)]
    request_resources(
        bundles=[
            {name: amount for name, amount in (("CPU", need.cpus), ("GPU", need.gpus)) if amount} for need in each
        ],
        bundle_label_selectors=[dict(need.labels) for need in each],
    )
    try:
        yield
    finally:
        with suppress(Exception):  # the cluster may be gone, and the error that ended the run says more
            release_nodes()


def release_nodes() -> None:
    """Take back what was asked for: processes hold their nodes by now, or are a demand by themselves.

    Ray keeps a demand until another takes its place, also after the driver that made it was killed: the nodes of a dead
    run would stay, and be paid for. A driver that is killed before this call leaves its demand; that of the next run
    takes its place, or ``ray.autoscaler.sdk.request_resources(bundles=[])``.
    """
    request_resources(bundles=[])


class NodesInUse:
    """An observer that takes the demand for nodes back at the first step.

    Until then it must stand, for a node that is idle while the others start would be taken away. Later all nodes are
    idle for seconds only, between two streams of a run, and those of retired source models may go. On a Ray of the run
    itself there is no demand, and nothing changes.
    """

    product = "the request to the autoscaler"

    def __init__(self) -> None:
        self._is_asking = True

    def see(self, picture: Progress, now: float) -> None:
        """Take the demand back if a step was taken."""
        if self._is_asking and picture.steps:
            release_nodes()
            self._is_asking = False

    def close(self) -> None:
        """Nothing to do: ``nodes_asked_for`` takes back what is left."""
