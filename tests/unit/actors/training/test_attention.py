"""Which attention is taken, and that one long row computes what several rows do."""

import sys
from types import SimpleNamespace

import pytest
import torch
import transformers.integrations.flash_attention as flash_integration
import transformers.modeling_flash_attention_utils as flash_utils
from torch.nn.functional import scaled_dot_product_attention

from actors.training import attention, target_model
from actors.training.attention import attention_implementation
from actors.training.target_model import _TargetWithLoss
from engine.errors import TrainingError
from engine.spec import ObjectiveSpec, TrainingSpec
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.timeout(60)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def flash_attention(monkeypatch):
    """As if the package were installed."""
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)


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


class FlashAttentionInPlainCode:
    """The module ``flash_attn`` with its function for passages of various lengths; keeps the bounds it was given."""

    def __init__(self):
        self.bounds: list[list[int]] = []
        self.flash_attn_with_kvcache = None
        self.bert_padding = SimpleNamespace(pad_input=None, unpad_input=None)

    def flash_attn_func(self, *_, **__):
        raise AssertionError("passages would see one another")

    def flash_attn_varlen_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes=None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table=None,
    ) -> torch.Tensor:
        """Tensors [places, heads, width]; each passage sees itself alone."""
        assert causal and cu_seqlens_q is cu_seqlens_k and cu_seqlens_q.dtype == torch.int32
        assert type(max_seqlen_q) is int and max_seqlen_q == max_seqlen_k >= cu_seqlens_q.diff().max()
        self.bounds.append(cu_seqlens_q.tolist())
        parts = [
            scaled_dot_product_attention(*passage, is_causal=True, scale=softmax_scale, enable_gqa=True).transpose(0, 1)
            for passage in zip(
                *(tensor.transpose(0, 1).split(cu_seqlens_q.diff().tolist(), dim=1) for tensor in (q, k, v)),
                strict=True,
            )
        ]
        return torch.cat(parts)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox"])
def test_flash_attention_gets_the_bounds_of_every_passage(monkeypatch, architecture):
    """Two blocks: passages of 10 and 6 tokens; of 9 and 4, and three places of padding."""
    package = FlashAttentionInPlainCode()
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", package.bert_padding)
    monkeypatch.setattr(flash_utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    monkeypatch.setattr(flash_integration, "get_target_dtype", lambda query, module: None)  # float32 stays float32
    torch.manual_seed(0)
    module = _TargetWithLoss(tiny_model(architecture, 400).eval(), ObjectiveSpec())
    tokens = torch.randint(0, 400, (2, 16))
    positions = torch.tensor([[*range(10), *range(6)], [*range(9), *range(4), 0, 0, 0]])
    with torch.no_grad():
        masked = module.hidden_states(tokens, positions)
        module.model.config._attn_implementation = "flash_attention_2"
        torch.testing.assert_close(module.hidden_states(tokens, positions), masked)
    assert len(package.bounds) == module.model.config.num_hidden_layers
    assert all(bounds == [0, 10, 16, 25, 29, 30, 31, 32] for bounds in package.bounds)
