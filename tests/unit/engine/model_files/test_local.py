"""Checkpoints from anywhere: copied once, whole or not at all, and again when they change."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.local import local_checkpoint
from engine.spec.loading import as_located_spec
from tests.support.paths import ROOT

FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": bytes(range(256)) * 400}

# Says that it copies, then takes its time, so that the others come meanwhile.
COPYING = """
import sys, time
from engine.model_files import local
from engine.model_files.checkpoint import Checkpoint
url, cache, log, seconds = sys.argv[1:]
download = local._download
def slow(*arguments):
    open(log, "a").write("copied\\n")
    download(*arguments)
    time.sleep(float(seconds))
local._download = slow
print(local.local_checkpoint(Checkpoint(url), cache_dir=cache))
"""


def copying(url: str, cache: Path, log: Path, seconds: float) -> subprocess.Popen:
    arguments = [url, str(cache), str(log), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", COPYING, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def visible(cache: Path) -> list[Path]:
    """What of a cache is taken for a checkpoint."""
    return [path for path in cache.iterdir() if path.suffix not in (".lock", ".part")]


@pytest.fixture()
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture()
def remote():
    """A checkpoint's files in memory, and a folder inside that no library of ours reads."""
    filesystem = fsspec.filesystem("memory")
    for name, data in FILES.items():
        filesystem.pipe_file(f"/models/one/{name}", data)
    filesystem.pipe_file("/models/one/onnx/model.onnx", b"other")
    yield filesystem
    filesystem.rm("/models", recursive=True)


@pytest.fixture()
def folder(tmp_path) -> Path:
    folder = tmp_path / "remote" / "model"
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def test_folders_and_hub_names_stay_as_they_are(cache, folder):
    assert local_checkpoint(Checkpoint(str(folder)), cache_dir=str(cache)) == str(folder)
    assert local_checkpoint(Checkpoint("owner/model"), cache_dir=str(cache)) == "owner/model"
    assert not cache.exists()


def test_a_remote_folder_is_copied_once(cache, remote, monkeypatch):
    found = Path(local_checkpoint(Checkpoint("memory://models/one"), cache_dir=str(cache)))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == FILES
    assert found.parent == cache
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *_, **__: pytest.fail("copied again"))
    assert local_checkpoint(Checkpoint("memory://models/one/"), cache_dir=str(cache)) == str(found)
    assert local_checkpoint(Checkpoint("memory://models/one"), cache_dir=str(cache)) == str(found)


def test_a_file_url_is_copied(cache, folder):
    found = Path(local_checkpoint(Checkpoint(f"file://{folder}"), cache_dir=str(cache)))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == FILES
    assert found != folder


def test_a_node_that_runs_no_model_is_spared_the_weights(cache, remote):
    found = Path(local_checkpoint(Checkpoint("memory://models/one"), weights=False, cache_dir=str(cache)))
    assert {path.name for path in found.iterdir()} == {"config.json", "tokenizer.json"}
    whole = Path(local_checkpoint(Checkpoint("memory://models/one"), cache_dir=str(cache)))
    assert (whole / "model.safetensors").exists()


def test_other_forms_of_the_same_weights_are_left(cache, remote):
    for name in ("pytorch_model.bin", "model.onnx", "optimizer.pt", "model.Q4_0.gguf"):
        remote.pipe_file(f"/models/one/{name}", b"the same weights, or none that are read")
    found = Path(local_checkpoint(Checkpoint("memory://models/one"), cache_dir=str(cache)))
    assert {path.name for path in found.iterdir()} == set(FILES)


def test_a_changed_checkpoint_is_copied_again(cache, remote):
    before = Path(local_checkpoint(Checkpoint("memory://models/one"), cache_dir=str(cache)))
    remote.pipe_file("/models/one/model.safetensors", FILES["model.safetensors"][::-1])  # as long as before
    after = Path(local_checkpoint(Checkpoint("memory://models/one"), cache_dir=str(cache)))
    assert (after / "model.safetensors").read_bytes() == FILES["model.safetensors"][::-1]
    assert (before / "model.safetensors").read_bytes() == FILES["model.safetensors"], "a run may be reading it"


def test_several_processes_at_once_copy_once(cache, folder, tmp_path):
    log = tmp_path / "log"
    processes = [copying(f"file://{folder}", cache, log, 1.0) for _ in range(4)]
    found = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert log.read_text() == "copied\n"
    assert {path.name: path.read_bytes() for path in Path(found.pop()).iterdir()} == FILES
    assert not found, "all got the same folder"


