"""One way to find the nearest string of a vocabulary, alone in its process, so that its peak memory is its own.

    python -m tests.benchmarks.edit_table ours|rapidfuzz FILE

FILE holds two JSON lists of strings, sources and targets. Prints seconds, peak bytes of the process, and a digest of
the indices and distances.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np

#: Source strings in one table of rapidfuzz, so that it fits into memory.
CHUNK = 8000


def ours(sources: list[str], targets: list[str]) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, indices and distances."""
    from engine.method.edit_distance import nearest

    nearest(sources[:300], targets[:300], 1)  # compile, or read the compiled
    started = time.perf_counter()
    index, distance = nearest(sources, targets, os.cpu_count() or 1)
    return time.perf_counter() - started, index, distance


def rapidfuzz(sources: list[str], targets: list[str]) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, indices (the lowest among equals) and distances."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    started = time.perf_counter()
    index, distance = [], []
    for begin in range(0, len(sources), CHUNK):
        rows = sources[begin : begin + CHUNK]
        table = cdist(rows, targets, scorer=Levenshtein.distance, workers=os.cpu_count() or 1, dtype=np.uint8)
        index.append(table.argmin(axis=1))
        distance.append(table.min(axis=1))
    return time.perf_counter() - started, np.concatenate(index), np.concatenate(distance)


if __name__ == "__main__":
    way = {"ours": ours, "rapidfuzz": rapidfuzz}[sys.argv[1]]
    seconds, index, distance = way(*json.loads(Path(sys.argv[2]).read_text(encoding="utf8")))
    digest = hashlib.sha256(index.astype(np.int64).tobytes() + distance.astype(np.int64).tobytes()).hexdigest()
    # Not getrusage, which counts from what the starting process had.
    status = Path("/proc/self/status").read_text(encoding="utf8")
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "digest": digest}))
