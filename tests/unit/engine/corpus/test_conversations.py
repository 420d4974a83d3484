"""A corpus of conversations: read from every format, checked message by message, cut and counted."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.reader import PassageReader
from engine import load_spec
from engine.blocks.arrangement import Arrangement
from engine.corpus.cutting import Cutter
from engine.corpus.documents import Conversation, Unreadable, read_conversations
from engine.corpus.files import units_of
from engine.errors import PreflightError, RecordError, SpecError
from engine.history.ledger import Ledger
from engine.model_files.checkpoint import Checkpoint
from engine.records import PASSAGE, schema
from engine.records.batches import of_row
from engine.spec import CorpusSpec
from pipelines.stream.sizes import derive_flow
from tests.support.tiny_tokenizers import tokenizer_folders

pytestmark = pytest.mark.timeout(60)

TEMPLATES = Path("pipelines/specs/chat_templates").absolute()
QUESTION, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "\n The dog. "}
ROWS = [[QUESTION, ANSWER], [{"role": "system", "content": "é"}, QUESTION, ANSWER, QUESTION, ANSWER, QUESTION]]


def conversations(path: Path, column: str = "messages") -> list[Conversation | Unreadable]:
    return [item for unit in units_of(str(path)) for item in read_conversations(unit, column)]


def lines(rows: list) -> bytes:
    return "".join(json.dumps({"messages": row}) + "\n" for row in rows).encode()


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_every_format_gives_the_same_conversations(tmp_path, suffix):
    path = tmp_path / f"chats.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"messages": ROWS}), path, row_group_size=1)
    else:
        path.write_bytes(lines(ROWS) if suffix == "jsonl" else gzip.compress(lines(ROWS)))
    stripped = [tuple({**message, "content": message["content"].strip()} for message in row) for row in ROWS]
    assert conversations(path) == [Conversation(str(path), row, each) for row, each in enumerate(stripped, start=1)]


def test_bad_conversations_are_named_and_good_ones_kept(tmp_path):
    path = tmp_path / "bad.jsonl"
    rows = [
        ROWS[0],
        "one long string",
        ["a string"],
        [{"from": "human", "value": "Who?"}],
        [QUESTION, {"role": "assistant", "content": None}],
        [QUESTION, {"role": "assistant", "content": " \n"}],
        [QUESTION],
        [],
        [QUESTION, {"role": "assistant", "content": "half \ud83d"}],
        ROWS[1],
    ]
    path.write_bytes(lines(rows))
    found = conversations(path)
    assert [item.row for item in found if isinstance(item, Conversation)] == [1, 10]
    expected = {
        2: "the messages are str, not a list",
        3: "message 1 is str",
        4: "message 1 has a role that is NoneType, not a string; it has from, value",
        5: "message 2 has a content that is NoneType",
        6: "message 2, an answer, is empty",
        7: "no message has the role 'assistant'",
        8: "no message has the role 'assistant'",
        9: "message 2 has a content where character 5 is half of a surrogate pair",
    }
    bad = {item.row: item.reason for item in found if isinstance(item, Unreadable)}
    assert list(bad) == list(expected)
    assert all(sentence in bad[row] for row, sentence in expected.items()), bad


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Checkpoint]:
    folders = tokenizer_folders(tmp_path_factory.mktemp("checkpoints"))
    return [Checkpoint(str(folder), chat_template=str(TEMPLATES / "inst.jinja")) for folder in folders]


class Skipped:
    """A meter that keeps what was left out."""

    def __init__(self):
        self.rows = []

    def start_or_refuse(self):
        pass

    def record(self, passages, tokens, busy_seconds):
        pass

    def skip(self, row):
        self.rows.append(row)


def passages(checkpoints: list[Checkpoint], path: Path, window: int, on_error: str) -> tuple[pa.Table, list]:
    meter = Skipped()
    windows = [window] * len(checkpoints)
    arrangement = Arrangement(0, 0, block_length=1000, batch_blocks=1, checkpoint_blocks=1)
    reader = PassageReader(
        corpus=CorpusSpec(paths=[str(path)], messages_column="messages", on_error=on_error, most_skipped=1.0),
        target_checkpoint=checkpoints[0],
        cut=Cutter(checkpoints, windows),
        arrange=arrangement,
        drop=Ledger(()),
        meter=meter,
    )
    unit = {"path": str(path), "row_group": -1, "first_row": 1, "corpus_pass": 0}
    batches = [of_row(row)[0] for row in reader(pa.Table.from_pylist([{"share": 0, "units": [unit]}]))]
    return pa.concat_tables([schema(PASSAGE).empty_table(), *batches]), meter.rows


def test_turns_that_do_not_fit_are_counted_and_the_rest_is_learned(checkpoints, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_bytes(lines(ROWS))
    table, skipped = passages(checkpoints, path, 1000, "fail")
    assert table["text"].to_pylist() == ["The dog.", "The dog.The dog."]
    assert table["num_bytes"].to_pylist() == [8, 16]
    lengths = [len(messages) for messages in table["messages"].to_pylist()]
    assert lengths == [2, 5], "nothing after the last answer is learned"
    assert not skipped
    table, skipped = passages(checkpoints, path, 70, "fail")
    assert [len(messages) for messages in table["messages"].to_pylist()] == [2, 3]
    assert [(row.row, row.reason) for row in skipped] == [
        (2, "messages 4 to 6 do not fit every model and are left out")
    ]


def test_a_conversation_whose_first_answer_does_not_fit_is_a_bad_row(checkpoints, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_bytes(lines(ROWS))
    with pytest.raises(RecordError, match=r"chats.jsonl, row 1: .* up to its first answer does not fit"):
        passages(checkpoints, path, 8, "fail")
    table, skipped = passages(checkpoints, path, 8, "skip")
    assert len(table) == 0
    assert [row.row for row in skipped] == [1, 2]


EXAMPLE = "pipelines/specs/instruction_example.yaml"


@pytest.mark.parametrize(
    ("override", "where", "sentence"),
    [
        ("corpus.overlap_bytes=64", "corpus.overlap_bytes", "cut between turns"),
        ("alignment.tokens=suffix", "alignment.tokens", "set it to byte_offset"),
    ],
)
def test_settings_that_conversations_exclude_are_refused(override, where, sentence):
    with pytest.raises(SpecError, match=sentence) as refused:
        load_spec(EXAMPLE, [override])
    assert [fault.where for fault in refused.value.faults] == [where]


def test_a_model_without_a_chat_template_is_refused_before_anything_starts():
    with pytest.raises(PreflightError, match="has no chat template") as refused:
        derive_flow(load_spec(EXAMPLE, ["source_models.1.chat_template=''", "target_model.chat_template=none.jinja"]))
    assert [fault.where for fault in refused.value.faults] == [
        "target_model.chat_template",
        "source_models.1.chat_template",
    ]
