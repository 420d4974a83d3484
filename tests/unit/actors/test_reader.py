"""Readers that are interrupted: whatever was learned in whatever order, every passage is learned exactly once."""

import random
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.monitor import NoMeter
from actors.reader import PassageReader
from engine.blocks import arrangement
from engine.blocks.arrangement import Arrangement
from engine.corpus import shards
from engine.corpus.cutting import Cutter
from engine.corpus.files import units_of
from engine.corpus.shards import in_passes, shards_of
from engine.history.ledger import Ledger
from engine.model_files.checkpoint import Checkpoint
from engine.records.batches import of_row, to_learn
from engine.spec import CorpusSpec
from pipelines.stream.fused_blocks import reading_tasks
from tests.benchmarks.bytes_read import CountedBytes, first_row
from tests.support.tiny_tokenizers import tokenizer_folders

pytestmark = pytest.mark.timeout(120)

PASSES = 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tokenizer, and shards of two passes over short and long documents in a file that is split."""
    folder = tmp_path_factory.mktemp("corpus")
    checkpoint = Checkpoint(str(tokenizer_folders(folder)[0]))
    draw = random.Random(1)
    rows = [f'{{"text": "document {row} {"word é " * draw.choice([1, 3, 60])}"}}\n' for row in range(40)]
    (folder / "a.jsonl").write_text("".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SMALLEST_SHARD", 1000)
        patch.setattr(arrangement, "PACKED_BLOCKS", 4)
        found = shards_of(units_of(str(folder / "a.jsonl")))
        assert len(found) > 3
        yield checkpoint, in_passes(found, PASSES)


def reader(corpus, learned: Ledger, batch_blocks: int) -> PassageReader:
    checkpoint, found = corpus
    return PassageReader(
        corpus=CorpusSpec(paths=["a.jsonl"]),
        shards=found,
        target_checkpoint=checkpoint,
        cut=Cutter([checkpoint], [24]),
        arrange=Arrangement(9, 0, 32, batch_blocks),
        learned=learned,
        meter=NoMeter(),
    )


def streams(corpus, learned: Ledger, batch_blocks: int, in_order: bool) -> list:
    """What each task yields: passages with the index of their block, and the blocks' ledger entries."""
    tasks = reading_tasks(corpus[1], learned, in_order)
    found = (reader(corpus, learned, batch_blocks)(pa.Table.from_pylist([task])) for task in tasks)
    return [[to_learn(*of_row(row)) for row in rows] for rows in found]


def ids(passages: pa.Table) -> list[str]:
    return passages["passage_id"].to_pylist()


@settings(deadline=None, max_examples=4)
@given(st.integers(0, 2**32), st.integers(1, 5), st.booleans())
def test_every_passage_is_learned_once_whatever_was_learned_before_an_interruption(corpus, seed, readers, in_order):
    draw, ledger, learned = random.Random(seed), Ledger(), Counter()
    for start in range(4):
        waiting = streams(corpus, ledger, draw.randint(1, 6), in_order)  # another number of workers, other batches
        steps = 10**6 if start == 3 else draw.randint(0, 12)
        busy = [waiting.pop(0) for _ in range(min(readers, len(waiting)))]
        state = ledger.state()
        while busy and steps:
            steps -= 1
            task = draw.choice(busy)
            if task:
                batch, blocks = task.pop(draw.randrange(min(2, len(task))))  # batches overtake each other
                learn_some(draw, ledger, learned, batch, blocks, all_of_them=start == 3)
            if not task:
                busy.remove(task)
                busy += [waiting.pop(0)] if waiting else []
        assert Ledger.of(state).state() == state
    everything = streams(corpus, Ledger(), 3, in_order=True)[0]
    assert learned == Counter(name for batch, _ in everything for name in ids(batch))
    assert ledger.state()["done"] == [(0, len(corpus[1]))] and not ledger.state()["open"]


def learn_some(draw, ledger, learned, batch, blocks, all_of_them) -> None:
    """Learn the blocks of a batch, or those that one of two workers got before an interruption."""
    numbers = [number for number in range(len(blocks.entries)) if all_of_them or draw.random() < 0.7]
    ledger.learn(blocks.entries[numbers])
    for name, number in zip(ids(batch), blocks.of_passages, strict=True):
        learned[name] += number in numbers


def test_a_batch_in_which_something_was_learned_is_scored_whole(corpus):
    whole = [of_row(row) for row in reader(corpus, Ledger(), 3)(first_shard())]
    ledger = Ledger()
    ledger.learn(whole[0][1].entries)
    ledger.learn(whole[1][1].entries[:2])
    again = [of_row(row) for row in reader(corpus, ledger, 3)(first_shard())]
    assert [ids(batch) for batch, _ in again] == [ids(batch) for batch, _ in whole[1:]]
    assert [blocks.first_turn for _, blocks in again] == [5, *(blocks.first_turn for _, blocks in whole[2:])]
    assert len(again[0][1].entries) == 1


def first_shard() -> pa.Table:
    return pa.Table.from_pylist([{"shards": [0], "first_turn": 0}])


def test_turns_count_over_the_shards_of_a_reader_of_all(corpus):
    batches = streams(corpus, Ledger(), 3, in_order=True)[0]
    turns = [blocks.first_turn + index for _, blocks in batches for index in range(len(blocks.entries))]
    assert turns == list(range(len(turns)))
    ledger = Ledger()
    for _, blocks in batches[: len(batches) // 2]:
        ledger.learn(blocks.entries)
    (rest,) = streams(corpus, ledger, 3, in_order=True)
    assert [blocks.first_turn for _, blocks in rest] == [b.first_turn for _, b in batches[len(batches) // 2 :]]


def test_the_benchmarks_count_the_lines_from_the_cursor_to_the_end_of_the_lot(corpus):
    """A reader takes the rest of the line before its place, too, and stops reading where it has a first batch."""
    ended_early = 0
    for shard in corpus[1][: len(corpus[1]) // PASSES]:
        task = pa.Table.from_pylist([{"shards": [shard.number], "first_turn": 0}])
        ledger, (unit,) = Ledger(), shard.units
        for row in list(reader(corpus, Ledger(), 2)(task))[:3]:
            ledger.learn(of_row(row)[1].entries)
        if ledger.is_done(shard.number):
            continue
        with CountedBytes() as whole:
            rows = list(reader(corpus, ledger, 2)(task))
        row, num_bytes = first_row(reader(corpus, ledger, 2)(task))
        assert row.equals(rows[0])
        with open(unit.path, "rb") as file:
            data = file.read()
        begin = unit.first_byte + ledger.progress(shard.number).cursor.offset
        end = data.index(b"\n", unit.end_byte - 1) + 1 if unit.end_byte >= 0 else len(data)
        assert whole.bytes == end - max(begin - 1, 0)
        assert 0 < num_bytes <= whole.bytes
        ended_early += num_bytes < whole.bytes
    assert ended_early
