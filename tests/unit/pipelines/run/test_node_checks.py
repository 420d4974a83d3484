"""What a node of a cluster lacks, although the driver's own node has it."""

import threading
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from engine.corpus.domains import Domain
from engine.corpus.files import CorpusUnit
from engine.errors import Fault, PreflightError
from engine.spec import EvaluationSpec, FusionSpec
from pipelines.run import node_checks
from pipelines.run.node_checks import Duties, check_nodes, faults_here

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


@pytest.fixture
def store(monkeypatch):
    """A store ``closed://`` without buckets, which wants credentials for ``closed://mine``."""

    class Closed(MemoryFileSystem):
        protocol = "closed"

        def info(self, path, **options):
            if "mine" in path:
                raise PermissionError("no credentials\nfurther lines")
            raise FileNotFoundError("The specified bucket does not exist")

    fsspec.register_implementation("closed", Closed, clobber=True)
    monkeypatch.setattr(node_checks, "FIRST_PAUSE_SECONDS", 0.0)


def changed(spec: FusionSpec, section: str, **fields) -> FusionSpec:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=fields)})


def lacks(spec: FusionSpec, texts: dict[str, str] | None = None, mark: bytes | None = None, **duties) -> list[Fault]:
    return faults_here(spec, Duties(**duties), texts or {}, mark)


def test_a_model_is_looked_for_where_it_is_needed(spec):
    assert lacks(spec, scores=True) == []
    missing = Fault(
        "target_model.checkpoint",
        f"there is no {spec.target_model.checkpoint}",
        "copy it to every node that needs it, or give a URL",
    )
    assert lacks(spec, trains=True) == lacks(spec, evaluates=True) == [missing]
    assert lacks(spec, reads=True) == [missing], "readers and aligners load every model's tokenizer"


def test_a_protocol_without_its_package_is_named(spec, monkeypatch):
    monkeypatch.setattr(node_checks, "FIRST_PAUSE_SECONDS", 0.0)
    (fault,) = lacks(changed(spec, "alignment", cache_dir="nothing://models/x"), reads=True)[1:]
    assert fault.where == "alignment.cache_dir"
    assert "nothing://models/x cannot be used: ValueError" in fault.what


@pytest.mark.usefixtures("store")
def test_a_store_is_asked_for_what_the_run_will_read(spec, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "empty.jsonl").touch()
    assert lacks(spec, {"corpus.paths": str(tmp_path / "empty.jsonl")}, reads=True) == []
    spec = changed(spec, "target_model", checkpoint="closed://mine/target", chat_template=str(tmp_path / "no.jinja"))
    texts = {
        "corpus.paths": str(tmp_path / "a.jsonl"),
        "corpus.domains.web.paths": "closed://yours/a.jsonl",
    }
    remedy = "see that the node has the protocol's fsspec package, the store's credentials and a way to it"
    assert [str(fault) for fault in lacks(spec, texts, reads=True)] == [
        f"target_model.checkpoint: closed://mine/target cannot be used: PermissionError: no credentials; {remedy}",
        f"target_model.chat_template: there is no {tmp_path}/no.jinja; copy it to every node that needs it, or give "
        "a URL",
        f"corpus.paths: there is no {tmp_path}/a.jsonl; copy it to every node that needs it, or give a URL",
        "corpus.domains.web.paths: closed://yours/a.jsonl cannot be used: FileNotFoundError: The specified bucket does "
        f"not exist; {remedy}",
    ]
    assert lacks(changed(spec, "alignment", cache_dir="closed://yours/tables"), reads=True)[2:] == [], "made at need"


@pytest.mark.usefixtures("store")
def test_held_out_text_is_read_where_the_target_is_evaluated_during_training(spec, tmp_path):
    (tmp_path / "target").mkdir()
    held_out = EvaluationSpec(corpora={"d": (str(tmp_path / "held_out.jsonl"),)}, models={"other": "closed://mine/m"})
    spec = spec.model_copy(update={"evaluation": held_out})
    assert lacks(spec, trains=True) == [], "the driver alone reads it after training"
    (fault,) = lacks(changed(spec, "evaluation", every_steps=10), trains=True)
    assert (fault.where, fault.what) == (
        "evaluation.corpora.d.0",
        f"no file is at '{tmp_path}/held_out.jsonl'",
    )
    (fault,) = lacks(spec, evaluates=True)
    assert fault.where == "evaluation.models.other"


def test_a_store_that_does_not_answer_is_a_fault_and_does_not_hold_up_the_others(spec, monkeypatch):
    monkeypatch.setattr(node_checks, "MOST_SECONDS_THERE", 0.5)
    has_ended = threading.Event()
    monkeypatch.setattr(node_checks, "_first_bytes", lambda path: has_ended.wait() and [])
    faults = lacks(spec, {"corpus.paths": "slow://a.jsonl"}, reads=True)
    has_ended.set()
    assert [fault.where for fault in faults] == ["target_model.checkpoint", "corpus.paths"]
    assert faults[1].what == "slow://a.jsonl does not answer within 0.5 seconds"


