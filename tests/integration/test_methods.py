"""Every way of aligning, mapping and fusing runs from a spec through the whole engine."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import run

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("shared_ray")]

#: A target that puts BOS before a text because the spec says so.
GPT2 = ["target_model.checkpoint=pipelines/quickstart/models/gpt2-code", "target_model.bos=always"]

METHODS = {
    "FuseChat's": (["preset=fusechat_ms", *GPT2], 0.3),
    "FuseLLM's": (
        ["preset=fusellm_soft", "fusion.rule=avg_ce", "training.max_steps=50", "training.max_tokens=1100"],
        0.3,
    ),
    "by token": (
        [
            *("fusion.rule=min_ce", "fusion.granularity=token", "fusion.top_k=32"),
            "alignment.tokens=byte_offset",
            *("corpus.overlap_bytes=64", "source_models.0.backend=vllm", "source_models.0.most_replicas=2"),
            *("target_model.lora.rank=4", "training.activation_checkpointing=true"),
        ],
        0.6,
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_two_steps(tmp_path, method):
    overrides, least_coverage = METHODS[method]
    result = run(engine_spec(tmp_path, overrides))
    assert (result.steps, result.stopped_by) == (2, "tokens" if method == "FuseLLM's" else "steps")
    assert math.isfinite(result.metrics.loss)
    assert result.metrics.fusion_loss > 0
    for source in result.sources:
        assert least_coverage < source.coverage <= 1.0
        assert source.left_out <= 2, "a passage of one token cannot be compared"
        assert source.cross_entropy > 0
    if method == "FuseLLM's":
        assert all(math.isnan(source.win_rate) for source in result.sources)
        assert all(source.cross_entropy > 1.5 for source in result.sources), "nats per own token, not per byte"
    else:
        assert sum(source.win_rate for source in result.sources) == pytest.approx(1.0, abs=1e-4)
    # Where nothing is found the dynamic programming teaches the label, so that every row is fused.
    rows = result.metrics.tokens - result.metrics.passages
    share = result.metrics.fused_rows / rows
    assert (share == 1.0) == (method != "by token")
    tokenizer = AutoTokenizer.from_pretrained(result.export_dir)
    assert tokenizer("def f(x):")["input_ids"][0] == tokenizer.bos_token_id, "as the model was trained"


def test_the_target_is_fused_with_each_source_alone_and_the_results_are_merged(tmp_path):
    spec = engine_spec(tmp_path, ["pairwise={method: linear}", "training.max_steps=1", "objective.lm_loss_weight=0.5"])
    spec = spec.model_copy(update={"source_models": spec.source_models[:2]})
    result = run(spec)
    assert [source.name for source in result.sources] == [source.name for source in spec.source_models]
    assert result.steps == 2, "one of each pair"
    folders = [tmp_path / "out" / "pairs" / source.name / "export" for source in spec.source_models]
    first, second, merged = (
        AutoModelForCausalLM.from_pretrained(place).get_output_embeddings().weight
        for place in (*folders, result.export_dir)
    )
    assert not torch.equal(first, second)
    torch.testing.assert_close(merged, (first + second) / 2, rtol=1e-5, atol=1e-6)


def engine_spec(tmp_path, overrides: list[str]):
    from engine import load_spec

    return load_spec(
        "pipelines/specs/quickstart.yaml",
        [
            f"run.output_dir={tmp_path / 'out'}",
            f"alignment.cache_dir={tmp_path / 'tables'}",
            "evaluation.corpora={}",
            "training.num_workers=1",
            "training.max_steps=2",
            "fusion={}",
            *(f"source_models.{source}.backend=transformers" for source in range(3)),
            *overrides,
        ],
    )
