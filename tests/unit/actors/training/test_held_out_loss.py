"""Held-out loss of the sharded target in blocks: the number of the evaluation that loads the exported model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.training.held_out_loss import HeldOutBlocks, bits_per_byte
from actors.training.target_model import TargetModel
from engine.errors import RecordError
from engine.method.losses import NO_LABEL
from engine.model_files.checkpoint import Checkpoint
from engine.spec import ObjectiveSpec, TrainingSpec
from engine.spec.loading import parse
from pipelines.evaluation import bits_per_byte as evaluation
from pipelines.evaluation.held_out_blocks import held_out_blocks
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import tokenizer_folders
from tests.support.training_blocks import training_blocks

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("process_group")]

LENGTH = 32
TEXTS = {
    "prose": [
        "The quick brown fox jumps over the lazy dog.",
        "Zwölf Boxkämpfer jagen Viktor.",
        "a",
        "emoji 🙂 and 日本語",
    ],
    "code": ["def main():\n    for index in range(10):\n        print(index)\n" * 3, "return 1\n"],
}


@pytest.fixture(scope="module", params=range(2), ids=["with BOS", "without BOS"])
def spec(request, tmp_path_factory):
    """Of a tiny model, and two held-out domains."""
    folder = tmp_path_factory.mktemp("held-out")
    tokenizer = tokenizer_folders(folder / "tokenizers")[request.param]
    for domain, texts in TEXTS.items():
        (folder / f"{domain}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return parse(
        {
            "run": {"name": "trial", "output_dir": str(folder / "out")},
            "corpus": {"paths": [str(folder / "prose.jsonl")]},
            "target_model": {"checkpoint": tiny_checkpoint(folder / "model", "llama", tokenizer)},
            "objective": {"lm_loss_weight": 1.0},
            "training": {"block_length": LENGTH},
            "evaluation": {"corpora": {domain: [str(folder / f"{domain}.jsonl")] for domain in TEXTS}},
        }
    )


def target(spec) -> TargetModel:
    training = TrainingSpec(block_length=LENGTH, global_batch_blocks=4)
    return TargetModel(
        spec.target_model, training, ObjectiveSpec(lm_loss_weight=0.5, full_gain=0.0), 3, torch.device("cpu")
    )


@pytest.mark.parametrize(("micro_batch_blocks", "stride_tokens"), [(1, 0), (3, 7)])
def test_it_is_the_number_of_the_evaluation(spec, micro_batch_blocks, stride_tokens):
    checkpoint = spec.target_model.checkpoint
    strided = spec.evaluation.model_copy(update={"stride_tokens": stride_tokens})
    scored = evaluation.score_texts(Checkpoint(checkpoint), TEXTS, LENGTH, stride_tokens)
    expected = {domain: evaluation.bits_per_byte(texts) for domain, texts in scored.items()}
    blocks = held_out_blocks(spec.model_copy(update={"evaluation": strided}))
    found = bits_per_byte(target(spec), blocks, micro_batch_blocks)
    assert found == pytest.approx(expected, rel=1e-6)


def test_padding_may_be_longer_than_the_models_context(spec, tmp_path):
    short = tiny_checkpoint(tmp_path, "gpt2", Path(spec.target_model.checkpoint), positions=12)
    spec = spec.model_copy(update={"target_model": spec.target_model.model_copy(update={"checkpoint": short})})
    blocks = held_out_blocks(spec)
    scored = evaluation.score_texts(Checkpoint(short), TEXTS, LENGTH, 0)
    expected = {domain: evaluation.bits_per_byte(texts) for domain, texts in scored.items()}
    assert bits_per_byte(target(spec), blocks, 2) == pytest.approx(expected, rel=1e-6)
    assert max(int(part.position_ids.max()) for part in blocks.values()) < 12


def test_every_byte_is_scored_once(spec):
    blocks = held_out_blocks(spec)
    for domain, texts in TEXTS.items():
        num_bytes = sum(len(text.encode()) for text in texts)
        assert 0.7 * num_bytes < blocks[domain].scored_bytes <= num_bytes, "all but first tokens, where there is no BOS"
        assert blocks[domain].input_ids.shape == blocks[domain].labels.shape == blocks[domain].position_ids.shape
        assert (blocks[domain].labels != NO_LABEL).any(axis=1).all(), "no block for nothing"


@pytest.mark.parametrize("spec", [0], indirect=True, ids=["with BOS"])
def test_it_changes_nothing_in_training(spec):
    disturbed, undisturbed, table = target(spec), target(spec), training_blocks(seed=1)
    losses = []
    for model in (disturbed, undisturbed):
        for _ in range(3):
            if model is disturbed:
                bits_per_byte(model, held_out_blocks(spec), 2)
            losses.append(tuple(model.train_step(table)))
    assert losses[:3] == losses[3:]
    assert disturbed.model.training


def test_a_domain_without_a_byte_has_no_number(spec):
    nothing = np.zeros((0, LENGTH), np.int32)
    domains = {"nothing": HeldOutBlocks(nothing, nothing, nothing, 0)} | held_out_blocks(spec)
    found = bits_per_byte(target(spec), domains, 2)
    assert math.isnan(found["nothing"])
    assert math.isfinite(found["code"])


def test_a_bad_row_is_named(spec, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": ""}')
    corpora = {"bad": (str(tmp_path / "bad.jsonl"),)}
    wrong = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"corpora": corpora})})
    with pytest.raises(RecordError, match=r"bad\.jsonl, row 1: the document is empty"):
        held_out_blocks(wrong)
