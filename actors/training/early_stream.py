"""A worker's share of the stream, asked for before the worker has its model, so that all models load at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")

_END = object()


def begun(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; the first one is asked for at once, in a thread.

    A stream starts its stages when the first item is asked for, and they take as long to load as the caller's own
    model. An error of the first item is raised where that item is taken.
    """
    first: Future = Future()
    # A daemon: it must not keep a worker alive whose own model has failed to load.
    threading.Thread(target=_fetch, args=(items, first), name="first share", daemon=True).start()
    return _from_first(first, items)


def _fetch(items: Iterator[Item], first: Future) -> None:
    try:
        first.set_result(next(items, _END))
    except BaseException as error:  # whatever it is, it belongs to the thread that takes the item
        first.set_exception(error)


def _from_first(first: Future, items: Iterator[Item]) -> Iterator[Item]:
    item = first.result()
    if item is not _END:
        yield item
        yield from items
