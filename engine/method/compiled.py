"""numba's ``njit`` with the settings that every kernel of this project shares."""

from __future__ import annotations

import os
from functools import partial
from hashlib import sha256
from pathlib import Path

import numba


def cache_folder(kernels: Path) -> str:
    """Where compiled kernels are kept once a node, for all runs and processes; NUMBA_CACHE_DIR moves it.

    The name depends on every file of the kernels' folder: numba itself compiles a kernel again if its own file has
    changed, but not if that of a function has which it calls.
    """
    place = os.environ.get("NUMBA_CACHE_DIR") or os.path.expanduser("~/.cache/knowledge-fusion-engine/kernels")
    contents = b"".join(file.read_bytes() for file in sorted(kernels.glob("*.py")))
    return os.path.join(place, sha256(contents).hexdigest()[:16])


numba.config.CACHE_DIR = cache_folder(Path(__file__).parent)

#: Compile a function without Python objects; it releases the GIL and stays in the cache.
njit = partial(numba.njit, cache=True, nogil=True)
