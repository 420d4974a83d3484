"""A store that fails for a moment loses nothing and gives nothing twice; one that fails for long is no faulty row."""

import gzip
import io
import json
import pickle
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import store as store_module
from engine.corpus.documents import Unreadable, read_documents
from engine.corpus.files import find_corpus, units_of
from engine.corpus.first_rows import unreadable_corpus
from engine.corpus.sample import sample
from engine.errors import FusionError, StoreError, causes
from engine.spec import CorpusSpec
from engine.store import TRIES, content, is_there, opened
from tests.support.failing_store import FailingStore, PayloadError, failing_store

TEXTS = [f"row {row} é " + random.Random(row).randbytes(row * 7919 % 200).hex() for row in range(200)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode("utf8")
FOREVER = range(10**9)


@pytest.fixture
def store():
    with failing_store() as found:
        yield found


def parquet(texts=TEXTS) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file, row_group_size=70, compression="none")
    return file.getvalue()


FILES = {
    "a.jsonl": LINES,
    "a.jsonl.gz": gzip.compress(LINES, compresslevel=0),
    "a.jsonl.zst": pa.compress(LINES, "zstd", asbytes=True),
    "a.parquet": parquet(),
    "a.txt": "\n".join(TEXTS).encode("utf8"),
}


def rows(url: str) -> list:
    return [row for unit in units_of(url) for row in read_documents(unit, "text")]


@pytest.mark.parametrize("error", [PayloadError("lost"), ConnectionResetError("reset"), TimeoutError()], ids=repr)
@pytest.mark.parametrize("name", FILES)
def test_wherever_a_store_fails_for_a_moment_all_rows_come_once(store, name, error):
    url = store.write(name, FILES[name])
    undisturbed = rows(url)
    assert [row.text for row in undisturbed] == (TEXTS if name != "a.txt" else ["\n".join(TEXTS)])
    asked = dict(store.asked)
    assert asked["read"] > 10
    for kind in asked:
        store.fail(error, **{kind: range(1, 10**6, 3)})  # every third question, that at a reopened file included
        again = rows(url)
        assert again == undisturbed and [row.offset for row in again] == [row.offset for row in undisturbed]
        store.fail(error, **{kind: range(2, 2 + TRIES - 1)})  # as long as a store may fail
        assert rows(url) == undisturbed


@pytest.mark.parametrize("name", FILES)
def test_a_store_that_fails_for_long_is_no_row_and_no_refusal(store, name):
    url = store.write(name, FILES[name])
    undisturbed, (unit, *_) = rows(url), units_of(url)
    found = []
    store.fail(read=range(4, 10**9))
    with pytest.raises(StoreError) as raised:
        found.extend(read_documents(unit, "text"))
    assert found == undisturbed[: len(found)], "rows before it are yielded, and none is lost"
    assert str(raised.value).startswith(f"{url}: the file cannot be read at byte ")
    assert "PayloadError: Response payload is not completed (tried 6 times in 0 s); check that" in str(raised.value)
    assert not isinstance(raised.value, FusionError), "Ray Train tries again"
    assert list(causes(raised.value)) == [raised.value], "a person reads the innermost error"
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_a_file_that_is_gone_is_named_and_not_skipped(tmp_path, store):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    (unit,) = units_of(str(path))
    path.unlink()
    with pytest.raises(StoreError, match=r"a\.jsonl: the file cannot be read at byte 0: FileNotFoundError: .*No such"):
        list(read_documents(unit, "text"))
    with pytest.raises(StoreError, match=r"a\.jsonl: the size of the file cannot be read: FileNotFoundError"):
        units_of(str(path))


def test_a_file_that_ends_early_is_asked_for_again(store, monkeypatch):
    url = store.write("a.jsonl", LINES)
    units = units_of(url)
    fetch, cut = FailingStore.files.__getitem__, iter([True])
    monkeypatch.setattr(
        "tests.support.failing_store.FailingFile._fetch_range",
        lambda file, start, end: b"" if start > 5000 and next(cut, False) else fetch(file.path)[start:end],
    )
    assert [row.text for unit in units for row in read_documents(unit, "text")] == TEXTS


def test_a_pause_is_twice_as_long_as_the_last_one(store, monkeypatch):
    pauses = []
    monkeypatch.setattr(store_module, "FIRST_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(store_module.time, "sleep", pauses.append)
    store.fail(open=FOREVER)
    with opened(store.write("a.txt", b"x")) as file, pytest.raises(StoreError, match=r"tried 6 times in 31 s"):
        file.read()
    assert pauses == [1, 2, 4, 8, 16]


def test_a_file_that_cannot_be_seen_is_not_taken_for_missing(store):
    url = store.write("folder/a.txt", b"x")
    assert (content(url), content("failing://folder/b.txt")) == (b"x", None)
    filesystem = store()
    assert [is_there(filesystem, name) for name in ("folder", "folder/a.txt", "folder/b.txt")] == [True, True, False]
    store.fail(open=FOREVER, info={1})
    with pytest.raises(StoreError, match=r"failing://folder/a\.txt: the file cannot be read: PayloadError"):
        content(url)
    with pytest.raises(PayloadError):
        is_there(filesystem, "folder/a.txt")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_before_a_run_a_store_that_fails_is_a_fault_of_the_paths(store, name):
    url = store.write(name, FILES[name])
    corpus = CorpusSpec(paths=[url], on_error="skip")
    ((_, (file,)),) = find_corpus(corpus)[0].items()
    store.fail(read=FOREVER, info=FOREVER)
    (fault,) = unreadable_corpus(corpus, {"": (unit for path in [file] for unit in units_of(path))})
    assert fault.where == "corpus.paths"
    assert fault.what.startswith(f"{url}: the {'size of the ' if name == 'a.jsonl' else ''}file cannot be read")
    with pytest.raises(StoreError):
        units_of(url)


def test_a_sample_is_the_same_or_none(store):
    url = store.write("a.jsonl", LINES)
    units = units_of(url)
    whole = sample(units, "text", "", 10_000)
    store.fail(read={2, 5})
    assert sample(units, "text", "", 10_000) == whole
    store.fail(read=FOREVER)
    with pytest.raises(StoreError):
        sample(units, "text", "", 10_000)


def test_a_damaged_file_is_content_whose_fault_is_found_at_once(store):
    data = bytearray(parquet())
    data[1000:3000] = bytes(2000)
    url = store.write("a.parquet", bytes(data))
    assert any(isinstance(row, Unreadable) for row in rows(url))
    (found,) = rows(store.write("b.parquet", b"PAR1 this is no file of this kind"))
    assert isinstance(found, Unreadable) and "the file cannot be read: ArrowInvalid" in found.reason
    assert store.asked["open"] < 10
