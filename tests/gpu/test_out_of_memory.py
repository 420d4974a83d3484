"""A source whose GPU is full says so; inside a run that ends its process (``tests/unit/actors/test_monitor.py``)."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import byte_level_with_bos

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import sys
import torch
from actors.sources.source_model import SourceModel
from engine.errors import SourceModelError
from engine.spec import SourceModelSpec
from tests.support.source_passages import passages

section = SourceModelSpec(name="one", checkpoint=sys.argv[1], dtype="bfloat16", num_gpus=0.1, probe="off",
                          max_context_tokens=600)
source, batch = SourceModel(section, 64), passages(["The cat sat on the mat. " * 10] * 8)
print("scored", len(source(batch)), flush=True)
hoard, size = [], 2**32
while size >= 2**16:
    try:
        hoard.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
try:
    source(batch)
except SourceModelError as error:
    print(error, flush=True)
"""


def test_a_source_without_memory_says_what_to_lower(tmp_path):
    byte_level_with_bos().save_pretrained(tmp_path / "tokenizer")
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama", tmp_path / "tokenizer", positions=1024)
    done = subprocess.run([sys.executable, "-c", PROGRAM, checkpoint], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "scored 8", done.stderr[-2000:]
    assert "out of memory" in lines[-1], done.stderr[-2000:]
    assert "lower its batched_tokens, kv_cache_bytes, max_context_tokens" in lines[-1]
