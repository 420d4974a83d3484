"""Passages: cut on the original bytes where every tokenizer can follow; nothing lost, nothing twice."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.reader import PassageReader
from engine.blocks.arrangement import Arrangement
from engine.corpus.cutting import Cutter, DocumentCutter
from engine.corpus.files import CorpusUnit
from engine.corpus.shards import Shard
from engine.errors import RecordError, TokenizerError
from engine.history.ledger import Cursor, Entry, Ledger
from engine.model_files.checkpoint import Checkpoint
from engine.records import PASSAGE, check
from engine.records.batches import of_row, to_learn
from engine.spec import CorpusSpec
from engine.text.tokenization import PassageTokenizer
from tests.support.tiny_tokenizers import tokenizer_folders

WINDOWS = (24, 16, 20)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Checkpoint]:
    return [Checkpoint(str(folder)) for folder in tokenizer_folders(tmp_path_factory.mktemp("tokenizers"))]


@pytest.fixture(scope="module")
def tokenizers(checkpoints) -> list[PassageTokenizer]:
    return [PassageTokenizer.load(checkpoint) for checkpoint in checkpoints]


@pytest.fixture(scope="module")
def cutter(tokenizers) -> DocumentCutter:
    return DocumentCutter(tokenizers, WINDOWS)


@settings(max_examples=150, deadline=None)
@given(document=st.text(min_size=1, max_size=400))
def test_passages_join_to_the_document_and_fit_every_window(cutter, tokenizers, document):
    passages = list(cutter.cut(document))
    assert "".join(passages) == document
    assert all(passages)
    for tokenizer, window in zip(tokenizers, WINDOWS, strict=True):
        assert all(len(tokenizer.encode(passage)[0]) <= window for passage in passages)


def test_a_short_document_is_one_passage(cutter):
    assert list(cutter.cut("Short enough.")) == ["Short enough."]


def test_prose_is_cut_before_spaces(cutter):
    document = "The quick brown fox jumps over the lazy dog and the cat sat on the mat. " * 20
    passages = list(cutter.cut(document))
    assert len(passages) > 10
    assert sum(passage.startswith(" ") for passage in passages[1:]) > 0.9 * (len(passages) - 1)


@settings(max_examples=150, deadline=None)
@given(document=st.text(st.sampled_from("ab é\n🙂日 "), min_size=1, max_size=400), overlap=st.integers(1, 24))
def test_with_overlap_every_byte_is_new_in_one_passage(tokenizers, document, overlap):
    passages = list(DocumentCutter(tokenizers, WINDOWS, overlap).cut_with_context(document))
    data = document.encode("utf8")
    assert b"".join(text.encode("utf8")[context:] for text, context in passages) == data
    start = 0
    for text, context in passages:
        encoded = text.encode("utf8")
        assert 0 <= context <= overlap
        assert data[start - context : start + len(encoded) - context] == encoded
        start += len(encoded) - context
        for tokenizer, window in zip(tokenizers, WINDOWS, strict=True):
            _, ends = tokenizer.encode(text)
            assert len(ends) <= window
            assert context == 0 or context in ends, "context ends where a token of every tokenizer ends"


def test_prose_is_repeated_from_a_space_on(tokenizers):
    document = "The quick brown fox jumps over the lazy dog and the cat sat on the mat. " * 10
    passages = list(DocumentCutter(tokenizers, WINDOWS, 12).cut_with_context(document))
    assert passages[0][1] == 0
    assert sum(context > 0 for _, context in passages) > len(passages) / 2
    assert all(text.startswith(" ") for text, context in passages if context)


def test_a_very_long_document_costs_linear_work(tokenizers):
    class Counting:
        """Counts the characters that a tokenizer is given."""

        def __init__(self, tokenizer):
            self.tokenizer, self.characters, self.fingerprint = tokenizer, 0, tokenizer.fingerprint

        def splits(self, place):
            return self.tokenizer.splits(place)

        def encode(self, text):
            self.characters += len(text)
            return self.tokenizer.encode(text)

    work = {}
    for repeats in (20, 200):
        counting = Counting(tokenizers[0])
        document = "some words of a document without an end, é and 🙂 " * repeats
        assert "".join(DocumentCutter([counting], [24]).cut(document)) == document
        work[repeats] = counting.characters / len(document)
    assert work[200] < 1.2 * work[20]


def reader(
    checkpoints, path, on_error="fail", learned=(), skipped=None, held=0, most_skipped=1.0
) -> tuple[Callable, pa.Table]:
    """A reader's batches, and the one task that it has."""

    class Recorder:
        """Stands in for the run monitor."""

        def start_or_refuse(self):
            pass

        def record(self, **_):
            pass

        def skip(self, row):
            skipped.append(row)

    tasks = pa.Table.from_pylist([{"shards": [0], "first_turn": 0}])
    arrangement = Arrangement(held, 0, block_length=32, batch_blocks=2)
    ledger = Ledger()
    if learned:
        ledger.learn(np.array(learned))
    read = PassageReader(
        corpus=CorpusSpec(paths=[str(path)], on_error=on_error, most_skipped=most_skipped),
        target_checkpoint=checkpoints[0],
        cut=Cutter(checkpoints, WINDOWS),
        shards=[Shard(0, 0, (CorpusUnit(str(path)),))],
        arrange=arrangement,
        learned=ledger,
        meter=Recorder(),
    )
    return lambda tasks: (to_learn(*of_row(row))[0] for row in read(tasks)), tasks


