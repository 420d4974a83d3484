"""Passages to look at are those of the sampled steps, and their rows lie where the packer has put them."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.training.looks import Looks, looks_of
from engine.method.own_rows import OwnRows
from engine.records import ragged, rows_of, schema
from engine.records.columns import TRAINING_BLOCK
from tests.support.training_blocks import LENGTH, training_blocks

pytestmark = pytest.mark.timeout(30)


def described(table: pa.Table, passages: set[str]) -> pa.Table:
    """The blocks with a look at three tokens, from the third row on, of some passages."""
    rows = []
    for ids in rows_of(table["passage_ids"]):
        texts = [json.dumps({"passage": i, "first": 2, "tokens": [7, 8, 9]}) if i in passages else "" for i in ids]
        rows.append(np.array(texts, object))
    place = table.column_names.index("inspection")
    return table.set_column(place, schema(TRAINING_BLOCK).field("inspection"), ragged(rows, pa.large_string()))


def test_the_rows_of_a_look_lie_in_its_passage():
    table = training_blocks(seed=0)
    ids = [str(passage) for row in rows_of(table["passage_ids"]) for passage in row]
    looks = looks_of(described(table, set(ids)))
    assert [look.description["passage"] for look in looks] == ids
    for look in looks:
        segments = rows_of(table["segment_ids"])[look.block]
        number = list(rows_of(table["passage_ids"])[look.block]).index(look.description["passage"]) + 1
        assert look.first == np.flatnonzero(segments == number)[0] + 2 and look.rows == 3


def test_a_sampled_step_without_a_described_passage_takes_the_next_with_one():
    table, looks = training_blocks(seed=0), Looks(is_wanted=True)
    some = described(table, {"0/a:0:1", "0/a:0:3", "0/a:0:4"})
    assert len(looks.choose(table, 16, LENGTH)) == 0
    assert looks.descriptions(None, 16) == []
    asked = looks.choose(some, 17, LENGTH)
    assert len(asked) == 6 and (np.diff(asked) > 0).all(), "two passages at most"
    numbers = torch.arange(30.0).view(6, 5)
    found = looks.descriptions(OwnRows(numbers.long(), numbers / 100, numbers[:, 0], -numbers[:, 0]), 17)
    assert [(look["step"], look["sample"]) for look in found] == [(17, 16), (17, 16)], "17 of 17 is not sampled"
    assert found[1]["costs"] == [15.0, 20.0, 25.0] and found[1]["gains"] == [-15.0, -20.0, -25.0]
    assert found[0]["own"][0] == [[0, 1, 2, 3, 4], [0.0, 0.01, 0.02, 0.03, 0.04], 0.0]
    assert len(looks.choose(some, 101, LENGTH)) == 0, "step 101 of 101 is not sampled"
    assert len(Looks(is_wanted=False).choose(some, 1, LENGTH)) == 0
