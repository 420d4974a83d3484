"""A source's type, quantisation and GPUs reach vLLM as the spec has them."""

import os
import sys
import threading
from types import SimpleNamespace

import pytest

from actors.sources.backends import vllm as backend
from actors.sources.backends import vllm_patches
from actors.sources.backends.vllm_patches import one_start_at_a_time
from actors.sources.source_model import SourceModel
from engine.spec import SourceModelSpec
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(60)

MODEL = ROOT / "pipelines/quickstart/models/llama-docs"


@pytest.fixture
def arguments(monkeypatch) -> dict:
    """The arguments of the engine that a source starts; no engine is started."""
    found: dict = {}

    def engine(**given):
        found.update(given)
        return SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 1500)))

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine, SamplingParams=lambda **_: None))
    card = SimpleNamespace(current_platform=SimpleNamespace(get_device_total_memory=lambda: 80 * 10**9))
    monkeypatch.setitem(sys.modules, "vllm.platforms", card)
    monkeypatch.setattr(backend, "keep_tensors", lambda: True)
    monkeypatch.setattr(backend.os, "environ", dict(backend.os.environ))
    return found


def start(**fields) -> None:
    SourceModel(SourceModelSpec(name="one", checkpoint=str(MODEL), probe="off", **fields), 8)


def test_all_of_it_arrives(arguments):
    start(dtype="bfloat16", quantization="fp8", tensor_parallel_size=2, num_gpus=1.0)
    assert (arguments["dtype"], arguments["quantization"], arguments["tensor_parallel_size"]) == ("bfloat16", "fp8", 2)
    assert arguments["max_num_batched_tokens"] == 16_384, "what a whole GPU of 80 GB holds"
    assert arguments["distributed_executor_backend"] == "mp", "vLLM would ask Ray for GPUs that Ray Data has reserved"


def test_left_to_the_checkpoint_it_is_the_checkpoints(arguments):
    start()
    assert (arguments["dtype"], arguments["quantization"], arguments["tensor_parallel_size"]) == ("auto", None, 1)
    assert arguments["max_num_batched_tokens"] == 2048
    assert arguments["distributed_executor_backend"] is None


def test_the_step_of_the_spec_is_the_engines(arguments):
    start(batched_tokens=300, num_gpus=0.1)
    assert arguments["max_num_batched_tokens"] == 300


def test_engines_wait_for_those_on_the_same_shared_gpu_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_patches.tempfile, "tempdir", str(tmp_path))

    def starts_meanwhile(gpu: str, share: float) -> bool:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
        started = threading.Event()

        def start():
            with one_start_at_a_time(share):
                started.set()

        threading.Thread(target=start, daemon=True).start()
        return started.wait(0.5)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    with one_start_at_a_time(0.5):
        assert starts_meanwhile("GPU-2", 0.5)
        assert starts_meanwhile("GPU-1", 1.0), "a whole GPU is shared with no other engine"
        assert not starts_meanwhile("GPU-1", 0.5)
    assert starts_meanwhile("GPU-1", 0.5)
    assert all(name.startswith(f"knowledge-fusion-engine-{os.getuid()}-gpu-GPU-") for name in os.listdir(tmp_path))
