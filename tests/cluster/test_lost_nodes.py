"""Three Ray nodes on one machine, the sources on two of them and training on the third, come late and die."""

import secrets
from contextlib import suppress

import psutil
import pytest
import ray
from ray._raylet import AuthenticationTokenLoader
from ray.cluster_utils import Cluster

from pipelines.cluster.session import LOCAL, QUIET
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

    def add(self, pool: str):
        """Start a node with a label."""
        return self._cluster.add_node(num_cpus=CPUS, object_store_memory=STORE_BYTES, labels={"pool": pool})

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