def test_a_home_folder_that_cannot_be_written_is_named_as_what_the_user_can_set(spec, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (fault,) = lacks(spec, scores=True)
    assert (fault.where, fault.what.split(" ")[0]) == ("environment variable HOME", node_checks.CACHE_DIR)
    assert fault.remedy.startswith("set HOME to a folder that can be written")


@pytest.mark.parametrize("protocol", ["", "file://"])
def test_the_output_folder_must_be_the_drivers(spec, tmp_path, protocol):
    """The lease is renewed while the nodes are looked at; its token stays."""
    (tmp_path / "target").mkdir()
    folder = tmp_path / "out"
    folder.mkdir()
    spec = changed(spec, "run", output_dir=f"{protocol}{folder}")
    (folder / "lease.json").write_text('{"renewed": 1.0, "token": "of this run"}')
    mark = node_checks._mark(spec.run.output_dir)
    (folder / "lease.json").write_text('{"renewed": 2.0, "token": "of this run"}')
    assert lacks(spec, mark=mark, trains=True) == []
    (folder / "lease.json").write_text('{"renewed": 2.0, "token": "of an earlier run"}')
    (fault,) = lacks(spec, mark=mark, trains=True)
    assert str(fault).startswith(
        f"run.output_dir: {protocol}{folder} is not the folder that the driver writes; give a URL"
    )
    (folder / "lease.json").unlink()
    assert lacks(spec, mark=mark, evaluates=True) == [fault]


def test_an_output_folder_that_cannot_be_written_is_a_fault(spec, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "file").touch()
    (fault,) = lacks(changed(spec, "run", output_dir=str(tmp_path / "file" / "out")), trains=True)
    assert fault.what.endswith("file/out cannot be made or written: Not a directory")
    assert fault.remedy == "mount it for writing on every node that needs it"


def test_a_store_that_fails_for_a_moment_is_asked_again(spec, tmp_path, monkeypatch):
    (tmp_path / "target").mkdir()
    pauses: list[float] = []
    monkeypatch.setattr(node_checks.time, "sleep", pauses.append)

    def first_bytes(path: str) -> list[Fault]:
        if len(pauses) < 3:
            raise ConnectionError("reset by peer")
        return []

    monkeypatch.setattr(node_checks, "_first_bytes", first_bytes)
    assert lacks(spec, {"corpus.paths": "slow://a.jsonl"}, reads=True) == []
    assert pauses == [1.0, 2.0, 4.0]
    pauses.clear()
    assert len(lacks(spec, {"corpus.paths": "a.jsonl"}, reads=True)) == 1
    assert pauses == [], "a file of this machine is there or not"


MERGES = {"m": {"method": "linear", "models": ["a", "b"]}}


@pytest.mark.parametrize(
    ("resources", "evaluation", "expected"),
    [
        ({"CPU": 8.0, "GPU": 1.0}, {"tasks": ["one"]}, Duties(True, True, True, True)),
        ({"CPU": 8.0}, {"tasks": ["one"]}, Duties(reads=True)),
        ({"CPU": 8.0}, {"merges": MERGES}, Duties(reads=True, evaluates=True)),
        ({"CPU": 0.5}, {}, Duties(reads=True)),
        ({}, {"tasks": ["one"]}, Duties()),
    ],
    ids=["a GPU", "CPUs alone", "merges need no GPU", "room for a reader", "a head that takes no work"],
)
def test_a_node_has_the_duties_that_fit_on_it(resources, evaluation, expected):
    spec = FusionSpec.model_validate(
        {
            "run": {"name": "x", "output_dir": "out"},
            "corpus": {"paths": ["a.jsonl"]},
            "target_model": {"checkpoint": "target"},
            "source_models": [{"name": "one", "checkpoint": "one", "num_gpus": 1}],
            "training": {"num_gpus_per_worker": 1},
            "evaluation": evaluation,
        }
    )
    assert Duties.of(spec, {"Resources": resources, "Labels": {"ray.io/node-id": "0"}}) == expected


@pytest.fixture
def cluster(monkeypatch):
    """Nodes that a test changes; each answers from this process, but a silent or a broken one."""
    nodes = [
        {
            "Alive": True,
            "NodeID": f"{number}" * 56,
            "NodeManagerHostname": name,
            "Labels": {"pool": pool},
            "Resources": {"CPU": 8.0} if pool != "head" else {},
        }
        for number, (name, pool) in enumerate((("first", "head"), ("second", "training"), ("third", "training")))
    ]
    found = SimpleNamespace(nodes=nodes, silent=(), broken=(), waits=[])

    class Look:
        def options(self, scheduling_strategy):
            self.node = scheduling_strategy.node_id
            return self

        def remote(self, *arguments):
            return self.node, *faults_here(*arguments)

    def wait(asked, num_returns, timeout):
        found.waits.append((len(asked), num_returns, timeout))
        return [answer for answer in asked if answer[0][0] not in found.silent], []

    def get(answer):
        if answer[0][0] in found.broken:
            raise ModuleNotFoundError("No module named 'pipelines'")
        return list(answer[1:])

    monkeypatch.setattr(node_checks.ray, "nodes", lambda: found.nodes)
    monkeypatch.setattr(node_checks.ray, "remote", lambda **_: lambda work: Look())
    monkeypatch.setattr(node_checks.ray, "wait", wait)
    monkeypatch.setattr(node_checks.ray, "get", get)
    return found


def test_all_nodes_are_asked_at_once_by_their_duties_and_a_lone_one_is_not(spec, cluster, tmp_path):
    (tmp_path / "a.jsonl").touch()
    flow = SimpleNamespace(domains=(Domain("", 1.0, ((CorpusUnit(str(tmp_path / "a.jsonl")),),)),))
    with pytest.raises(PreflightError) as refused:
        check_nodes(spec, flow)
    (fault,) = refused.value.faults
    assert fault.what == f"on the nodes second, third: there is no {spec.target_model.checkpoint}"
    assert cluster.waits == [(3, 3, node_checks.MOST_SECONDS)]
    cluster.silent, cluster.broken = ("0", "2"), ("1",)
    with pytest.raises(PreflightError) as refused:
        check_nodes(spec, flow)
    assert [fault.what for fault in refused.value.faults] == [
        "on the nodes first, third: no answer within 300 seconds",
        "on node second: the look at what it lacks failed: ModuleNotFoundError: No module named 'pipelines'",
    ]
    del cluster.nodes[1:]
    check_nodes(spec, flow)
