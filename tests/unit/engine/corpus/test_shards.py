"""Shards follow from the corpus, and reading may begin after any row."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.corpus import shards
from engine.corpus.documents import read_documents
from engine.corpus.files import CorpusUnit, units_of
from engine.corpus.shards import fingerprint, in_passes, shard_bytes, shards_of
from engine.errors import RecordError

MIB = 2**20


def test_the_size_follows_from_the_corpus_and_is_a_power_of_two():
    sizes = [shard_bytes(corpus) for corpus in (0, 100 * MIB, 6000 * MIB, 6010 * MIB, 10**12)]
    assert sizes == [4 * MIB, 4 * MIB, 16 * MIB, 16 * MIB, 64 * MIB]


def test_small_units_are_joined_and_large_files_split_where_they_can_be():
    small = [CorpusUnit(f"{number}.txt", num_bytes=MIB) for number in range(6)]
    large = CorpusUnit("a.jsonl", num_bytes=9 * MIB + 5)
    packed = CorpusUnit("b.jsonl.gz", num_bytes=9 * MIB)
    found = shards_of([*small, large, packed])
    assert [[unit.name for unit in units] for units in found] == [
        ["0.txt", "1.txt", "2.txt", "3.txt"],
        ["4.txt", "5.txt", "a.jsonl"],
        ["a.jsonl from byte 4194304"],
        ["b.jsonl.gz"],
    ]
    parts = [unit for units in found for unit in units if unit.path == "a.jsonl"]
    assert [(part.first_byte, part.end_byte, part.num_bytes) for part in parts] == [
        (0, 4 * MIB, 4 * MIB),
        (4 * MIB, -1, 5 * MIB + 5),
    ]
    assert [(shard.number, shard.corpus_pass) for shard in in_passes(found, 2)][4:] == [(4, 1), (5, 1), (6, 1), (7, 1)]


def test_the_fingerprint_knows_another_arrangement_of_files_not_another_place():
    a, b = (CorpusUnit(f"/x/{name}.txt", num_bytes=MIB) for name in "ab")
    moved = CorpusUnit("s3://y/a.txt", num_bytes=MIB + 1)
    assert fingerprint(shards_of([a, b])) == fingerprint(shards_of([moved, b]))
    assert fingerprint(shards_of([a, b])) != fingerprint(shards_of([b, a]))


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("blank", ["", "\n"])
def test_parts_of_a_file_hold_each_line_once_wherever_they_are_cut(tmp_path, monkeypatch, ending, blank):
    texts = [f"{'é' * (row * 7 % 40)} {row}" for row in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n{blank}".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts) + ending)
    for size in (1, 50, 64, 97, 300, 10**6):
        monkeypatch.setattr(shards, "SMALLEST_SHARD", size)
        found = shards_of(units_of(str(path)))
        documents = [document for units in found for unit in units for document in read_documents(unit, "text")]
        assert [document.text for document in documents] == texts, size
        assert len({(document.path, document.row) for document in documents}) == len(texts)


def rows_file(folder, suffix: str) -> str:
    texts = [f"document {row}, {'é' * row}" for row in range(9)]
    path = folder / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=5)
    elif suffix == ".txt":
        path.write_text(texts[0])
    else:
        text = "\n\n".join(json.dumps({"text": text}) for text in texts).encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet", ".txt"])
def test_reading_begins_after_any_row(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(shards, "SMALLEST_SHARD", 70)
    for unit in (unit for units in shards_of(units_of(rows_file(tmp_path, suffix))) for unit in units):
        documents = list(read_documents(unit, "text"))
        assert documents or unit.first_byte
        for index, document in enumerate(documents):
            begun = unit.after(document.row - unit.first_row, document.offset)
            assert list(read_documents(begun, "text")) == documents[index:]


def test_a_file_that_has_changed_before_the_place_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises(RecordError, match=r"a\.jsonl: no line begins at byte 9, as at the last checkpoint"):
        list(read_documents(CorpusUnit(str(path)).after(1, 9), "text"))
