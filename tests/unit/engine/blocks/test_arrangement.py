"""The arrangement: the same blocks and batches wherever reading begins, and nothing lost."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks.arrangement import PACKED_BLOCKS, Arrangement, Batch, MeasuredPassage, Place, shuffle
from engine.corpus.passages import Passage
from engine.history.ledger import SHARD_END, SHARD_START

LENGTH = 32


def arrangement(batch_blocks: int = 8, held: int = 20) -> Arrangement:
    return Arrangement(held, 0, LENGTH, batch_blocks)


def corpus(count: int, seed: int = 0) -> list[MeasuredPassage]:
    """Passages whose places count them."""
    draw = random.Random(seed)
    passages = (Passage(f"passage {index}", "text", 4, 0, True) for index in range(count))
    return [
        MeasuredPassage(passage, draw.randint(1, LENGTH), Place(0, index, 0, 0))
        for index, passage in enumerate(passages)
    ]


def batches(found: Arrangement, passages, shard: int = 0, start=SHARD_START) -> list[Batch]:
    return list(found.batches(found.lots(passages[start.rows :], shard, start)))


def names(batch: Batch) -> list[list[str]]:
    return [[passage.passage_id for passage in block] for block in batch.blocks]


@settings(deadline=None, max_examples=15)
@given(count=st.integers(0, 900), batch_blocks=st.integers(1, 200), held=st.sampled_from([0, 20, 500]))
def test_reading_that_begins_at_any_cursor_makes_the_same_batches(count, batch_blocks, held):
    found = arrangement(batch_blocks, held)
    whole = batches(found, corpus(count))
    together = sorted(name for batch in whole for block in names(batch) for name in block)
    assert together == sorted(each.passage.passage_id for each in corpus(count))
    for number, batch in random.Random(count).sample(list(enumerate(whole)), min(4, len(whole))):
        assert batch.end == (whole[number + 1].first_block if number + 1 < len(whole) else batch.end)
        if batch.after.unit == SHARD_END:
            assert batch is whole[-1] and batch.after.block == batch.end
            continue
        again = batches(found, corpus(count), start=batch.after)
        assert again[-len(whole[number + 1 :]) :] == whole[number + 1 :]
        assert batch.end - batch.after.block < 2 * max(PACKED_BLOCKS, held), "at most a lot is read again"


def test_blocks_are_within_their_length_and_batches_within_theirs():
    lengths = {each.passage.passage_id: each.tokens for each in corpus(3000)}
    found = batches(arrangement(batch_blocks=8), corpus(3000))
    blocks = [block for batch in found for block in names(batch)]
    assert all(sum(lengths[row] for row in rows) <= LENGTH for rows in blocks)
    assert sum(lengths.values()) / (len(blocks) * LENGTH) > 0.93, "padding is small"
    assert {len(batch.blocks) for batch in found[:-1]} == {8}, "batches reach over lots"
    assert len(blocks) > 2 * PACKED_BLOCKS


def test_shards_draw_orders_of_their_own_and_the_same_each_time():
    first, second = (batches(arrangement(), corpus(200), shard=shard) for shard in (0, 1))
    assert first == batches(arrangement(), corpus(200))
    assert list(map(names, first)) != list(map(names, second))


def test_shuffling_keeps_every_passage_and_looks_only_so_far_ahead():
    shuffled = list(shuffle(range(500), 20, random.Random(1)))
    assert sorted(shuffled) == list(range(500))
    assert shuffled != list(range(500))
    assert all(place <= drawn_at + 20 for drawn_at, place in enumerate(shuffled))
    assert list(shuffle(range(9), 0, random.Random(1))) == list(range(9))


def test_a_lot_holds_all_passages_that_are_shuffled_together():
    lots = list(arrangement(held=2000).lots(corpus(3000), 0))
    assert [sum(map(len, lot.blocks)) for lot in lots] == [2000, 1000]