def test_tables_hold_the_passages_in_order(checkpoints, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "' + "two words " * 30 + '"}\n')
    read, units = reader(checkpoints, path)
    tables = list(read(units))
    for table in tables:
        check(table, PASSAGE, "test")
    rows = [row for table in tables for row in table.to_pylist()]
    rows.sort(key=lambda row: [int(part) for part in row["passage_id"].split(":")[1:]])
    assert len(tables) > 2
    assert rows[0] == {
        "passage_id": f"0/{path}:1:0",
        "text": "one",
        "num_bytes": 3,
        "context_bytes": 0,
        "ends_document": True,
        "messages": [],
    }
    assert "".join(row["text"] for row in rows[1:]) == "two words " * 30
    assert [row["ends_document"] for row in rows[1:]] == [False] * (len(rows) - 2) + [True]


def test_learned_passages_do_not_come_again(checkpoints, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{"text " * 20}{row}"}}\n' for row in range(3)))

    def ids(learned=()) -> list[str]:
        read, units = reader(checkpoints, path, learned=learned)
        return [row["passage_id"] for table in read(units) for row in table.to_pylist()]

    whole, rest = ids(), ids([learned_block(0)])
    assert 0 < len(rest) < len(whole)
    assert rest == whole[-len(rest) :]


def learned_block(block: int) -> list[int]:
    """The entry of a block, after which reading begins as at the start."""
    return Entry(0, block, 1000, Cursor(0, 0, 0, 0, 0)).numbers()


def test_a_bad_row_stops_or_is_counted(checkpoints, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": ""}\n{"text": "three"}\n')
    read, units = reader(checkpoints, path)
    with pytest.raises(RecordError, match=r"a\.jsonl, row 2: the document is empty; fix it, or set corpus.on_error"):
        list(read(units))
    skipped = []
    read, units = reader(checkpoints, path, on_error="skip", skipped=skipped)
    assert [row["text"] for table in read(units) for row in table.to_pylist()] == ["one", "three"]
    assert [(row.path, row.row, row.reason) for row in skipped] == [(str(path), 2, "the document is empty")]


@pytest.mark.parametrize("fewest_rows", [10, 1000])
def test_more_bad_rows_than_the_spec_allows_are_refused(checkpoints, tmp_path, monkeypatch, fewest_rows):
    """While it reads, once enough rows were read, or else at the end."""
    monkeypatch.setattr("actors.measured_passages.FEWEST_ROWS", fewest_rows)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 18 + '{"text": ""}\n' * 2)
    read, units = reader(checkpoints, path, on_error="skip", skipped=[], most_skipped=0.1)
    assert sum(len(table) for table in read(units)) == 18, "as many as are allowed"
    read, units = reader(checkpoints, path, on_error="skip", skipped=[], most_skipped=0.09)
    sentence = (
        r"2 of 20 rows of the corpus cannot be read, corpus.most_skipped allows 9.0%; the last one is .*, row 20:"
    )
    with pytest.raises(RecordError, match=sentence):
        list(read(units))


def test_a_document_whose_text_a_tokenizer_loses_is_a_bad_row(checkpoints, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    monkeypatch.setattr(PassageTokenizer, "encode", refusing(PassageTokenizer.encode, "two"))
    skipped = []
    read, units = reader(checkpoints, path, on_error="skip", skipped=skipped)
    assert [row["text"] for table in read(units) for row in table.to_pylist()] == ["one"]
    assert "the tokens do not add up" in skipped[0].reason


def refusing(encode, bad_text: str):
    """A tokenizer's ``encode`` that refuses one text."""

    def refuse_or_encode(self, text):
        if text == bad_text:
            raise TokenizerError("the tokens do not add up")
        return encode(self, text)

    return refuse_or_encode


def test_the_order_is_drawn_again_wherever_the_corpus_lies(checkpoints, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(f'{{"text": "document {row}"}}' for row in range(60)))

    def texts(held: int, learned=()) -> list[str]:
        read, units = reader(checkpoints, path, held=held, learned=learned)
        return [row["text"] for table in read(units) for row in table.to_pylist()]

    shuffled = texts(20)
    assert sorted(shuffled) == sorted(f"document {row}" for row in range(60))
    assert shuffled != texts(0)
    assert shuffled == texts(20)
    # What has been learned is left out after the draw, so that the others keep their places.
    rest = texts(20, learned=[learned_block(0)])
    assert 0 < len(rest) < 60 and rest == shuffled[-len(rest) :]
    (tmp_path / "elsewhere").mkdir()
    path = path.rename(tmp_path / "elsewhere" / "a.jsonl")
    assert shuffled == texts(20)
