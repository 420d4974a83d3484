"""A whole run on one GPU: three sources and the target share it, one replica is killed, the export loads again."""

import math
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.interrupted_runs import InterruptedRun
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(400)

MODELS = "pipelines/quickstart/models"
SOURCES = ", ".join(
    f"{{name: {name}, checkpoint: {MODELS}/{name}, dtype: bfloat16, num_gpus: 0.2, kv_cache_bytes: 134217728}}"
    for name in ("llama-docs", "gpt2-code", "neox-mixed")
)


def test_three_sources_and_a_target_share_a_gpu(tmp_path):
    overrides = ("training.num_gpus_per_worker=0.4", "training.precision=bfloat16", f"source_models=[{SOURCES}]")
    with InterruptedRun(tmp_path, *overrides).start() as run:
        replica = run.wait_for(lambda: run.processes("SourceModelStage"))[0]
        time.sleep(3.0)  # it loads its engine now; later it may have scored everything
        replica.kill()
        assert run.wait() == 0, run.log
    run.check_exactly_once()
    history = run.state["history"]
    assert all(math.isfinite(record["loss"]) and record["fused_rows"] for record in history)
    assert history[-1]["loss"] < history[0]["loss"]
    assert "1 replaced" in run.report
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (ROOT / MODELS / "mistral-target", tmp_path / "out" / "export")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
