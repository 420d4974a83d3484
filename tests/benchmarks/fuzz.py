"""Many random passages through tokenization, alignment, mapping and fusion.

    python -m tests.benchmarks.fuzz [PASSAGES] [SEED]

Every real tokenizer is the target in turn, with two others as sources, under four methods. It ends at an
exception or an unsound number.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.figures import say
from tests.support import real_tokenizers
from tests.support.fuzzing import METHODS, Fuzzer, checkpoints, texts

BATCH = 64


def main(passages: int, seed: int) -> None:
    """Fuse ``passages`` random passages, a seventh with each target."""
    names, stream = real_tokenizers.NAMES, texts(seed)
    started, taken, refused = time.perf_counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").mkdir()
        folders = checkpoints(Path(folder) / "models")
        for index, target in enumerate(names):
            sources = [names[(index + 1) % len(names)], names[(index + 3) % len(names)]]
            fuzzer = Fuzzer(folders, target, sources, folder, seed + index)
            while fuzzer.passages < passages / len(names):
                fuzzer.run(list(itertools.islice(stream, BATCH)))
            taken, refused = taken + fuzzer.passages, refused + fuzzer.refused
    seconds = time.perf_counter() - started
    say(
        "fuzzed_passages", taken, "passages", "refused with a sentence", refused / (taken + refused),
        methods=len(METHODS), tokenizers=names, seed=seed, seconds=round(seconds),
    )  # fmt: skip


if __name__ == "__main__":
    main(*[int(argument) for argument in [*sys.argv[1:], *["100000", "0"][len(sys.argv) - 1 :]]])
