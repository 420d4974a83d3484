"""What a local Ray is told by the environment: Ray says nothing about a name that it does not know or heed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from pipelines.cluster.session import LOCAL, QUIET, TRAIN_TAB, UNSEEN

pytestmark = pytest.mark.timeout(60)

LOG_MONITOR_LOOKS = """
import time
from types import SimpleNamespace
from ray._private.log_monitor import LogMonitor
print(LogMonitor.should_update_filenames(SimpleNamespace(log_filenames=set()), time.time() - 5))
"""


def test_this_ray_reads_every_setting():
    folder = Path(ray.__file__).parent
    sources = [path for part in ("_private", "dashboard", "data", "train") for path in (folder / part).rglob("*.py")]
    texts = [path.read_bytes() for path in (folder / "core/src/ray/raylet/raylet", *sources)]
    settings = {*QUIET, *LOCAL, *UNSEEN, TRAIN_TAB} - {"TOKENIZERS_PARALLELISM"}  # of another library
    assert not [name for name in settings if not any(name.encode() in text for text in texts)]


def test_log_files_are_looked_for_every_ten_seconds_and_not_ten_times_a_second():
    def looks_after_five_seconds(settings: dict[str, str]) -> str:
        script = [sys.executable, "-c", LOG_MONITOR_LOOKS]
        environment = {**os.environ, **settings}
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True, timeout=50)
        return done.stdout.strip()

    assert looks_after_five_seconds(LOCAL) == "False"
    interval = {"LOG_NAME_UPDATE_INTERVAL_S": LOCAL["LOG_NAME_UPDATE_INTERVAL_S"]}
    assert looks_after_five_seconds(interval) == "True", "the interval alone is not heeded"
