"""The environment of a subprocess whose home folder must be empty."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = Path("~/.cache/knowledge-fusion-engine").expanduser()

#: Machine code and vLLM's notes on architectures: they depend on installed packages alone and take a minute to make.
COMPILED = {"NUMBA_CACHE_DIR": str(CACHE / "kernels"), "VLLM_CACHE_ROOT": str(CACHE / "vllm")}


def with_own_home(base: Path, **further: str) -> dict[str, str]:
    """This process's environment with an empty home folder below ``base``; what was compiled is shared."""
    home = base / "home"
    home.mkdir(exist_ok=True)
    return {**os.environ, **COMPILED, "HOME": str(home), **further}
