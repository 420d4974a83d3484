"""Results of work on files, kept under a name that changes with what the files hold: it is not done twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def finished(folder: Path, inputs: Sequence[Path], settings: str, work: Callable[[], Any]) -> Any:
    """The result of some work, which JSON can hold: of an earlier start if there is one.

    Args:
        folder: keeps the results.
        inputs: files, and folders with all that is in them.
        settings: what else the result depends on.
    """
    place = folder / f"{_digest(inputs, settings)}.json"
    if not place.exists():
        text = json.dumps(work())
        folder.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(f".{os.getpid()}")
        beside.write_text(text, encoding="utf8")
        beside.replace(place)
    return json.loads(place.read_text(encoding="utf8"))


def _digest(inputs: Sequence[Path], settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for path in inputs:
        for file in sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]:
            digest.update(file.name.encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:32]
