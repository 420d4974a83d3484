"""The model card: models, training, scores and revisions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from engine.history.result import EvaluationResult, RunResult
from engine.model_files.checkpoint import Checkpoint
from engine.reporting.model_card import CARD_FILE, revision, write_model_card
from engine.spec.loading import as_located_spec, load_spec
from tests.support.tiny_models import tiny_checkpoint

pytestmark = pytest.mark.timeout(60)

SPEC = "pipelines/specs/quickstart.yaml"
SCORES = EvaluationResult(bits_per_byte={"target before": {"docs": 3.0}, "fused target": {"docs": 2.5}})


def card(tmp_path: Path, *overrides: str) -> str:
    spec = as_located_spec(load_spec(SPEC, [f"run.output_dir={tmp_path}", *overrides]))
    (tmp_path / "export").mkdir()
    result = RunResult(
        name="quickstart",
        output_dir=str(tmp_path),
        export_dir=str(tmp_path / "export"),
        report_path="",
        spec_path="",
        steps=94,
        passages=434,
        tokens=92_545,
        bytes=240_000,
        wall_seconds=100.0,
        spilled_bytes=0,
        evaluation=SCORES,
    )
    place = write_model_card(spec, result)
    assert place.endswith(f"export/{CARD_FILE}")
    return (tmp_path / "export" / CARD_FILE).read_text()


def test_the_card_of_a_fused_model(tmp_path):
    text = card(tmp_path)
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == ["mistral-target", "llama-docs", "gpt2-code", "neox-mixed"]
    assert "mistral-target fused from llama-docs, gpt2-code, neox-mixed" in body
    assert "in 94 steps over 92,545 tokens" in body
    assert "| fused target | 2.5000 |" in body
    assert "| objective | 0.2 causal LM loss + 0.8 fusion loss (forward_kl) in passages" in body
    assert "| data | train.jsonl |" in body
    assert yaml.safe_load(body.partition("```yaml\n")[2].partition("```")[0])["fusion"]["top_k"] == 64


def test_the_card_of_continued_training_names_no_source(tmp_path):
    text = card(tmp_path, "source_models=[]", "objective.lm_loss_weight=1.0", "target_model.lora.rank=8")
    assert "Continued training of mistral-target" in text
    assert "fusion loss" not in text
    assert "adapters of rank 8, merged" in text


def test_a_revision_follows_the_weights(tmp_path):
    first, other = (tiny_checkpoint(tmp_path / str(seed), "llama", seed=seed) for seed in (0, 1))
    weights = (Path(first) / "model.safetensors").read_bytes()
    assert revision(Checkpoint(first)) == f"sha256 {hashlib.sha256(weights).hexdigest()}"
    assert revision(Checkpoint(first)) != revision(Checkpoint(other))
