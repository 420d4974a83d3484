"""A batch as a row: what goes in comes out, wherever Ray Data slices the stream."""

import numpy as np
import pyarrow as pa
import pytest

from actors.training.loop import in_steps
from engine.records import PASSAGE, SHARE, of_list, ragged, rows_of, schema
from engine.records.batches import LEARNED, BatchBlocks, as_row, of_row, shares, to_learn
from pipelines.stream.stages import SourceModelStage
from tests.support.training_blocks import training_blocks


def passages(count: int) -> pa.Table:
    columns = [
        [f"0/a:{row}:0" for row in range(count)],
        [f"text {row} é" for row in range(count)],
        [9] * count,
        [0] * count,
        [True] * count,
        [[]] * count,
    ]
    fields = schema(PASSAGE)
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)], fields)
    return table.append_column("m/topk", ragged([np.arange(3 * row) for row in range(count)], pa.float16()))


def in_blocks(*of_passages: int) -> BatchBlocks:
    count = max(of_passages) + 1
    return BatchBlocks(np.array(of_passages, np.int32), np.arange(4 * count).reshape(count, 4), 7)


def test_a_batch_comes_out_as_it_went_in():
    row = as_row(passages(5), in_blocks(0, 0, 1, 1, 2))
    assert len(row) == 1
    batch, blocks = of_row(row)
    assert batch.equals(passages(5))
    assert blocks.of_passages.tolist() == [0, 0, 1, 1, 2]
    assert blocks.entries.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert blocks.first_turn == 7


def test_what_has_been_learned_is_scored_for_company_and_then_left_out():
    batch, blocks = to_learn(*of_row(as_row(passages(5), in_blocks(LEARNED, LEARNED, 0, 0, 1))))
    assert batch.equals(passages(5).slice(2))
    assert blocks.of_passages.tolist() == [0, 0, 1]


def test_rows_that_were_joined_and_sliced_are_the_same_batches():
    stream = pa.concat_tables(
        [as_row(passages(count), in_blocks(*range(count))) for count in (2, 5, 1)]
    ).combine_chunks()
    for index, count in enumerate((2, 5, 1)):
        batch, blocks = of_row(stream.slice(index, 1))
        assert batch.equals(passages(count))
        assert blocks.of_passages.tolist() == list(range(count))
        assert len(blocks.entries) == count


def test_ragged_values_are_not_copied():
    batch = passages(50)
    inside, _ = of_row(as_row(batch, in_blocks(*[0] * 50)))
    address = batch["m/topk"].chunk(0).values.buffers()[1].address
    assert inside["m/topk"].chunk(0).values.buffers()[1].address == address


def test_a_stage_changes_batches_inside_their_rows():
    class Doubler:
        def __init__(self, times: int):
            self._times = times

        def __call__(self, batch: pa.Table) -> pa.Table:
            longer = [np.tile(row, self._times) for row in rows_of(batch["m/topk"])]
            return batch.drop_columns("m/topk").append_column("m/longer", ragged(longer, pa.float16()))

    stage = SourceModelStage(score=Doubler, times=2)
    batch, blocks = of_row(stage(as_row(passages(4), in_blocks(0, 0, 1, 2))))
    assert [len(row) for row in rows_of(batch["m/longer"])] == [0, 6, 12, 18]
    assert blocks.of_passages.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(("num_workers", "blocks_per_step", "batches"), [(1, 4, 3), (2, 2, 3), (2, 3, 4), (4, 1, 2)])
def test_the_workers_steps_together_are_the_blocks_in_their_order(num_workers, blocks_per_step, batches):
    """Whatever the workers' number, and whether a step takes part of a batch or several; only the last batch is odd."""
    made = [training_blocks(seed=seed, lengths=[20] * (8 if seed + 1 < batches else 5)) for seed in range(batches)]
    dealt = [[of_list(row[SHARE]) for row in shares(blocks, num_workers)] for blocks in made]
    steps = [list(in_steps([row[worker] for row in dealt], blocks_per_step)) for worker in range(num_workers)]
    expected = [names for blocks in made for names in blocks["passage_ids"].to_pylist()]
    for step in range(len(steps[0])):
        tables = [worker[step] for worker in steps if step < len(worker)]
        seen = [names for table in tables for names in rows_of(table["passage_ids"])]
        at_once = num_workers * blocks_per_step
        assert sorted(map(list, seen)) == sorted(expected[step * at_once : (step + 1) * at_once])
    for tables in steps:
        assert all(len(table) == blocks_per_step for table in tables[:-1])
        for table in tables:
            assert len(rows_of(table["fused_probs"])) == len(table)


def test_batches_of_fewer_blocks_than_workers_are_dealt_out_evenly():
    dealt: list[list[list[str]]] = [[] for _ in range(4)]
    names = []
    for batch in range(4):
        blocks = training_blocks(seed=batch, lengths=[20, 20, 20])
        names += blocks["passage_ids"].to_pylist()
        for worker, row in zip(dealt, shares(blocks, 4, 3 * batch), strict=True):
            worker += of_list(row[SHARE])["passage_ids"].to_pylist()
    assert dealt == [names[worker::4] for worker in range(4)]


def test_a_worker_may_get_nothing_of_a_batch():
    rows = list(shares(training_blocks(seed=0, lengths=[20]), 3))
    assert [len(of_list(row[SHARE])) for row in rows] == [1, 0, 0]
    assert list(in_steps([of_list(row[SHARE]) for row in rows[1:]], 2)) == []