def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(cache, folder, tmp_path):
    log = tmp_path / "log"
    process = copying(f"file://{folder}", cache, log, 60.0)
    while not list(cache.glob("*.part/model.safetensors")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    (torn,) = cache.glob("*.part")
    (torn / "model.safetensors").write_bytes(b"half")
    assert visible(cache) == []
    found = Path(local_checkpoint(Checkpoint(f"file://{folder}"), cache_dir=str(cache)))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == FILES
    assert visible(cache) == [found]
    assert not torn.exists()


def test_what_killed_processes_have_left_goes_with_the_next_checkpoint(cache, folder, remote, tmp_path):
    """They may never come back for it; what a living one is at work on stays."""
    process = copying(f"file://{folder}", cache, tmp_path / "log", 60.0)
    while not list(cache.glob("*.part/model.safetensors")):
        assert process.poll() is None
    (living,) = cache.glob("*.part")
    dead = cache / "other-0123456789abcdef.part"
    dead.mkdir()
    (dead / "model.safetensors").write_bytes(b"half")
    found = Path(local_checkpoint(Checkpoint("memory://models/one"), cache_dir=str(cache)))
    assert not dead.exists()
    assert (living / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert visible(cache) == [found]
    process.kill()
    process.communicate()


def test_a_checkpoint_that_changes_while_it_is_copied_is_refused(cache, remote, monkeypatch):
    """Half of the old one and half of the new one would load, and predict next to nothing."""
    whole = MemoryFileSystem.get_file

    def overtaken(self, path, place, **options):
        whole(self, path, place, **options)
        if path.endswith("config.json"):
            self.pipe_file("/models/one/model.safetensors", FILES["model.safetensors"][::-1])

    monkeypatch.setattr(MemoryFileSystem, "get_file", overtaken)
    with pytest.raises(OSError, match="memory://models/one changed while it was copied"):
        local_checkpoint(Checkpoint("memory://models/one"), cache_dir=str(cache))
    assert visible(cache) == list(cache.glob("*.part")) == []


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("model.Q4_0.gguf", r"give the URL of one of its \.gguf files: model\.Q4_0\.gguf"),
        ("a.bin", "a Hugging Face folder"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_not_copied(cache, remote, name, advice):
    remote.pipe_file(f"/models/none/{name}", b"much")
    with pytest.raises(OSError, match=rf"memory://models/none cannot be read: .*no config\.json in it; .*{advice}"):
        local_checkpoint(Checkpoint("memory://models/none"), cache_dir=str(cache))
    assert not cache.exists()


def test_a_copy_that_came_short_is_refused(cache, remote, monkeypatch):
    whole = MemoryFileSystem.get_file

    def cut_short(self, path, place, **options):
        whole(self, path, place, **options)
        os.truncate(place, 1)

    monkeypatch.setattr(MemoryFileSystem, "get_file", cut_short)
    with pytest.raises(OSError, match=r"has \d+ bytes, and 1 came"):
        local_checkpoint(Checkpoint("memory://models/one"), cache_dir=str(cache))
    assert visible(cache) == list(cache.glob("*.part")) == []


@pytest.mark.parametrize("url", ["memory://models/none", "nonsense://models", "/nowhere/model.gguf", "memory://a.gguf"])
def test_what_is_not_there_is_named(url, cache):
    with pytest.raises(OSError, match=url):
        local_checkpoint(Checkpoint(url), cache_dir=str(cache))


def test_a_spec_is_located_wherever_its_checkpoints_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora").mkdir()
    (tmp_path / "model.gguf").touch()
    sources = [
        {"name": "a", "checkpoint": "s3://models/a", "adapter": "lora"},
        {"name": "b", "checkpoint": "model.gguf", "adapter": "s3://models/lora"},
    ]
    spec = as_located_spec(
        {
            "run": {"name": "x", "output_dir": "out"},
            "corpus": {"paths": ["a.jsonl"]},
            "target_model": {"checkpoint": "memory://models/target"},
            "source_models": sources,
        }
    )
    assert spec.target_model.checkpoint == "memory://models/target"
    assert [source.checkpoint for source in spec.source_models] == ["s3://models/a", str(tmp_path / "model.gguf")]
    assert [source.adapter for source in spec.source_models] == [str(tmp_path / "lora"), "s3://models/lora"]
