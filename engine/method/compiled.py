"""numba's ``njit`` with the settings that every kernel of this project shares."""

from __future__ import annotations

import os
from functools import partial

import numba

#: Compiled kernels are kept once a node, for all runs and processes; numba's own variable moves them.
if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = os.path.expanduser("~/.cache/knowledge-fusion-engine/kernels")

#: Compile a function without Python objects; it releases the GIL and stays in the cache.
njit = partial(numba.njit, cache=True, nogil=True)
