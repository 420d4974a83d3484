"""A source that the run can do without leaves passages out and says so."""

import pyarrow as pa
import pytest

from actors.sources.optional_source import OptionalSource
from engine.errors import FusionError
from engine.records import check, rows_of, source_columns
from tests.support.source_passages import TEXTS, TOP_K, passages, section

pytestmark = pytest.mark.timeout(60)


class KeepingMeter:
    """A meter that keeps what is reported."""

    def __init__(self, refuses: bool = False):
        self.refuses, self.left_out, self.recorded = refuses, [], 0

    def start_or_refuse(self) -> None:
        if self.refuses:
            raise FusionError("one: its replicas have died 4 times")

    def record(self, **_) -> None:
        self.recorded += 1

    def leave_out(self, passage_ids, reason) -> None:
        self.left_out.append((passage_ids, reason))


def columns_are_empty(table: pa.Table) -> bool:
    check(table, source_columns("one"), "test")
    return all(len(row) == 0 for column in source_columns("one") for row in rows_of(table[column.name]))


def test_a_model_that_cannot_be_loaded_scores_nothing(tmp_path):
    meter = KeepingMeter()
    source = OptionalSource(section(str(tmp_path / "nowhere")), TOP_K, meter)
    table = source(passages(TEXTS))
    assert columns_are_empty(table)
    assert table["text"].to_pylist() == TEXTS
    ((passage_ids, reason),) = meter.left_out
    assert passage_ids == passages(TEXTS)["passage_id"].to_pylist()
    assert "nowhere cannot be loaded" in reason


def test_a_source_that_died_too_often_scores_nothing(checkpoint):
    meter = KeepingMeter(refuses=True)
    assert columns_are_empty(OptionalSource(section(checkpoint), TOP_K, meter)(passages(TEXTS)))
    assert "its replicas have died 4 times" in meter.left_out[0][1]


def test_one_bad_batch_is_left_out_and_the_next_is_scored(checkpoint):
    meter = KeepingMeter()
    source = OptionalSource(section(checkpoint, max_context_tokens=16), TOP_K, meter)
    assert columns_are_empty(source(passages(["a text that has more tokens than the model takes, by far"])))
    assert not columns_are_empty(source(passages(["x"])))
    assert (len(meter.left_out), meter.recorded) == (1, 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    from tests.support.tiny_models import tiny_checkpoint
    from tests.support.tiny_tokenizers import byte_level_with_bos

    base = tmp_path_factory.mktemp("source")
    byte_level_with_bos().save_pretrained(base / "tokenizer")
    return tiny_checkpoint(base / "model", "llama", base / "tokenizer")
