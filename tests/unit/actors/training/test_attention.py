"""Which attention is taken, and that one long row computes what several rows do."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from actors.training import target_model
from actors.training.attention import attention_implementation
from actors.training.target_model import _TargetWithLoss
from engine.errors import TrainingError
from engine.spec import TrainingSpec
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.timeout(60)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def flash_attention(monkeypatch):
    """As if the package were installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace() if name == "flash_attn" else found(name)
    )


@pytest.mark.usefixtures("flash_attention")
@pytest.mark.parametrize(
    ("device", "precision", "taken"),
    [(GPU, "bfloat16", "flash_attention_2"), (GPU, "float32", "sdpa"), (CPU, "bfloat16", "sdpa")],
)
def test_auto_takes_flash_attention_where_it_can_run(device, precision, taken):
    assert attention_implementation(TrainingSpec(precision=precision), device) == taken


def test_auto_does_without_the_package():
    assert attention_implementation(TrainingSpec(precision="bfloat16"), GPU) == "sdpa"


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_one_that_cannot_run_is_refused(attention):
    with pytest.raises(TrainingError, match=f"training.attention is {attention}, which needs .*; choose sdpa, or auto"):
        attention_implementation(TrainingSpec(attention=attention), CPU)


def test_blocks_in_one_long_row_have_the_states_of_blocks_in_rows(monkeypatch):
    torch.manual_seed(0)
    module = _TargetWithLoss(tiny_model("llama", 400).eval(), "forward_kl")
    tokens = torch.randint(0, 400, (3, 16))
    positions = torch.cat([torch.arange(10), torch.arange(6)]).expand(3, -1)
    with torch.no_grad():
        in_rows = module.hidden_states(tokens, positions)
        monkeypatch.setattr(target_model, "in_one_row", lambda implementation: True)
        torch.testing.assert_close(module.hidden_states(tokens, positions), in_rows)
