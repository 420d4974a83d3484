"""What a run that goes on reads before its first new passage: a real run, stopped at three parts of a corpus.

    python -m tests.benchmarks.resume [--at 0.1 0.5 0.9]

``resume_run_bytes``: bytes of the lines that the reader of a start takes from the corpus until its first batch is
there, against all bytes before the place where the start before it had stopped; ``lots`` is the same in lots of
training blocks. One run is stopped by ``training.max_tokens`` at a tenth, half and nine tenths of its tokens, and
started again each time. Target and source have one small layer, and words are long and known to the tokenizer, so that
shards of 4 MiB are few tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path

import ray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine import run
from engine.blocks.arrangement import PACKED_BLOCKS
from engine.history.result import RunResult
from pipelines.cluster.session import LOCAL, QUIET
from tests.benchmarks.bytes_read import FIGURES
from tests.benchmarks.figures import say
from tests.benchmarks.ledger import PARTS
from tests.support.paths import ROOT
from tests.support.tiny_models import single_layer_checkpoint

WORDS, LETTERS, VOCABULARY = 100, 40, 6000
CORPUS_BYTES = 10 * 2**20

#: A batch is half a lot; with shorter blocks it would be more than one, and would have to be read whole.
BLOCK_LENGTH = 256

#: Of a step, whose checkpoint may lie in the middle of a lot.
STEP_BLOCKS = PACKED_BLOCKS // 2


def main() -> None:
    """Stop a run at each part of the corpus, and start it once more for a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at", type=float, nargs="+", default=PARTS, help="parts of the corpus, in ascending order")
    parts = parser.parse_args().at
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "figures").mkdir()
        # Ray calls the hook before its workers know where the driver imports from.
        os.environ.update({**QUIET, **LOCAL, "PYTHONPATH": str(ROOT), FIGURES: str(base / "figures")})
        tokens = make_corpus_and_model(base)
        ray.init(
            address="local",
            num_cpus=8,
            object_store_memory=2**28,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"worker_process_setup_hook": "tests.benchmarks.bytes_read.count_first_reading"},
        )
        stops = [int(tokens * part) for part in parts]
        before, _ = start(base, stops[0])
        for stop in (*stops[1:], 0):
            after, read = start(base, max(stop, before.tokens + 1))  # a step further at least
            report(before, after, read, (base / "corpus.jsonl").stat().st_size)
            before = after
        ray.shutdown()


def report(before: RunResult, after: RunResult, read: int, corpus_bytes: int) -> None:
    """Print what a start has read before its first new passage.

    Args:
        before: what had been learned until then.
        after: what has been learned at its end.
    """
    lots = read / (PACKED_BLOCKS * BLOCK_LENGTH * after.bytes / after.tokens)  # a lot is filled with tokens
    say(
        "resume_run_bytes", read, "bytes read before the first new passage", "from the beginning", before.bytes / read,
        at=round(before.bytes / corpus_bytes, 2), lots=round(lots, 2), megabytes=round(corpus_bytes / 1e6, 1),
    )  # fmt: skip


def make_corpus_and_model(base: Path) -> int:
    """Write a corpus of long words, and a model whose tokenizer knows them; returns the corpus' tokens."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=LETTERS)) for _ in range(WORDS)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"{word} {word}" for word in words], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(base / "tokenizer")
    single_layer_checkpoint(base / "model", like=base / "tokenizer")
    tokens = 0
    with (base / "corpus.jsonl").open("w") as file:
        while file.tell() < CORPUS_BYTES:
            text = " ".join(draw.choices(words, k=draw.randint(20, 800)))
            tokens += len(tokenizer.encode(text))
            file.write(json.dumps({"text": text}) + "\n")
    return tokens


def start(base: Path, max_tokens: int) -> tuple[RunResult, int]:
    """Start the run, or start it again; its result, and the bytes its reader took before the first new passage."""
    result = run(
        {
            "run": {"name": "resumed", "output_dir": str(base / "out")},
            "corpus": {"paths": [str(base / "corpus.jsonl")], "shuffle_passages": 0},
            "target_model": {"checkpoint": str(base / "model")},
            "source_models": [
                {"name": "source", "checkpoint": str(base / "model"), "backend": "transformers", "probe": "off"}
            ],
            "fusion": {"top_k": 8},
            "alignment": {"cache_dir": str(base / "tables")},
            "training": {
                "num_workers": 1,
                "block_length": BLOCK_LENGTH,
                "global_batch_blocks": STEP_BLOCKS,
                "micro_batch_blocks": 16,
                "max_steps": 1000,
                "max_tokens": max_tokens,
            },
        }
    )
    (figure,) = (base / "figures").iterdir()
    read = int(figure.read_text())
    figure.unlink()
    return result, read


if __name__ == "__main__":
    main()
