"""A bounded file of JSON lines that outlives restarts: appended to on a disk, written as a whole to an object store."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import fsspec

from engine.store import content

#: A file with more lines loses its older half.
MOST_LINES = 10_000


class EventFile:
    """The events of all starts of a run, oldest first.

    Object stores cannot append, so there each writing costs the whole file; the caller says when.

    Args:
        url: of the file; any path or fsspec URL.

    Raises:
        OSError: the file is there, but cannot be read.
    """

    def __init__(self, url: str):
        self._filesystem, self._path = fsspec.core.url_to_fs(url)
        self.is_on_disk = "file" in self._filesystem.protocol
        self._lines = _whole_lines(url)
        self._num_written = 0  # the first writing leaves out half a line that a crash has left

    def add(self, event: str, at: float, run: str, step: int, fields: Mapping[str, Any]) -> None:
        """Add an event to those to be written.

        Args:
            event: its name.
            at: when it happened, seconds since 1970.
            run, step: name of the run, and the step after which it happened.
            fields: of JSON; numbers that are not finite become null.
        """
        time = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        values = {"time": time, "event": event, "run": run, "step": step, **fields}
        self._lines.append(json.dumps(_finite(values), ensure_ascii=False))
        if len(self._lines) > MOST_LINES:
            del self._lines[: -MOST_LINES // 2]
            self._num_written = 0

    @property
    def is_written(self) -> bool:
        """Whether the file has all events."""
        return self._num_written == len(self._lines)

    def write(self) -> None:
        """Write the events that the file lacks.

        Raises:
            OSError: the file cannot be written.
        """
        first = self._num_written if self.is_on_disk else 0
        data = "".join(f"{line}\n" for line in self._lines[first:]).encode("utf8")
        if first:
            with self._filesystem.open(self._path, "ab") as file:
                file.write(data)
        else:
            self._write_whole(data)
        self._num_written = len(self._lines)

    def _write_whole(self, data: bytes) -> None:
        self._filesystem.makedirs(os.path.dirname(self._path), exist_ok=True)
        if self.is_on_disk:  # a crash must not leave half a file
            self._filesystem.pipe_file(f"{self._path}.new", data)
            os.replace(f"{self._path}.new", self._path)
        else:
            self._filesystem.pipe_file(self._path, data)


def _whole_lines(url: str) -> list[str]:
    data = content(url)
    return [] if data is None else data.decode("utf8", "replace").split("\n")[:-1][-MOST_LINES:]


def _finite(value: Any) -> Any:
    """The same JSON with null for numbers that are not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
