"""The paths of a corpus name files as a person means them: each once, whatever characters are in the names."""

import os

import fsspec
import pytest

from engine.corpus.documents import Document, read
from engine.corpus.files import find_corpus, find_files, units_of
from engine.spec import CorpusSpec
from tests.support.failing_store import failing_store


def faults_of(*patterns: object) -> list[str]:
    return [str(fault) for fault in find_files([str(pattern) for pattern in patterns], "corpus.paths")[1]]


@pytest.mark.parametrize("pattern", ["web [cleaned]/part [1].jsonl", "web [cleaned]/*.jsonl", "web [[]cleaned]/part*"])
def test_brackets_may_be_part_of_a_name(tmp_path, pattern):
    (tmp_path / "web [cleaned]").mkdir()
    path = tmp_path / "web [cleaned]" / "part [1].jsonl"
    path.write_text('{"text": "hello"}\n')
    files, faults = find_files([str(tmp_path / pattern)], "corpus.paths")
    assert (files, faults) == ([str(path)], [])
    assert list(read(units_of(files[0])[0], "text", "")) == [Document(str(path), 1, "hello")]


def test_brackets_choose_between_characters_where_that_finds_files(tmp_path):
    for name in ("a1.txt", "a2.txt", "a3.txt"):
        (tmp_path / name).write_text("x")
    files, faults = find_files([str(tmp_path / "a[12].txt")], "corpus.paths")
    assert (files, faults) == ([str(tmp_path / "a1.txt"), str(tmp_path / "a2.txt")], [])


def test_a_file_has_one_name(tmp_path):
    path, link, around = tmp_path / "a.txt", tmp_path / "link.txt", f"{tmp_path}/x/../a.txt"
    path.write_text("x")
    link.symlink_to(path)
    (tmp_path / "x").mkdir()
    for other in (link, around):
        (fault,) = faults_of(path, other)
        assert fault.startswith(f"corpus.paths.1: names '{other}' again, which corpus.paths.0 ('{path}') has named as")
    (fault,) = faults_of(tmp_path / "*.txt")
    assert fault.startswith(f"corpus.paths.0: names '{link}' again, which corpus.paths.0")


