"""The corpus: every format and compression gives the same documents; whatever is unreadable is named and counted."""

import gzip
import json
import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from engine.corpus.documents import Document, Unreadable, read_conversations, read_documents
from engine.corpus.files import find_files, units_of

TEXTS = ["first", "zweites é\r\n", "third 🙂\ttab", "a\x00b"]


def documents(path: str, column: str = "text") -> list:
    return [item for unit in units_of(path) for item in read_documents(unit, column)]


def lines() -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode("utf8")


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_format_gives_the_same_documents(tmp_path, suffix):
    path = tmp_path / f"corpus.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"id": range(4), "text": TEXTS}), path, row_group_size=3)
    else:
        pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.ZstdCompressor().compress}
        half = len(lines()) // 2  # two members or frames, as parallel compressors and `cat` make them
        path.write_bytes(pack[suffix](lines()[:half]) + pack[suffix](lines()[half:]))
    assert documents(str(path)) == [Document(str(path), row, text) for row, text in enumerate(TEXTS, start=1)]


def test_a_text_file_is_one_document_byte_for_byte(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\n\n")
    assert documents(str(path)) == [Document(str(path), 1, "one\r\ntwo\n\n")]


def test_any_fsspec_url_can_be_read():
    with fsspec.open("memory://corpus/a.jsonl.gz", "wb", compression="gzip") as file:
        file.write(lines())
    files, faults = find_files(["memory://corpus/*.gz"], "corpus.paths")
    assert not faults
    assert [document.text for document in documents(files[0])] == TEXTS


def test_row_groups_are_units_of_their_own(tmp_path):
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=3)
    assert [(unit.row_group, unit.first_row) for unit in units_of(str(path))] == [(0, 1), (1, 4)]


def test_bad_rows_are_named_and_good_ones_kept(tmp_path):
    path = tmp_path / "bad.jsonl"
    rows = [
        b'{"text": "good"}',
        b"{torn",
        b'{"title": "no text"}',
        b'["a list"]',
        b'{"text": 3}',
        b'{"text": ""}',
        b'{"text": "\xff\xfe"}',
        b'{"text": "half \\ud83d"}',
        b"",
        b'{"text": "last"}',
    ]
    path.write_bytes(b"\n".join(rows))
    found = documents(str(path))
    assert [item.text for item in found if isinstance(item, Document)] == ["good", "last"]
    bad = {item.row: item.reason for item in found if isinstance(item, Unreadable)}
    assert list(bad) == [2, 3, 4, 5, 6, 7, 8]
    expected = {
        2: "not JSON",
        3: "no key 'text'; it has title",
        4: "list",
        5: "int",
        6: "empty",
        7: "invalid UTF-8 at byte 10",
        8: "surrogate",
    }
    assert all(words in bad[row] for row, words in expected.items()), bad
    assert found[-1] == Document(str(path), 10, "last")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"text": "two", "id": ' + "9" * 5000 + "}", "ValueError"),
        ('{"text": "two", "tree": ' + "[" * 100_000 + "]" * 100_000 + "}", "RecursionError"),
    ],
    ids=["an integer of 5,000 digits", "lists 100,000 deep"],
)
def test_a_row_that_python_cannot_read_is_one_row_and_the_rows_after_it_are_read(tmp_path, bad, reason):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' + bad + '\n{"text": "three"}\n{"text": "four"}\n')
    found = documents(str(path))
    assert [item.row for item in found] == [1, 2, 3, 4]
    assert isinstance(found[1], Unreadable) and reason in found[1].reason
    assert [item.text for item in found if isinstance(item, Document)] == ["one", "three", "four"]


def test_what_is_no_utf8_is_named_in_words_that_any_terminal_can_print(tmp_path):
    path = tmp_path / "a.jsonl"
    role = json.dumps({"messages": [{"role": "us\ud83der", "content": "a"}, {"role": "assistant", "content": "b"}]})
    path.write_text(json.dumps({"te\ud83dxt": "x"}) + "\n" + role + "\n")
    (key,) = [item for item in documents(str(path)) if item.row == 1]
    assert key.reason == "has no key 'text'; it has te\\ud83dxt"
    assert key.reason.encode("ascii")
    (role,) = [item for unit in units_of(str(path)) for item in read_conversations(unit, "messages") if item.row == 2]
    assert isinstance(role, Unreadable)
    assert role.reason.startswith("message 1 has a role where character 2 is half of a surrogate pair")


def test_invalid_utf8_inside_parquet_is_one_bad_row(tmp_path):
    path = tmp_path / "bad.parquet"
    binary = pa.array([b"good", b"\xff", b"last"], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, binary.buffers())}), path)
    found = documents(str(path))
    assert [type(item) for item in found] == [Document, Unreadable, Document]
    assert "invalid UTF-8 at byte 0" in found[1].reason


@pytest.mark.parametrize("name", ["torn.parquet", "torn.jsonl.gz", "torn.jsonl.zst"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"PAR1 this is no file of this kind")
    (found,) = documents(str(path))
    assert isinstance(found, Unreadable)
    assert str(found).startswith(f"{path}: the file cannot be read")


@pytest.mark.parametrize("cut", [1, 20, 500])
@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_compressed_file_that_is_cut_short_is_no_whole_file(tmp_path, suffix, cut):
    """Its rows are read up to there; what is missing is one more fault, not silence."""
    lines = "".join(json.dumps({"text": f"line {row} {row * 7919 % 1000}"}) + "\n" for row in range(2000)).encode()
    packed = gzip.compress(lines) if suffix == "gz" else zstandard.ZstdCompressor().compress(lines)
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed[:-cut])
    *rows, last = documents(str(path))
    assert all(isinstance(row, Document) for row in rows) and len(rows) <= 2000
    assert isinstance(last, Unreadable) and "the file cannot be read" in last.reason


