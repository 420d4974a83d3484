"""Notices of a cloud that it takes nodes of the training workers back."""

from __future__ import annotations

import os

import ray.train

#: Ray Train's switch of the process that watches for notices; a local Ray has none.
_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


class PreemptionNotices:
    """The notices that Ray Train has seen; at a new one a checkpoint is due, for the node has only minutes left."""

    def __init__(self) -> None:
        self._is_watched = os.environ.get(_WATCHER, "1") != "0"
        self._known: set[str] = set()

    def is_new(self) -> bool:
        """Whether a node got its notice since the last call; all workers call it together and get the same answer."""
        if not self._is_watched:
            return False
        notice = ray.train.get_preemption_info()
        nodes = set(notice.preempted_node_ids) if notice is not None else set()
        new = nodes - self._known
        self._known |= nodes
        return bool(new)
