"""What a node of a cluster lacks, although the driver's own node has it."""

import pytest

from engine.errors import PreflightError
from engine.spec import FusionSpec
from pipelines.run import node_checks
from pipelines.run.node_checks import check_nodes, faults_here

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def spec(tmp_path) -> FusionSpec:
    (tmp_path / "source").mkdir()
    return FusionSpec(
        run={"name": "x", "output_dir": str(tmp_path / "out")},
        corpus={"paths": ["a.jsonl"]},
        target_model={"checkpoint": str(tmp_path / "target")},
        source_models=[
            {"name": "one", "checkpoint": str(tmp_path / "source")},
            {"name": "two", "checkpoint": "hub/two"},
        ],
        alignment={"cache_dir": str(tmp_path / "tables")},
        cluster={"source_model_labels": {"pool": "sources"}, "training_labels": {"pool": "training"}},
    )


def test_a_model_is_looked_for_where_it_will_run(spec):
    assert faults_here(spec, scores=True, trains=False, mark=None) == []
    (fault,) = faults_here(spec, scores=True, trains=True, mark=None)
    assert (fault.where, fault.what) == ("target_model.checkpoint", f"there is no {spec.target_model.checkpoint}")


def test_a_protocol_without_its_package_is_named(spec):
    changed = spec.model_copy(update={"run": spec.run.model_copy(update={"output_dir": "nothing://models/x"})})
    (fault,) = faults_here(changed, scores=True, trains=False, mark=None)
    assert fault.where == "run.output_dir"
    assert "nothing://models/x cannot be used: ValueError" in fault.what


def test_a_home_folder_that_cannot_be_written_is_named_as_what_the_user_can_set(spec, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (fault,) = faults_here(spec, scores=True, trains=False, mark=None)
    assert (fault.where, fault.what.split(" ")[0]) == ("environment variable HOME", node_checks.CACHE_DIR)
    assert fault.remedy.startswith("set HOME to a folder that can be written")


def test_a_local_output_folder_must_be_the_drivers(spec, tmp_path):
    """The lease is renewed while the nodes are looked at; its token stays."""
    (tmp_path / "target").mkdir()
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "lease.json").write_text('{"renewed": 1.0, "token": "of this run"}')
    mark = node_checks._mark(str(folder))
    (folder / "lease.json").write_text('{"renewed": 2.0, "token": "of this run"}')
    assert faults_here(spec, scores=False, trains=True, mark=mark) == []
    (folder / "lease.json").write_text('{"renewed": 2.0, "token": "of an earlier run"}')
    (fault,) = faults_here(spec, scores=False, trains=True, mark=mark)
    assert str(fault).startswith(f"run.output_dir: {folder} is not the folder that the driver writes; give a URL")
    (folder / "lease.json").unlink()
    assert faults_here(spec, scores=False, trains=True, mark=mark) == [fault]


def test_every_node_of_a_cluster_is_looked_at_by_its_labels_and_a_lone_one_is_not(spec, monkeypatch):
    nodes = [
        {"Alive": True, "NodeID": "a" * 56, "NodeManagerHostname": name, "Labels": {"pool": pool}}
        for name, pool in (("first", "sources"), ("second", "training"))
    ]

    class Look:
        def options(self, **_):
            return self

        def remote(self, *arguments):
            return faults_here(*arguments)

    monkeypatch.setattr(node_checks.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(node_checks.ray, "remote", lambda **_: lambda work: Look())
    monkeypatch.setattr(node_checks.ray, "get", lambda found, timeout: found)
    with pytest.raises(PreflightError, match=r"target_model\.checkpoint: on node second: there is no") as refused:
        check_nodes(spec)
    assert "on node first" not in str(refused.value)
    del nodes[1]
    check_nodes(spec)
