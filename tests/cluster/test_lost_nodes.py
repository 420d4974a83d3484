"""Three Ray nodes on one machine, the sources on two of them and training on the third, come late, lack and die."""

import os
import secrets
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray._raylet import AuthenticationTokenLoader
from ray.cluster_utils import Cluster

from engine.corpus.domains import Domain
from engine.corpus.files import CorpusUnit
from engine.errors import PreflightError
from engine.spec import FusionSpec
from pipelines.cluster.session import LOCAL, QUIET
from pipelines.run.node_checks import check_nodes
from tests.support.interrupted_runs import TRANSFORMERS, InterruptedRun

pytestmark = pytest.mark.timeout(600)

#: Shared memory of each node, and logical CPUs: those of one source node are enough for all replicas.
STORE_BYTES, CPUS = 2**28, 8

#: Of two nodes that share so many, one has at least two.
REPLICAS = 3

#: Three seconds without a passage, a step or a new process are a stall.
STALL_MINUTES = 0.05

#: Ray notices a lost node after about two seconds instead of fifteen.
SOON_MISSED = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


class ThreeNodes:
    """A head without CPUs and two nodes for source models; the one for training comes later. Each has a label."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES}
        head |= {"include_dashboard": False, "_system_config": SOON_MISSED}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.sources = [self.add("sources"), self.add("sources")]
        self.address = self._cluster.address

    def add(self, pool: str, **environment: str):
        """Start a node with a label, and with other variables than this process has."""
        return self._cluster.add_node(
            num_cpus=CPUS, object_store_memory=STORE_BYTES, labels={"pool": pool}, env_vars=environment
        )

    def processes(self, node, name: str) -> set[int]:
        """The ids of a node's processes whose title contains ``name``."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        found = set()
        for worker in raylet.children():
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if name in " ".join(worker.cmdline()):
                    found.add(worker.pid)
        return found

    def with_two_working_replicas(self):
        """A source node on which two replicas or more have loaded their model, and none is still loading; or None."""
        for node in self.sources:
            loading = self.processes(node, "SourceModelStage)).__init__")
            if not loading and len(self.processes(node, "SourceModelStage))")) >= 2:
                return node
        return None

    def kill(self, node) -> None:
        """SIGKILL to all processes of a node."""
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        """End all that are left."""
        self._cluster.shutdown()


@pytest.fixture
def nodes(monkeypatch):
    """Nodes that are joined by whatever run this test starts."""
    ray.shutdown()  # the other tests' Ray, if there is one, has another token
    for name, value in {**QUIET, **LOCAL, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
        monkeypatch.setenv(name, value)
    AuthenticationTokenLoader.instance().reset_cache()
    nodes = ThreeNodes()
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield nodes
    nodes.shutdown()


def test_a_run_waits_for_a_late_node_and_outlives_two(tmp_path, nodes, undisturbed_curve):
    """At least two replicas die with their node, although none may die by itself; training does not start again."""
    overrides = (
        TRANSFORMERS,
        f"source_models.0.replicas={REPLICAS}",
        "source_models.0.max_restarts=0",
        "cluster.source_model_labels={pool: sources}",
        "cluster.training_labels={pool: training}",
        f"cluster.stall_minutes={STALL_MINUTES}",
    )
    with InterruptedRun(tmp_path, *overrides).start() as run:
        run.wait_for(lambda: run.has_said("waiting for the cluster"))
        assert run.has_said("no node of the cluster has pool: training"), run.log
        training = nodes.add("training")
        fullest = run.wait_for(nodes.with_two_working_replicas)
        nodes.kill(fullest)
        run.wait_for_step(4)
        workers = nodes.processes(training, "RayTrainWorker")
        assert workers, "training workers are where the label says"
        run.wait_for_step(16)
        assert nodes.processes(training, "RayTrainWorker") == workers, "training goes on without a restart"
        nodes.kill(training)
        nodes.add("training")
        assert run.wait() == 0, run.log
        run.check_exactly_once()
        assert run.curve == undisturbed_curve
        assert run.has_said("no stage has made progress for"), "models load longer than a stall of this run"


def test_what_one_node_lacks_is_found_before_a_run_starts(tmp_path, nodes, monkeypatch):
    """Its home folder is another one, in which there is no model and which cannot be written; s3fs does not load."""
    for folder in ("home/target", "source", "packages/s3fs"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("no-folder", "home/a.jsonl"):
        (tmp_path / file).touch()
    (tmp_path / "packages/s3fs/__init__.py").write_text("raise ImportError('not installed here')")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    spec = FusionSpec(
        run={"name": "lacking", "output_dir": str(tmp_path / "out")},
        corpus={"paths": ["~/a.jsonl"]},
        target_model={"checkpoint": "~/target"},
        source_models=[{"name": "source", "checkpoint": str(tmp_path / "source")}],
        alignment={"cache_dir": str(tmp_path / "tables")},
        evaluation={"corpora": {"d": ["s3://texts/held-out.jsonl"]}, "every_steps": 1},
        cluster={"source_model_labels": {"pool": "sources"}, "training_labels": {"pool": "training"}},
    )
    flow = SimpleNamespace(domains=(Domain("", 1.0, ((CorpusUnit("~/a.jsonl"),),)),))
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        with pytest.raises(PreflightError) as of_sources:
            check_nodes(spec, flow)  # they had their home folder before this test
        nodes.add("training", HOME=str(tmp_path / "no-folder"), PYTHONPATH=str(tmp_path / "packages"))
        with pytest.raises(PreflightError) as refused:
            check_nodes(spec, flow)
    finally:
        ray.shutdown()
    for path in (spec.target_model.checkpoint, spec.corpus.paths[0]):
        assert os.path.exists(os.path.expanduser(path)), "the driver sees it"
    lacking = {"target_model.checkpoint": "there is no ~/target", "corpus.paths": "there is no ~/a.jsonl"}
    assert {fault.where: fault.what.partition(": ")[2] for fault in of_sources.value.faults} == lacking
    found = {fault.where: fault.what.partition(": ")[2] for fault in refused.value.faults}
    assert len(refused.value.faults) == len(found) == 4, refused.value
    assert {where: found[where] for where in lacking} == lacking
    assert "'s3://texts/held-out.jsonl' cannot be listed: ImportError" in found["evaluation.corpora.d.0"]
    assert "~/.cache/knowledge-fusion-engine/checkpoints cannot be made" in found["environment variable HOME"]