def test_a_zstandard_file_of_several_frames_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(json.dumps({"text": text}).encode() + b"\n") for text in TEXTS))
    assert [document.text for document in documents(str(path))] == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (b"hello" if name == "a.txt" else b'{"text": "hello"}'))
    (found,) = documents(str(tmp_path / name))
    assert found.text == "hello"


def test_a_missing_column_names_the_columns_there(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": TEXTS}), path)
    (found,) = documents(str(path))
    assert "no column 'text'; it has body" in found.reason


@pytest.mark.parametrize(
    ("data", "suffix", "words"),
    [
        (gzip.compress(b"{}", mtime=0), "jsonl", "gzip does, whose files end in .gz"),
        (pa.compress(b"{}", "zstd", asbytes=True), "txt", "zstd does, whose files end in .zst"),
        ('{"text": "é"}'.encode("utf16"), "jsonl", "UTF-16 does; save it as UTF-8"),
        (b"PAR1\x15\xff", "txt", "Parquet does, whose files end in .parquet"),
    ],
)
def test_a_file_of_another_kind_is_known_by_its_beginning(tmp_path, data, suffix, words):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    assert documents(str(path))[0].reason.endswith(f": it begins as {words}")


def test_a_null_is_said_to_be_one(tmp_path):
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    assert documents(str(tmp_path / "a.parquet"))[1].reason == "the text is null, not a string"
    pq.write_table(pa.table({}), tmp_path / "b.parquet")
    assert [item.reason for item in documents(str(tmp_path / "b.parquet"))][:1] == ["has no column 'text'; it has none"]


def test_links_to_nothing_and_pipes_are_faults_and_stop_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "b.jsonl").symlink_to("/nowhere/b.jsonl")
    os.mkfifo(tmp_path / "c.jsonl")
    for patterns in (["*"], ["a*", "b*", "c*"]):
        paths = [str(tmp_path / f"{pattern}.jsonl") for pattern in patterns]
        faults = find_files(paths, "corpus.paths", may_be_elsewhere=True)[1]
        assert [fault.what.split(" is ")[1] for fault in faults] == [
            "a link to nothing",
            "no file, but a pipe or a device",
        ]
    (fault,) = find_files([str(tmp_path / "b.jsonl")], "corpus.paths", may_be_elsewhere=True)[1]
    assert "is a link to nothing" in fault.what


def test_patterns_without_files_and_unknown_kinds_are_faults(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.jsonl").write_text("{}")
    patterns = [str(tmp_path / "*.parquet"), str(tmp_path / "*"), "nonsense://x"]
    files, faults = find_files(patterns, "corpus.paths")
    assert [fault.where for fault in faults] == ["corpus.paths.0", "corpus.paths.1", "corpus.paths.2"]
    assert "no file" in faults[0].what
    assert "a.csv" in faults[1].what
    assert "nonsense" in faults[2].what
    assert str(tmp_path / "b.jsonl") in files


def test_a_file_whose_name_is_not_utf8_is_a_fault_that_any_terminal_can_print(tmp_path):
    (tmp_path / "good.jsonl").write_text('{"text": "one"}\n')
    with open(bytes(tmp_path) + b"/b\xffd.jsonl", "w") as file:
        file.write('{"text": "one"}\n')
    _, (fault,) = find_files([f"{tmp_path}/*.jsonl"], "corpus.paths")
    assert str(fault) == f"corpus.paths.0: the name of {tmp_path}/b\\udcffd.jsonl is not UTF-8; rename the file"


def test_a_file_that_two_patterns_name_is_one_fault_of_the_later_one(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "c.txt"):
        (tmp_path / name).write_text("{}")
    patterns = [
        str(tmp_path / "c.txt"),
        str(tmp_path / "*.jsonl"),
        str(tmp_path / "[bc].*"),
        f"file://{tmp_path}/c.txt",
    ]
    files, (overlap, repeated) = find_files(patterns, "corpus.paths")
    assert files == [str(tmp_path / name) for name in ("c.txt", "a.jsonl", "b.jsonl", "c.jsonl")]
    assert str(overlap) == (
        f"corpus.paths.2: names '{tmp_path}/b.jsonl' again, which corpus.paths.1 ('{tmp_path}/*.jsonl') has named "
        f"(the first of 3 files that are named before); name every file once; corpus.passes repeats the whole corpus"
    )
    assert str(repeated) == (
        f"corpus.paths.3: names '{tmp_path}/c.txt' again, which corpus.paths.0 ('{tmp_path}/c.txt') has named; "
        f"name every file once; corpus.passes repeats the whole corpus"
    )


def test_of_held_out_files_that_are_named_twice_no_pass_is_spoken(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    _, (fault,) = find_files([str(tmp_path / "*"), str(tmp_path / "a.jsonl")], "evaluation.corpora.docs")
    assert fault.where == "evaluation.corpora.docs.1"
    assert fault.remedy == "name every file once"
