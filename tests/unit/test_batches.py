"""A batch as a row: what goes in comes out, wherever Ray Data slices the stream."""

import numpy as np
import pyarrow as pa

from engine.records import PASSAGE, ragged, rows_of, schema
from pipelines.batches import as_row, of_row, on_batches


def passages(count: int) -> pa.Table:
    columns = [
        [f"0/a:{row}:0" for row in range(count)],
        [f"text {row} é" for row in range(count)],
        [9] * count,
        [0] * count,
        [True] * count,
    ]
    fields = schema(PASSAGE)
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)], fields)
    return table.append_column("m/topk", ragged([np.arange(3 * row) for row in range(count)], pa.float16()))


def test_a_batch_comes_out_as_it_went_in():
    row = as_row(passages(5), [0, 0, 3, 3, 4])
    assert len(row) == 1
    batch, training_blocks = of_row(row)
    assert batch.equals(passages(5))
    assert training_blocks.tolist() == [0, 0, 3, 3, 4]


def test_rows_that_were_joined_and_sliced_are_the_same_batches():
    stream = pa.concat_tables([as_row(passages(count), list(range(count))) for count in (2, 5, 1)]).combine_chunks()
    for index, count in enumerate((2, 5, 1)):
        batch, training_blocks = of_row(stream.slice(index, 1))
        assert batch.equals(passages(count))
        assert training_blocks.tolist() == list(range(count))


def test_ragged_values_are_not_copied():
    batch = passages(50)
    inside, _ = of_row(as_row(batch, [0] * 50))
    address = batch["m/topk"].chunk(0).values.buffers()[1].address
    assert inside["m/topk"].chunk(0).values.buffers()[1].address == address


def test_a_stage_changes_batches_inside_their_rows():
    class Doubler:
        def __init__(self, times: int):
            self._times = times

        def __call__(self, batch: pa.Table) -> pa.Table:
            longer = [np.tile(row, self._times) for row in rows_of(batch["m/topk"])]
            return batch.drop_columns("m/topk").append_column("m/longer", ragged(longer, pa.float16()))

    stage = on_batches(Doubler)(2)
    assert type(stage).__name__ == "Doubler"
    batch, training_blocks = of_row(stage(as_row(passages(4), [7, 7, 8, 9])))
    assert [len(row) for row in rows_of(batch["m/longer"])] == [0, 6, 12, 18]
    assert training_blocks.tolist() == [7, 7, 8, 9]
