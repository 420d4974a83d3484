"""A source whose GPU is full ends its process, so that Ray replaces it; see ``tests/chaos`` for what comes then."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_checkpoint

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import sys
import numpy as np
import torch
from actors.sources.backends.vllm import VllmBackend
from engine.spec import SourceModelSpec

section = SourceModelSpec(name="one", checkpoint=sys.argv[1], dtype="bfloat16", num_gpus=0.1, kv_cache_bytes=2**27)
backend = VllmBackend(section, 64, 600)
prompts = [np.arange(300, dtype=np.int32)] * 8
print("rows", len(backend.score(prompts)), flush=True)
hoard, size = [], 2**32
while size >= 2**16:
    try:
        hoard.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
print("full", flush=True)
backend.score(prompts)
print("scored without memory", flush=True)
"""


def test_a_source_without_memory_ends_its_process(tmp_path):
    tiny_checkpoint(tmp_path, "llama", positions=1024)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["rows 8", "full"], done.stderr[-2000:]
    assert done.returncode == 1 and "out of memory" in done.stderr
