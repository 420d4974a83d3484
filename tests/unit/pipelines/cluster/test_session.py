"""The settings of a local Ray: Ray ignores a name that it does not know without a message."""

from pathlib import Path

import pytest
import ray

from pipelines.cluster.session import LOCAL, QUIET, TRAIN_TAB

pytestmark = pytest.mark.timeout(60)


def test_this_ray_reads_every_setting():
    folder = Path(ray.__file__).parent
    sources = [path for part in ("_private", "dashboard", "data", "train") for path in (folder / part).rglob("*.py")]
    texts = [path.read_bytes() for path in (folder / "core/src/ray/raylet/raylet", *sources)]
    settings = {*QUIET, *LOCAL, TRAIN_TAB} - {"TOKENIZERS_PARALLELISM"}  # of another library
    assert not [name for name in settings if not any(name.encode() in text for text in texts)]
