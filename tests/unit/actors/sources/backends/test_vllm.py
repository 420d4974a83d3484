"""A source's type, quantisation and GPUs reach vLLM as the spec has them."""

import sys
from types import SimpleNamespace

import pytest

from actors.sources.backends import vllm as backend
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
    monkeypatch.setattr(backend, "keep_tensors", lambda: True)
    monkeypatch.setattr(backend.os, "environ", dict(backend.os.environ))
    return found


def start(**fields) -> None:
    SourceModel(SourceModelSpec(name="one", checkpoint=str(MODEL), probe="off", **fields), 8)


def test_all_of_it_arrives(arguments):
    start(dtype="bfloat16", quantization="fp8", tensor_parallel_size=2, num_gpus=1.0)
    assert (arguments["dtype"], arguments["quantization"], arguments["tensor_parallel_size"]) == ("bfloat16", "fp8", 2)
    assert arguments["distributed_executor_backend"] == "mp", "vLLM would ask Ray for GPUs that Ray Data has reserved"


def test_left_to_the_checkpoint_it_is_the_checkpoints(arguments):
    start()
    assert (arguments["dtype"], arguments["quantization"], arguments["tensor_parallel_size"]) == ("auto", None, 1)
    assert arguments["distributed_executor_backend"] is None
