"""A corpus of conversations: read from every format, checked message by message, cut and counted."""

import gzip
import json
from dataclasses import replace
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
from engine.corpus.passages import Passage, passages_of, table_of
from engine.corpus.shards import Shard
from engine.errors import PreflightError, RecordError, SpecError
from engine.history.ledger import Ledger
from engine.model_files.checkpoint import Checkpoint
from engine.records import PASSAGE, schema
from engine.records.batches import of_row
from engine.spec import CorpusSpec
from engine.text.chat import content_of
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
        4: "message 1 has no role; it has from, value",
        5: "message 2 has a content that is null",
        6: "message 2, an answer, is empty",
        7: "no message has the role 'assistant'",
        8: "no message has the role 'assistant'",
        9: "message 2 has a content where character 5 is half of a surrogate pair",
    }
    bad = {item.row: item.reason for item in found if isinstance(item, Unreadable)}
    assert list(bad) == list(expected)
    assert all(sentence in bad[row] for row, sentence in expected.items()), bad


CALL = {"function": {"name": "thermometer", "arguments": "{}"}}
LOOKS = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}
READS = {"role": "tool", "content": "21", "tool_call_id": "call-1"}


def test_other_keys_of_messages_are_read_or_named(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [
        [QUESTION, LOOKS, READS, ANSWER],
        [QUESTION, {**LOOKS, "content": None}, READS, ANSWER],
        [QUESTION, {**ANSWER, "reasoning_content": "It barks."}],
        [QUESTION, {**ANSWER, "weight": 0}, QUESTION, {**ANSWER, "weight": 1}],
        [{**QUESTION, "id": 7, "name": "Ann"}, {**ANSWER, "at": "noon", "tool_calls": None}],
    ]
    path.write_bytes(lines(rows))
    found = conversations(path)
    answer = {"role": "assistant", "content": "The dog."}
    looks = {"role": "assistant", "content": "Let me look.", "weight": 0, "more": json.dumps({"tool_calls": [CALL]})}
    reads = {"role": "tool", "content": "21", "more": json.dumps({"tool_call_id": "call-1"})}
    assert [list(item.messages) for item in found] == [
        [QUESTION, looks, reads, answer],
        [QUESTION, {**looks, "content": ""}, reads, answer],
        [QUESTION, {**answer, "more": json.dumps({"reasoning_content": "It barks."})}],
        [QUESTION, {**answer, "weight": 0}, QUESTION, answer],
        [{**QUESTION, "more": json.dumps({"name": "Ann"})}, answer],
    ]
    assert [item.unread_keys for item in found] == [(), (), (), (), ("at", "id")]
    assert [len(content_of(item.messages)) for item in found] == [8, 8, 8, 8, 8]
    table = table_of([Passage("p", "", 0, 0, True, item.messages) for item in found])
    assert [tuple(passage.messages) for passage in passages_of(table)] == [item.messages for item in found]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            [QUESTION, {**ANSWER, "weight": 0.5}],
            "message 2 has weight 0.5; 0, which makes an answer context, and 1 are",
        ),
        ([{**QUESTION, "weight": 1}, ANSWER], "message 1 has weight 1, but only messages with the role 'assistant'"),
        ([QUESTION, {**ANSWER, "weight": 0}], "all messages with the role 'assistant' are context, by weight 0 or"),
        ([{**QUESTION, "role": "\ud800user"}, ANSWER], "message 1 has a role where character 0 is half of a surrogate"),
        ([QUESTION, LOOKS], "all messages with the role 'assistant' are context, by weight 0 or tool calls"),
        (
            [QUESTION, {**ANSWER, "name": "\ud800"}],
            "message 2 has a name where character 0 is half of a surrogate pair",
        ),
        ([QUESTION, {**ANSWER, "tool_calls": ["\ud800"]}], "message 2 has a tool_calls where character 2 is half of"),
    ],
)
def test_a_conversation_with_keys_that_cannot_be_learned_from_is_named(tmp_path, row, sentence):
    path = tmp_path / "chats.jsonl"
    path.write_bytes(lines([row]))
    (found,) = conversations(path)
    assert isinstance(found, Unreadable) and sentence in found.reason


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
    arrangement = Arrangement(0, 0, block_length=1000, batch_blocks=1)
    reader = PassageReader(
        corpus=CorpusSpec(paths=[str(path)], messages_column="messages", on_error=on_error, most_skipped=1.0),
        target_checkpoint=checkpoints[0],
        cut=Cutter(checkpoints, windows),
        shards=[Shard(0, 0, tuple(units_of(str(path))))],
        arrange=arrangement,
        learned=Ledger(),
        meter=meter,
    )
    batches = [of_row(row)[0] for row in reader(pa.Table.from_pylist([{"shards": [0], "first_turn": 0}]))]
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


def test_what_templates_and_models_pass_over_is_reported_once(checkpoints, tmp_path):
    path, template = tmp_path / "chats.jsonl", tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    system = {"role": "system", "content": "Be brief."}
    path.write_bytes(lines([[QUESTION, ANSWER], *[[system, QUESTION, {**ANSWER, "id": 1}]] * 3]))
    deaf = [replace(checkpoints[0], chat_template=str(template)), *checkpoints[1:]]
    table, skipped = passages(deaf, path, 1000, "fail")
    assert len(table) == 4
    assert [(row.row, row.reason) for row in skipped] == [
        (
            2,
            f"the chat template of {deaf[0]} leaves out messages with the role 'system'; this is the first such row",
        ),
        (2, "messages have keys that no model reads: id; this is the first such row"),
    ]


EXAMPLE = "pipelines/specs/instruction_example.yaml"


@pytest.mark.parametrize(
    ("override", "where", "sentence"),
    [
        ("corpus.overlap_bytes=64", "corpus.overlap_bytes", "cut between turns"),
        ("alignment.tokens=suffix", "alignment.tokens", "set it to bytes"),
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
