"""A backend in a thread of its own, so that a replica keeps two batches in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from actors.sources.backends import Backend, PromptRows


class BackendInThread:
    """A backend that is loaded and called in one thread, whichever threads ask; see ``backends.Backend``.

    While the engine works on a batch, the thread of another batch encodes its passages or converts its rows: the engine
    waits for neither. It takes one batch at a time, in the order in which they come. An engine may be bound to the
    thread that loads it, by its CUDA stream for example, so no other thread ever calls it.

    Args:
        load: makes the backend. Its errors are raised here.

    Attributes:
        backend: what ``load`` has made.
    """

    def __init__(self, load: Callable[[], Backend]):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self.backend = self._thread.submit(load).result()
        self.vocab_size = self.backend.vocab_size

    def score(self, prompts: Sequence[np.ndarray]) -> list[PromptRows]:
        """Rows of each prompt; its errors are the backend's."""
        return self._thread.submit(self.backend.score, prompts).result()
