"""The ledger of a billion passages, and what a resumed reader reads before its first new passage.

    python -m tests.benchmarks.ledger

``ledger_state_bytes``, ``ledger_commit_ms`` and ``ledger_resident_mb``: 64 readers take shards of 64 MiB in turn, of
2,048-token blocks with four passages each; blocks are learned out of order within a window of batches, as they are when
batches overtake each other. Measured at a tenth, half and nine tenths of the passages, the largest of the three. A
commit learns the blocks of 50 steps and makes the state's JSON, as training does; its time is CPU time, against that of
a set of passage ids.
``resume_bytes`` is real reading of a split file without models or training, against reading from the beginning;
``tests.benchmarks.resume`` has the same of whole runs.
"""

from __future__ import annotations

import copy
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from actors.monitor import NoMeter
from actors.reader import PassageReader
from engine.blocks.arrangement import PACKED_BLOCKS, Arrangement
from engine.corpus.cutting import Cutter
from engine.corpus.files import units_of
from engine.corpus.shards import in_passes, shards_of
from engine.history.ledger import SHARD_END, Cursor, Entry, Ledger
from engine.model_files.checkpoint import Checkpoint
from engine.records.batches import of_row
from engine.spec import CorpusSpec
from tests.benchmarks.bytes_read import CountedBytes
from tests.benchmarks.figures import say

PASSAGES, READERS, PASSAGES_A_BLOCK = 10**9, 64, 4
SHARD_BLOCKS, BATCH_BLOCKS, WINDOW_BATCHES = 8192, 16, 8
STEP_BLOCKS, COMMIT_STEPS = 128, 50
PARTS = (0.1, 0.5, 0.9)

TARGET = "pipelines/quickstart/models/mistral-target"
FILE_MB = 24
BLOCK_LENGTH = 256


def entries_of_shard(shard: int) -> np.ndarray:
    """The ledger entries of a shard's blocks, int64 [SHARD_BLOCKS,E], batches out of order within the window."""
    draw = np.random.default_rng(shard)
    blocks = np.arange(SHARD_BLOCKS)
    ends = (blocks // BATCH_BLOCKS + 1) * BATCH_BLOCKS
    lots = ends // PACKED_BLOCKS * PACKED_BLOCKS
    entries = np.zeros((SHARD_BLOCKS, len(Entry(0, 0, 0, Cursor(0, 0, 0, 0, 0)).numbers())), np.int64)
    entries[:, 0], entries[:, 1], entries[:, 2], entries[:, 3] = shard, blocks, ends, lots
    entries[:, 5], entries[:, 6] = lots * 9, lots * 8192
    entries[ends == SHARD_BLOCKS, 4] = SHARD_END
    order = np.argsort(blocks // BATCH_BLOCKS + draw.uniform(0, WINDOW_BATCHES, SHARD_BLOCKS // BATCH_BLOCKS)[
        blocks // BATCH_BLOCKS
    ], kind="stable")  # fmt: skip
    return entries[order]


def measure_ledger() -> None:
    """The ledger at each part of the corpus: its state, its memory, and the time of a commit."""
    shards = PASSAGES // PASSAGES_A_BLOCK // SHARD_BLOCKS
    state_bytes, milliseconds, memory = [], [], []
    process, ledger, done = psutil.Process(), Ledger(), 0
    before = process.memory_info().rss
    for part in PARTS:
        while done < int(shards * part):
            ledger.learn(entries_of_shard(done))
            done += 1
        steps, working = in_the_middle(done), copy.deepcopy(ledger)
        for _ in range(SHARD_BLOCKS // 2 * READERS // (STEP_BLOCKS * COMMIT_STEPS)):
            working.learn(next(steps))
        for _ in range(5):
            fresh = next(steps)
            started = time.process_time()
            working.learn(fresh)
            state = json.dumps(working.state())
            milliseconds.append((time.process_time() - started) * 1e3)
            state_bytes.append(len(state))
        memory.append((process.memory_info().rss - before) / 1e6)
    ids = [f"0/s3://bucket/corpus/part-{number:05}.jsonl:{number}:0" for number in range(100_000)]
    as_ids = len(json.dumps(ids)) / len(ids) * PASSAGES
    started = time.process_time()
    json.dumps(sorted(set(ids)))
    ids_ms = (time.process_time() - started) * 1e3 / len(ids) * PASSAGES
    on = {"passages": PASSAGES, "readers": READERS, "shards": shards}
    say("ledger_state_bytes", max(state_bytes), "bytes", "ids of passages", as_ids / max(state_bytes), **on)
    say("ledger_commit_ms", max(milliseconds), "ms", "ids of passages", ids_ms / max(milliseconds), **on)
    most = max(memory)
    say("ledger_resident_mb", most, "MB with the entries to learn", "ids of passages", 194e-6 * PASSAGES / most, **on)


def in_the_middle(first_shard: int) -> Iterator[np.ndarray]:
    """The entries of each commit while all readers are in their next shards, each at its own speed."""
    draw = np.random.default_rng(first_shard)
    waiting = [entries_of_shard(first_shard + reader) for reader in range(READERS)]
    taken = np.zeros(READERS, int)
    while True:
        counts = draw.multinomial(STEP_BLOCKS * COMMIT_STEPS, np.full(READERS, 1 / READERS))
        yield np.concatenate(
            [entries[start : start + count] for entries, start, count in zip(waiting, taken, counts, strict=True)]
        )
        taken += counts


def measure_resume() -> None:
    """Bytes that are read before the first new passage, where a run goes on at each part of a corpus."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.jsonl"
        draw = random.Random(0)
        words = ["reader", "takes", "a", "shard", "of", "corpus", "and", "begins", "where", "its", "cursor", "stands"]
        with path.open("w") as file:
            while file.tell() < FILE_MB * 10**6:
                file.write(json.dumps({"text": " ".join(draw.choices(words, k=draw.randint(20, 800)))}) + "\n")
        shards = in_passes(shards_of(units_of(str(path))), passes=1)
        entries = [of_row(row)[1].entries for row in reader(shards, Ledger())(task(range(len(shards))))]
        everything = sum(map(len, entries))
        lot_bytes = PACKED_BLOCKS * path.stat().st_size / everything
        for part in PARTS:
            ledger, learned = Ledger(), 0
            for batch in entries:
                if learned >= part * everything:
                    break
                ledger.learn(batch)
                learned += len(batch)
            left = [shard.number for shard in shards if not ledger.is_done(shard.number)]
            with CountedBytes() as counted:
                next(iter(reader(shards, ledger)(task(left))))
            whole = path.stat().st_size * part
            say(
                "resume_bytes", counted.bytes, "bytes read before the first new passage", "from the beginning",
                whole / counted.bytes, at=part, lots=counted.bytes / lot_bytes, megabytes=FILE_MB,
            )  # fmt: skip


def reader(shards, learned: Ledger) -> PassageReader:
    """A reader of one model's passages."""
    checkpoint = Checkpoint(TARGET)
    return PassageReader(
        corpus=CorpusSpec(paths=["corpus.jsonl"]),
        shards=shards,
        target_checkpoint=checkpoint,
        cut=Cutter([checkpoint], [BLOCK_LENGTH - 2]),
        arrange=Arrangement(256, 0, BLOCK_LENGTH, BATCH_BLOCKS),
        learned=learned,
        meter=NoMeter(),
    )


def task(numbers) -> pa.Table:
    """A reader's task of some shards."""
    return pa.Table.from_pylist([{"shards": list(numbers), "first_turn": 0}])


if __name__ == "__main__":
    measure_ledger()
    measure_resume()
