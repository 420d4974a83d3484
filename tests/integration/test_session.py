"""Starting Ray for a run, in a process that has used Ray before."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(100)

SCRIPT = """
import ray
from pipelines.cluster.needs import Need
from pipelines.cluster.session import ray_session
from engine.spec import FusionSpec

ray.init(address="local", num_cpus=1, object_store_memory=2**27, include_dashboard=False)
ray.shutdown()
spec = FusionSpec.model_validate({
    "run": {"name": "second", "output_dir": "unused"},
    "corpus": {"paths": ["unused"]},
    "target_model": {"checkpoint": "unused"},
    "cluster": {"object_store_bytes": 2**27},
})
with ray_session(spec, [Need("test", "task", cpus=2.0)]):
    print("seen:", ray.get(ray.remote(lambda: 41 + 1).remote()))
"""


def test_a_run_starts_after_another_ray_in_the_same_process(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # the first Ray writes its token there
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=90)
    assert "seen: 42" in done.stdout, done.stderr[-2000:]
