"""The arrangement: the same blocks and batches whatever has been learned, and nothing lost."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks.arrangement import PACKED_BLOCKS, Arrangement, MeasuredPassage, drop_learned, shuffle
from engine.corpus.passages import Passage
from engine.history.ledger import Ledger

LENGTH = 32


def arrangement(batch_blocks: int = 8, checkpoint_blocks: int = 12, held: int = 20) -> Arrangement:
    return Arrangement(held, 0, LENGTH, batch_blocks, checkpoint_blocks)


def corpus(count: int, seed: int = 0) -> list[MeasuredPassage]:
    draw = random.Random(seed)
    passages = (Passage(f"passage {index}", "text", 4, 0, True) for index in range(count))
    return [MeasuredPassage(passage, draw.randint(1, LENGTH)) for passage in passages]


def batches(found: Arrangement, passages, learned=(), share: int = 0) -> list[tuple[list[str], list[int]]]:
    """The ids of each batch's passages, and the training blocks of these."""
    blocks = drop_learned(found.blocks(passages, share), Ledger(learned))
    return [
        ([passage.passage_id for passage in batch.passages], batch.training_blocks) for batch in found.batches(blocks)
    ]


def by_block(found) -> dict[int, list]:
    blocks = {}
    for rows, numbers in found:
        assert numbers == sorted(numbers)
        for row, number in zip(rows, numbers, strict=True):
            blocks.setdefault(number, []).append(row)
    return blocks


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(0, 400),
    batch_blocks=st.integers(1, 30),
    step_blocks=st.integers(1, 6),
    every=st.integers(1, 5),
    checkpoints=st.integers(0, 6),
)
def test_the_batches_after_a_checkpoint_are_those_of_an_undisturbed_run(
    count, batch_blocks, step_blocks, every, checkpoints
):
    found = arrangement(batch_blocks, step_blocks * every)
    whole = batches(found, corpus(count))
    assert sorted(row for rows, _ in whole for row in rows) == sorted(each.passage.passage_id for each in corpus(count))
    learned_blocks = checkpoints * step_blocks * every
    learned = [row for number, rows in by_block(whole).items() if number < learned_blocks for row in rows]
    assert batches(found, corpus(count), learned) == [batch for batch in whole if batch[1][0] >= learned_blocks]


def test_a_block_that_is_half_learned_keeps_the_rest():
    whole = batches(arrangement(), corpus(100))
    first = whole[0][0][0]
    rest = batches(arrangement(), corpus(100), [first])
    assert [row for rows, _ in rest for row in rows] == [row for rows, _ in whole for row in rows if row != first]


def test_blocks_are_within_their_length_and_batches_within_theirs():
    lengths = {each.passage.passage_id: each.tokens for each in corpus(3000)}
    found = batches(arrangement(batch_blocks=8, checkpoint_blocks=20), corpus(3000))
    blocks = by_block(found)
    assert sorted(blocks) == list(range(len(blocks)))
    assert all(sum(lengths[row] for row in rows) <= LENGTH for rows in blocks.values())
    assert sum(lengths.values()) / (len(blocks) * LENGTH) > 0.93, "padding is small"
    assert [len(set(numbers)) for _, numbers in found[:6]] == [8, 8, 4, 8, 8, 4], "cut at checkpoints"
    assert len(blocks) > 2 * PACKED_BLOCKS


def test_shares_draw_orders_of_their_own_and_the_same_each_time():
    first, second = (batches(arrangement(), corpus(200), share=share) for share in (0, 1))
    assert first == batches(arrangement(), corpus(200))
    assert first != second


def test_shuffling_keeps_every_passage_and_looks_only_so_far_ahead():
    shuffled = list(shuffle(range(500), 20, random.Random(1)))
    assert sorted(shuffled) == list(range(500))
    assert shuffled != list(range(500))
    assert all(place <= drawn_at + 20 for drawn_at, place in enumerate(shuffled))
    assert list(shuffle(range(9), 0, random.Random(1))) == list(range(9))