def test_a_file_belongs_to_one_domain(tmp_path):
    for name in ("a1.txt", "a2.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    domains = {"b": {"paths": [f"{tmp_path}/b.txt"]}, "a": {"paths": [f"{tmp_path}/a*.txt"]}}
    files, faults = find_corpus(CorpusSpec(domains=domains))
    assert files == {"a": [f"{tmp_path}/a1.txt", f"{tmp_path}/a2.txt"], "b": [f"{tmp_path}/b.txt"]}
    assert not faults
    domains["c"] = {"paths": [f"{tmp_path}/*1.txt"]}
    (fault,) = find_corpus(CorpusSpec(domains=domains))[1]
    assert str(fault) == (
        f"corpus.domains.c.paths: '{tmp_path}/a1.txt' is in the domain 'a' too; give every file to one domain"
    )


def test_a_folder_and_a_git_lfs_pointer_are_no_files_of_a_corpus(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "pointer.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 5\n")
    folder, pointer = faults_of(tmp_path / "x.jsonl", tmp_path / "pointer.parquet")
    assert folder.startswith(f"corpus.paths.0: '{tmp_path}/x.jsonl' is a folder; give the files in it")
    assert pointer == (
        f"corpus.paths.1: '{tmp_path}/pointer.parquet' is a Git LFS pointer, not the file; fetch it with `git lfs pull`"
    )


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.txt", "*/*.txt", "a?/*/x.txt", "a1/b1/*", "[ab]1/*", "[!a]*/x.txt", "a*/b2/*.txt", "**/x.txt", "c/*"],
)
def test_a_glob_names_what_the_filesystem_itself_would(tmp_path, pattern):
    for name in ("x.txt", ".y.txt", "a1/x.txt", "a1/b1/x.txt", "a1/b2/y.txt", "a2/b2/x.txt", "b1/x.txt", "b1/.z/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    files = find_files([f"{tmp_path}/{pattern}"], "corpus.paths")[0]
    assert files == sorted(fsspec.filesystem("file").glob(f"{tmp_path}/{pattern}"))


def test_a_glob_follows_a_link_to_a_folder(tmp_path):
    (tmp_path / "real" / "train").mkdir(parents=True)
    (tmp_path / "real" / "train" / "x.txt").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to("../real")
    for pattern in ("*/*/*.txt", "*/train/x.txt", "link/train/*", "link/t*/x.txt"):
        assert find_files([f"{tmp_path}/data/{pattern}"], "corpus.paths") == (
            [f"{tmp_path}/data/link/train/x.txt"],
            [],
        )
    for pattern in ("data/*", "data/link"):
        (fault,) = faults_of(tmp_path / pattern)
        assert fault.startswith(f"corpus.paths.0: '{tmp_path}/data/link' is a folder; give the files in it")


def test_a_part_of_a_glob_without_a_star_lists_no_folder():
    with failing_store() as store:
        urls = [store.write(f"r/{folder}/train/x.txt", b"x") for folder in ("a", "b")]
        for other in ("r/c/test/x.txt", "r/notes.txt", "r/lost+found/y/x.txt"):
            store.write(other, b"x")
        store.fail(list=range(4, 9))
        assert find_files(["failing://r/*/train/*.txt"], "corpus.paths") == (urls, [])
        assert store.asked["list"] == 3, "the root and two folders of that name"
        store.fail(info={2})
        (fault,) = find_files(["failing://r/*/train/*.txt"], "corpus.paths")[1]
        assert fault.what.startswith("'failing://r/*/train/*.txt' cannot be listed: PayloadError")


def test_a_glob_of_all_folders_passes_over_none_of_a_disk(tmp_path, monkeypatch):
    for folder in ("a", "b", "lost+found"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("x")
    scandir, away = os.scandir, {"lost+found"}

    def list_folder(path):
        if os.path.basename(path) in away:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", list_folder)
    assert find_files([f"{tmp_path}/**/*.txt"], "corpus.paths") == ([f"{tmp_path}/{name}/x.txt" for name in "ab"], [])
    assert faults_of(tmp_path / "none" / "**")[0].startswith("corpus.paths.0: no file is at")
    (tmp_path / "c").symlink_to("a")
    assert len(find_files([f"{tmp_path}/**/*.txt"], "corpus.paths")[0]) == 2, "it follows no link"
    away.add("b")
    (fault,) = faults_of(tmp_path / "**" / "*.txt")
    assert "cannot be listed: PermissionError" in fault and f"{tmp_path}/b" in fault


def test_a_path_that_a_store_does_not_show_is_not_taken_for_missing():
    with failing_store() as store:
        url = store.write("r/x.txt", b"x")
        store.fail(info={1})
        (fault,) = find_files([url], "corpus.paths")[1]
        assert fault.what.startswith(f"{url!r} cannot be listed: PayloadError")


def test_a_folder_that_cannot_be_listed_is_a_fault_and_not_left_out():
    with failing_store() as store:
        names = [f"r/{folder}/{part}/x.txt" for folder in ("a1", "a2", "b") for part in "cd"]
        urls = [store.write(name, b"x") for name in names]
        assert find_files(["failing://r/a*/*/*.txt"], "corpus.paths") == (urls[:4], [])
        lists = store.asked["list"]
        assert lists == 7
        for number in range(1, lists + 1):
            store.fail(list={number})
            files, (fault,) = find_files(["failing://r/a*/*/*.txt"], "corpus.paths")
            assert not files
            assert fault.what.startswith("'failing://r/a*/*/*.txt' cannot be listed: PayloadError: ")
