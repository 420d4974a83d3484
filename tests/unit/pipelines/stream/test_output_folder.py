"""A folder that a run could not write is a fault before the run, and the look leaves no file."""

import subprocess
import sys

import pytest
from fsspec.registry import known_implementations

from engine import load_spec
from pipelines.stream.output_folder import written_folder_faults
from tests.support.paths import ROOT


def faults_of(folder: object) -> str:
    spec = load_spec("pipelines/specs/quickstart.yaml", ["source_models=[]", "objective.lm_loss_weight=1.0"])
    run = spec.run.model_copy(update={"output_dir": str(folder)})
    return "\n".join(map(str, written_folder_faults(spec.model_copy(update={"run": run}))))


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path):
    assert faults_of(tmp_path / "a" / "b b" / "c") == ""
    assert faults_of(f"file://{tmp_path}/a") == ""
    assert faults_of(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_and_a_folder_that_cannot_be_made_are_faults(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for folder in ("file", "file/out", "lost/out", "x" * 300, "a/x\0y", "b/" + "x" * 300):
        fault = faults_of(tmp_path / folder)
        assert fault.startswith(f"run.output_dir: {tmp_path / folder} cannot be made or written: "), fault
    assert "cannot be made or written" in faults_of("/proc/nothing/out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "lost"]


@pytest.mark.parametrize("url", ["memory://out", "az://c/x", "s3a://b/x", "webhdfs://h/x", "zip://x::/a.zip"])
def test_a_protocol_that_a_run_does_not_write_is_a_fault(url):
    assert faults_of(url).startswith(f"run.output_dir: {url} is of a protocol that a run does not write")


@pytest.mark.parametrize(
    ("url", "odd"),
    [("s3://b/my runs/x", "' '"), ("file:///a%20b", "'%'"), ("gs://b/öut", "'ö'"), ("s3://b/x?y", "'?'")],
)
def test_a_url_that_tools_read_in_several_ways_is_a_fault(url, odd):
    assert faults_of(url).startswith(f"run.output_dir: {url} has {odd}, which not all tools read as it is")


def test_a_path_of_a_thousand_folders_is_a_fault(tmp_path):
    assert "cannot be made or written" in faults_of(str(tmp_path) + "/x" * 3000)


def test_a_folder_for_tables_that_cannot_be_made_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("x")
    overrides = [f"run.output_dir={tmp_path}/out", f"alignment.cache_dir={tmp_path}/file/tables"]
    (fault,) = written_folder_faults(load_spec("pipelines/specs/quickstart.yaml", overrides))
    assert str(fault).startswith(
        f"alignment.cache_dir: {tmp_path}/file/tables cannot be made or written: Not a directory"
    )


@pytest.mark.parametrize("url", ["foo://x/tables", "lost://x/tables"])
def test_a_store_of_tables_that_is_not_known_is_a_fault(tmp_path, monkeypatch, url):
    monkeypatch.setitem(known_implementations, "lost", {"class": "lostfs.Files", "err": "install lostfs"})
    overrides = [f"run.output_dir={tmp_path}/out", f"alignment.cache_dir={url}"]
    (fault,) = written_folder_faults(load_spec("pipelines/specs/quickstart.yaml", overrides))
    assert str(fault).startswith(f"alignment.cache_dir: {url} cannot be used: ")
    assert fault.remedy.startswith("install the protocol's fsspec package")


LOOKS = """
import sys
from engine.spec import FusionSpec
from pipelines.stream.output_folder import written_folder_faults
spec = FusionSpec.model_validate({
    "run": {"name": "x", "output_dir": sys.argv[1]},
    "corpus": {"paths": ["unused"]},
    "target_model": {"checkpoint": "unused"},
})
print(sum(len(written_folder_faults(spec)) for _ in range(300)))
"""


def test_two_runs_that_look_at_once_find_no_fault(tmp_path):
    command = [sys.executable, "-c", LOOKS, str(tmp_path / "runs" / "out")]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate(timeout=50)[0].strip() for run in runs] == ["0", "0"]
    assert list(tmp_path.iterdir()) == []
