"""Packing: nothing lost, nothing mixed up, little padding."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks.arrangement import best_fit
from engine.blocks.packing import Packer
from engine.errors import RecordError
from engine.records import FUSED_PASSAGE, NO_TOKEN, TRAINING_BLOCK, check, ragged, rows_of, schema

TOP_K, SOURCES, LENGTH = 3, 2, 32


def fused_passages(lengths: list[int], seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    fused = [random.integers(0, 2, length).astype(bool) for length in lengths]
    columns = {
        "passage_id": pa.array([f"0/a:1:{index}" for index in range(len(lengths))]),
        "num_bytes": pa.array([3 * length for length in lengths], pa.int32()),
        "token_ids": ragged([random.integers(0, 99, length) for length in lengths], pa.int32()),
        "fused_ids": ragged([random.integers(-1, 99, (length, TOP_K)) for length in lengths], pa.int32()),
        "fused_probs": ragged([random.random((length, TOP_K)) for length in lengths], pa.float16()),
        "is_fused": ragged(fused, pa.bool_()),
        "is_learned": ragged([random.integers(0, 2, length).astype(bool) for length in lengths], pa.bool_()),
        "win_share": ragged([random.random(SOURCES).astype(np.float32) for _ in lengths], pa.float32()),
        "cross_entropy": ragged([random.random(SOURCES) for _ in lengths], pa.float32()),
        "covered_rows": ragged([random.integers(0, 9, SOURCES) for _ in lengths], pa.int32()),
        "inspection": pa.array([f"look {index}" for index in range(len(lengths))], pa.large_string()),
    }
    return pa.table(columns, schema(FUSED_PASSAGE))


def placed(passages: pa.Table) -> np.ndarray:
    """The block of each passage, as the reader would have it."""
    blocks = np.empty(len(passages), np.int32)
    for number, items in enumerate(best_fit([len(tokens) for tokens in rows_of(passages["token_ids"])], LENGTH)):
        blocks[items] = number
    return blocks


def packed(passages: pa.Table) -> pa.Table:
    blocks = placed(passages)
    return Packer(LENGTH, TOP_K)(passages, blocks, entries(max(blocks) + 1))


def entries(count: int) -> np.ndarray:
    """One for each block."""
    return np.arange(3 * count).reshape(count, 3)


@given(st.lists(st.integers(1, LENGTH), min_size=1, max_size=40))
def test_best_fit_places_every_item_once_within_capacity(lengths):
    bins = best_fit(lengths, LENGTH)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in items) <= LENGTH for items in bins)
    assert bins == sorted(bins)
    # No two bins could be one: best fit never opens a bin while an item fits an open one.
    totals = sorted(sum(lengths[item] for item in items) for items in bins)
    assert len(totals) < 2 or totals[0] + totals[1] > LENGTH


def test_an_item_that_fits_no_bin_is_named():
    with pytest.raises(ValueError, match="item 1 of length 33"):
        best_fit([4, 33], LENGTH)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, LENGTH), min_size=1, max_size=20))
def test_every_row_of_every_passage_is_found_again(lengths):
    passages = fused_passages(lengths)
    blocks = packed(passages)
    check(blocks, TRAINING_BLOCK, "test")
    names = ("input_ids", "segment_ids", "loss_mask", "fusion_mask", "fused_ids", "fused_probs")
    per_block = list(zip(*(rows_of(blocks[name]) for name in names), strict=True))
    inside = [list(row) for row in rows_of(blocks["passage_ids"])]
    expected = dict(zip(passages["passage_id"].to_pylist(), range(len(lengths)), strict=True))
    seen = []
    for (tokens, segments, loss_mask, fusion_mask, ids, probs), passage_ids in zip(per_block, inside, strict=True):
        ids, probs = ids.reshape(LENGTH, TOP_K), probs.reshape(LENGTH, TOP_K)
        for segment, passage_id in enumerate(passage_ids, start=1):
            row, where = expected[passage_id], segments == segment
            seen.append(passage_id)
            assert np.array_equal(tokens[where], rows_of(passages["token_ids"])[row])
            assert np.array_equal(ids[where].ravel(), rows_of(passages["fused_ids"])[row])
            assert np.array_equal(probs[where].ravel(), rows_of(passages["fused_probs"])[row])
            assert np.array_equal(fusion_mask[where], rows_of(passages["is_fused"])[row])
            assert np.array_equal(loss_mask[where], rows_of(passages["is_learned"])[row])
        padding = segments == 0
        assert not loss_mask[padding].any()
        assert not fusion_mask[padding].any()
        assert (ids[padding] == NO_TOKEN).all()
    assert sorted(seen) == sorted(expected)


def test_what_the_ledger_needs_travels_with_the_block():
    passages = fused_passages([20, 30, 12])
    blocks = packed(passages)
    assert [row.tolist() for row in rows_of(blocks["ledger_entry"])] == [[0, 1, 2], [3, 4, 5]]
    assert [list(row) for row in rows_of(blocks["passage_ids"])] == [["0/a:1:0", "0/a:1:2"], ["0/a:1:1"]]
    learned = [int(row.sum()) for row in rows_of(passages["is_learned"])]
    assert [row.tolist() for row in rows_of(blocks["passage_tokens"])] == [
        [1 + learned[0], 1 + learned[2]],
        [1 + learned[1]],
    ]
    assert [row.tolist() for row in rows_of(blocks["passage_bytes"])] == [[60, 36], [90]]
    cross_entropy = rows_of(passages["cross_entropy"])
    assert np.array_equal(rows_of(blocks["cross_entropy"])[0], np.concatenate([cross_entropy[0], cross_entropy[2]]))


def test_a_block_that_is_too_full_is_refused():
    with pytest.raises(RecordError, match="0/a:1:0, 0/a:1:1 have 50 tokens, their training block takes 32"):
        Packer(LENGTH, TOP_K)(fused_passages([20, 30]), np.zeros(2, np.int32), entries(1))


def test_padding_is_small_for_ordinary_batches():
    random = np.random.default_rng(1)
    lengths = random.integers(20, 256, 64).tolist()
    bins = best_fit(lengths, 256)
    assert sum(lengths) / (len(bins) * 256) > 0.93
