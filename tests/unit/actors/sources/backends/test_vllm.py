"""A source's type, quantisation and GPUs reach vLLM as the spec has them; its tensors come back as it made them."""

import os
import sys
import threading
from collections import namedtuple
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors.sources.backends import vllm as backend
from actors.sources.backends import vllm_patches
from actors.sources.backends.vllm_patches import captured_tensors, keep_tensors, one_start_at_a_time
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


def test_a_model_is_downloaded_before_its_engine_waits_for_others(arguments, monkeypatch):
    """Under the lock a download would let all engines of the GPU wait for the network."""
    happened: list[str] = []

    @contextmanager
    def turn(share):
        happened.append("turn")
        yield

    monkeypatch.setattr(backend, "local_checkpoint", lambda checkpoint: happened.append("copy") or str(MODEL))
    monkeypatch.setattr(backend, "_download", lambda name: happened.append("download"))
    monkeypatch.setattr(backend, "one_start_at_a_time", turn)
    start(num_gpus=0.5)
    assert happened == ["copy", "download", "turn"]


#: The tensors of an engine as vLLM 0.25.1 names them, and as 0.32.0 does.
FIELDS = {
    "0.25.1": ("logprob_token_ids", "logprobs", "selected_token_ranks", "cu_num_generated_tokens"),
    "0.32.0": (
        *("logprob_token_ids", "logprobs", "selected_token_ranks"),
        *("cu_num_generated_tokens", "cu_num_generated_tokens_tensor"),
    ),
}


class Processor:
    """vLLM's ``LogprobsProcessor`` as far as the capture knows it: the same method and parameter in both versions."""

    prompt_logprobs = "public form"

    def _update_prompt_logprobs(self, prompt_logprobs_tensors):
        self.prompt_logprobs = "public form of these tensors"


def engine_with(monkeypatch, fields: tuple[str, ...], processor: type) -> type:
    """Put modules in vLLM's places; returns the class of the engine's tensors."""
    tensors = namedtuple("LogprobsTensors", fields, defaults=[None] * (len(fields) - 3))
    for name in ("vllm", "vllm.v1", "vllm.v1.engine"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.logprobs", SimpleNamespace(LogprobsProcessor=processor))
    monkeypatch.setitem(sys.modules, "vllm.v1.outputs", SimpleNamespace(LogprobsTensors=tensors))
    return tensors


@pytest.mark.parametrize("version", FIELDS)
def test_the_tensors_of_known_engines_are_kept(monkeypatch, version):
    processor = type("LogprobsProcessor", (Processor,), dict(vars(Processor)))
    tensors = engine_with(monkeypatch, FIELDS[version], processor)
    assert keep_tensors() and keep_tensors(), "a second engine of the process finds the method replaced"
    ids = torch.tensor([[5, 9, 5], [7, 7, 2]])  # int64, as the runner of GPUs makes them
    logprobs = torch.tensor([[-2.0, -1.0, -2.0], [-0.5, -0.5, -3.0]])
    request = processor()
    with captured_tensors(True):
        request._update_prompt_logprobs(tensors(ids, logprobs, torch.ones(2)))
    rows = backend._dense_rows(request.prompt_logprobs, 2)
    assert rows.topk_ids.dtype == np.int32 and rows.topk_ids.tolist() == [[9, 5], [7, 2]]
    assert rows.topk_logprobs.tolist() == [[-1.0, -2.0], [-0.5, -3.0]] and rows.token_logprobs.tolist() == [-2.0, -0.5]
    request._update_prompt_logprobs(tensors(ids, logprobs, torch.ones(2)))
    assert request.prompt_logprobs == "public form of these tensors"


@pytest.mark.parametrize("prompt_logprobs", [[], [None], None, "public form"])
def test_a_prompt_of_one_token_has_no_rows(prompt_logprobs):
    assert backend._dense_rows(prompt_logprobs, 4).topk_ids.shape == (0, 4)


class Renamed:
    """A later vLLM may keep its tensors elsewhere."""

    def _update_prompt_logprobs(self, output): ...


@pytest.mark.parametrize(
    ("fields", "processor"),
    [
        (FIELDS["0.32.0"], Renamed),
        (FIELDS["0.32.0"], object),
        (("logprobs", "logprob_token_ids", "selected_token_ranks"), Processor),
    ],
)
def test_an_unknown_engine_is_left_as_it_is(monkeypatch, fields, processor):
    engine_with(monkeypatch, fields, processor)
    before = dict(vars(processor))
    with pytest.warns(UserWarning, match="scoring takes the slower public form"):
        assert not keep_tensors()
    assert dict(vars(processor)) == before
