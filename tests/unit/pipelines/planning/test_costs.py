"""Memory and work of the quickstart's models, against their weights."""

from pathlib import Path

import pytest
from safetensors import safe_open

from engine import load_spec
from engine.model_files.checkpoint import Checkpoint
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.costs import _enough, model_costs
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(60)

TEXTS = ["Return the number of items in a container.", "def main():\n    return 3\n"]


def stored_numbers(checkpoint: Path) -> int:
    with safe_open(checkpoint / "model.safetensors", "np") as file:
        return sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118  (no mapping)


@pytest.fixture(scope="module")
def costs() -> dict:
    spec = load_spec(ROOT / "pipelines/specs/quickstart.yaml", ["source_models.0.dtype=bfloat16"])
    return {cost.name: cost for cost in model_costs(spec, TEXTS)}


def test_parameters_are_those_of_the_checkpoints(costs):
    for name, folder in {"target": "mistral-target", "llama-docs": "llama-docs", "gpt2-code": "gpt2-code"}.items():
        assert costs[name].parameters == stored_numbers(ROOT / "pipelines/quickstart/models" / folder)


def test_work_is_two_for_a_weight_and_token_in_scoring_and_six_in_training(costs):
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    for name, folder, factor in (("target", "mistral-target", 6), ("gpt2-code", "gpt2-code", 2)):
        tokenizer = PassageTokenizer.load(Checkpoint(str(ROOT / "pipelines/quickstart/models" / folder)))
        tokens = sum(len(tokenizer.encode(text)[0]) for text in TEXTS)
        assert costs[name].work_per_byte == pytest.approx(factor * costs[name].matrix_weights * tokens / num_bytes)
    assert costs["target"].relative == 1.0
    source = costs["gpt2-code"]
    assert source.relative == pytest.approx(source.work_per_byte / costs["target"].work_per_byte)
    assert source.proposed - 1 < source.relative * 2 <= source.proposed


def test_replicas_are_enough_for_the_workers_and_not_one_more():
    assert [_enough(wanted) for wanted in (0.0, 0.3, 1 / 3 * 3, 0.1 * 3 / 0.3, 2.4, 2.7)] == [1, 1, 1, 1, 3, 3]


def test_memory_is_weights_cache_and_the_vocabulary_of_the_longest_prompt(costs):
    for name, size in (("llama-docs", 2), ("gpt2-code", 4)):
        cost = costs[name]
        assert cost.memory_bytes == cost.parameters * size + 67108864 + 511 * 1500 * 4
        assert cost.step_tokens == 2048
    assert costs["target"].memory_bytes == costs["target"].parameters * 16
