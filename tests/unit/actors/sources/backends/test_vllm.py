"""What a spec says of a source's type, quantisation and GPUs is what vLLM is told."""

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
def told(monkeypatch) -> dict:
    """The arguments of the engine that a source starts; no engine is started."""
    arguments: dict = {}

    def engine(**given):
        arguments.update(given)
        return SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 1500)))

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine, SamplingParams=lambda **_: None))
    monkeypatch.setattr(backend, "install_dense_capture", lambda: True)
    monkeypatch.setattr(backend.os, "environ", dict(backend.os.environ))
    return arguments


def start(**fields) -> None:
    SourceModel(SourceModelSpec(name="one", checkpoint=str(MODEL), probe="off", **fields), 8)


def test_all_of_it_arrives(told):
    start(dtype="bfloat16", quantization="fp8", tensor_parallel_size=2, num_gpus=1.0)
    assert (told["dtype"], told["quantization"], told["tensor_parallel_size"]) == ("bfloat16", "fp8", 2)
    assert told["distributed_executor_backend"] == "mp", "vLLM would ask Ray for GPUs that Ray Data has reserved"


def test_left_to_the_checkpoint_it_is_the_checkpoints(told):
    start()
    assert (told["dtype"], told["quantization"], told["tensor_parallel_size"]) == ("auto", None, 1)
    assert told["distributed_executor_backend"] is None
