"""The engine on one GPU: scoring, the loss, the training step, and all of them as a stream.

    python -m tests.benchmarks.gpu [--only scoring|loss|training|stream] [--sizes 1b 7b] [--vocabularies 32000 128000]
                                   [--top-k 10 64 128] [--attention sdpa flex_attention] [--passes N]
    python -m tests.benchmarks.gpu --tiny --device cpu      # the same code on a CPU, for its own sake

Figures, each a ratio within one run, of models with random weights: ``gpu_scoring_vs_prefill`` and
``gpu_scoring_vs_engine`` (``gpu_scoring``); ``gpu_loss_memory``, ``gpu_loss_time`` and ``gpu_loss_kernels``
(``gpu_loss``); ``gpu_train_mfu`` and ``gpu_train_vs_plain`` (``gpu_training``); ``gpu_stream`` (``gpu_stream``). Each
part runs in a process of its own, and each scored model too, because an engine does not give back all that it takes;
one that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.benchmarks.gpu_shapes import SHAPES

PARTS = ("loss", "training", "scoring", "stream")


def main() -> int:
    """All figures; how many parts have failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models and texts that take seconds on a CPU")
    parser.add_argument("--sizes", nargs="+", choices=[*SHAPES], default=["1b", "7b"], help="of the scored models")
    parser.add_argument("--vocabularies", nargs="+", type=int, help="of the scored models and of the training step")
    parser.add_argument("--top-k", nargs="+", type=int, default=[10, 64, 128], help="of the scored rows")
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="of the training step: training.attention")
    parser.add_argument("--passes", type=int, default=10, help="of the stream over its corpus of 92,000 tokens")
    chosen = parser.parse_args()
    pieces = [piece for part in PARTS if chosen.only in (None, part) for piece in pieces_of(part, chosen)]
    if chosen.only and len(pieces) == 1:
        run_part(chosen.only, chosen)
        return 0
    command = [sys.executable, "-m", "tests.benchmarks.gpu", *sys.argv[1:]]  # of an argument the last value counts
    return sum(subprocess.run([*command, *piece]).returncode != 0 for piece in pieces)


def pieces_of(part: str, chosen: argparse.Namespace) -> list[list[str]]:
    """The arguments of each process of a part: scoring has one for each size and vocabulary."""
    if part != "scoring":
        return [["--only", part]]
    return [
        ["--only", part, "--sizes", size, "--vocabularies", str(vocabulary)]
        for size in sizes_of(chosen)
        for vocabulary in chosen.vocabularies or SHAPES[size].vocabularies
    ]


def sizes_of(chosen: argparse.Namespace) -> list[str]:
    return ["tiny"] if chosen.tiny else chosen.sizes


def run_part(part: str, chosen: argparse.Namespace) -> None:
    """The figures of one part. Imports only what that part needs: vLLM sets what PyTorch does in its process."""
    sizes = sizes_of(chosen)
    if part == "loss":
        from tests.benchmarks import gpu_loss

        gpu_loss.figures(chosen.device, chosen.tiny)
    elif part == "training":
        from tests.benchmarks import gpu_training

        gpu_training.figures(chosen.device, sizes[0], chosen.vocabularies, chosen.attention)
    elif part == "scoring":
        from tests.benchmarks import gpu_scoring

        for size in sizes:
            gpu_scoring.figures(chosen.device, size, chosen.vocabularies, chosen.top_k)
    else:
        from tests.benchmarks import gpu_stream

        gpu_stream.figures(chosen.device, sizes[0], chosen.passes)


if __name__ == "__main__":
    sys.exit(main())
