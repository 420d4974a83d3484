"""Bits per byte against a plain loop, over three tokenizers and three architectures with random weights."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from engine.model_files.checkpoint import Checkpoint
from engine.text.tokenization import PassageTokenizer
from pipelines.evaluation.bits_per_byte import (
    ScoredText,
    _load,
    bits_per_byte,
    over_common_bytes,
    score_texts,
    windows,
)
from tests.support.paths import ROOT
from tests.support.tiny_models import POSITIONS, tiny_checkpoint
from tests.support.tiny_tokenizers import tokenizer_folders

pytestmark = pytest.mark.timeout(120)

PASSAGES = {
    "prose": [
        "The quick brown fox jumps over the lazy dog, and the cat sat on the mat.",
        "Zwölf Boxkämpfer jagen Viktor.",
        " a",
        "emoji 🙂 and 日本語",
    ],
    "code": ["def main():\n    for index in range(10):\n        print(index)\n", "return 1\n"],
}


LONG = " ".join(f"{number} is followed by {number + 1}," for number in range(20))


def score(checkpoint, texts_by_domain, window_tokens=POSITIONS, **how):
    """Domain to bits per byte."""
    scored = score_texts(Checkpoint(checkpoint), texts_by_domain, window_tokens, **how)
    return {domain: bits_per_byte(texts) for domain, texts in scored.items()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three models, one for each kind of tokenizer; the second one has no BOS habit."""
    folder = tmp_path_factory.mktemp("evaluation")
    architectures = ("llama", "gpt2", "gpt-neox")
    return [
        tiny_checkpoint(folder / architecture, architecture, tokenizer, seed=index)
        for index, (architecture, tokenizer) in enumerate(
            zip(architectures, tokenizer_folders(folder / "tokenizers"), strict=True)
        )
    ]


def slowly(checkpoint, passages):
    """Token by token: every prefix goes through the model alone, in float64."""
    tokenizer = PassageTokenizer.load(Checkpoint(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()
    bits, num_bytes = 0.0, 0
    for text in passages:
        ids, end_bytes = tokenizer.encode(text)
        prefix = [tokenizer.bos_id] if tokenizer.adds_bos else []
        before = 0
        for token, end in zip(ids.tolist(), end_bytes.tolist(), strict=True):
            if prefix:
                with torch.no_grad():
                    row = model(torch.tensor([prefix])).logits[0, -1]
                bits -= float(row.log_softmax(0)[token]) / math.log(2)
                num_bytes += end - before
            prefix, before = [*prefix, token], end
    return bits / num_bytes


def test_the_three_checkpoints_differ_in_what_matters(checkpoints):
    assert [PassageTokenizer.load(Checkpoint(checkpoint)).adds_bos for checkpoint in checkpoints] == [True, False, True]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_it_equals_a_plain_loop(checkpoints, index):
    scores = score(checkpoints[index], PASSAGES)
    assert scores == pytest.approx(
        {domain: slowly(checkpoints[index], PASSAGES[domain]) for domain in PASSAGES}, rel=1e-5
    )
    assert all(value > 1.0 for value in scores.values()), "random weights compress nothing"


@pytest.mark.parametrize("index", [0, 1, 2])
def test_padding_and_batches_do_not_change_it(checkpoints, index):
    alone = score(checkpoints[index], PASSAGES, batch_tokens=1)
    for batch_tokens in (64, 150, 4096):
        assert score(checkpoints[index], PASSAGES, batch_tokens=batch_tokens) == pytest.approx(alone, abs=1e-6)
    turned = {domain: passages[::-1] for domain, passages in PASSAGES.items()}
    assert score(checkpoints[index], turned, batch_tokens=150) == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("meta", torch.bfloat16)])
def test_a_gpu_holds_a_model_in_half_the_bytes(checkpoints, device, dtype):
    """The device without memory stands for a GPU."""
    assert _load(Checkpoint(checkpoints[0]), device).dtype == dtype


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary(checkpoints, tmp_path):
    """By hand: every token costs log2 V bits; n tokens after the first, over the bytes that they cover."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints[0])
    torch.nn.init.zeros_(model.lm_head.weight)
    tokenizer = PassageTokenizer.load(Checkpoint(checkpoints[0]))
    for path in Path(checkpoints[0]).glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model.save_pretrained(tmp_path)
    text = PASSAGES["prose"][0]
    expected = len(tokenizer.encode(text)[0]) * math.log2(model.config.vocab_size) / len(text.encode())
    assert score(str(tmp_path), {"prose": [text]})["prose"] == pytest.approx(expected, rel=1e-6)


def test_without_bos_the_first_token_and_its_bytes_are_left_out(checkpoints):
    text = "The quick brown fox"
    model = AutoModelForCausalLM.from_pretrained(checkpoints[1]).eval()
    ids, end_bytes = PassageTokenizer.load(Checkpoint(checkpoints[1])).encode(text)
    with torch.no_grad():
        loss = model(torch.tensor(ids[None].tolist()), labels=torch.tensor(ids[None].tolist())).loss
    expected = float(loss) * (len(ids) - 1) / math.log(2) / (len(text) - int(end_bytes[0]))
    assert score(checkpoints[1], {"d": [text]})["d"] == pytest.approx(expected, rel=1e-5)


def test_a_domain_is_the_sum_of_its_passages_not_their_mean(checkpoints):
    """Lengths weigh: bits and bytes are added up before they are divided."""
    long, short = PASSAGES["prose"][0], PASSAGES["prose"][1]
    parts = {text: score(checkpoints[0], {"d": [text]})["d"] for text in (long, short)}
    sizes = {text: len(text.encode()) for text in parts}
    expected = sum(parts[text] * sizes[text] for text in parts) / sum(sizes.values())
    assert score(checkpoints[0], {"d": [long, short]})["d"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("stride_tokens", [0, 1, 7, 40])
def test_windows_of_a_long_text_equal_a_plain_loop(checkpoints, index, stride_tokens):
    """By hand: every token is looked up in a window of its own making, alone in its batch."""
    window_tokens = 40
    tokenizer = PassageTokenizer.load(Checkpoint(checkpoints[index]))
    model = AutoModelForCausalLM.from_pretrained(checkpoints[index], dtype=torch.float64).eval()
    ids = tokenizer.encode(LONG)[0].tolist()
    bos = [tokenizer.bos_id] if tokenizer.adds_bos else []
    room = window_tokens - len(bos)
    step = min(stride_tokens or room, room if bos else room - 1)
    expected, end = [], min(room, len(ids))
    for place in range(1 - len(bos), len(ids)):
        if place == end:
            end = min(end + step, len(ids))
        prefix = bos + ids[max(0, end - room) : place]
        with torch.no_grad():
            expected.append(-float(model(torch.tensor([prefix])).logits[0, -1].log_softmax(0)[ids[place]]))
    (found,) = score_texts(
        Checkpoint(checkpoints[index]), {"d": [LONG]}, window_tokens, stride_tokens, batch_tokens=100
    )["d"]
    assert found.nats == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert found.boundaries[-1] == len(LONG.encode())


@given(
    num_tokens=st.integers(0, 60),
    window_tokens=st.integers(3, 20),
    stride_tokens=st.integers(0, 25),
    has_bos=st.booleans(),
)
def test_every_token_is_scored_once_with_enough_context(num_tokens, window_tokens, stride_tokens, has_bos):
    found = list(windows(num_tokens, window_tokens, stride_tokens, has_bos))
    scored = [place for window in found for place in range(window.first, window.end)]
    assert scored == list(range(0 if has_bos else 1, num_tokens))
    for window in found:
        assert 0 <= window.begin <= window.first < window.end
        assert window.end - window.begin + has_bos <= window_tokens
        assert has_bos or window.first > window.begin, "something stands before the first token to score"
        if stride_tokens and window is not found[0]:
            assert window.first - window.begin + has_bos >= window_tokens - stride_tokens


def test_a_text_that_fits_is_the_same_under_every_stride(checkpoints):
    scores = [score(checkpoints[0], PASSAGES, stride_tokens=stride) for stride in (0, 1, 50)]
    assert scores[0] == scores[1] == scores[2]


def test_a_domain_without_text_is_not_a_number(checkpoints):
    scores = score(checkpoints[1], {"empty": [], "without text": [""], "prose": PASSAGES["prose"]})
    assert math.isnan(scores["empty"])
    assert math.isnan(scores["without text"])
    assert scores["prose"] > 0


@st.composite
def scores_of_models(draw):
    """Label to scores of two texts by one to three models, with BOS or without; some tokens have no bytes."""

    def text(num_bytes):
        inner = sorted(draw(st.lists(st.integers(0, num_bytes), max_size=6)))
        first = 0 if draw(st.booleans()) else draw(st.integers(0, num_bytes))
        boundaries = [first, *(end for end in inner if end >= first), num_bytes]
        nats = draw(st.lists(st.floats(0, 20), min_size=len(boundaries) - 1, max_size=len(boundaries) - 1))
        return ScoredText(np.array(boundaries), np.array(nats))

    return {label: {"d": [text(5), text(9)]} for label in "abc"[: draw(st.integers(1, 3))]}


def nats_from(text, begin):
    """By bytes: each has its share of what its token cost, those of no bytes before it included."""
    total, waiting = 0.0, 0.0
    for left, right, nats in zip(text.boundaries[:-1], text.boundaries[1:], text.nats, strict=True):
        waiting += nats
        if right > left:
            total += sum(waiting / (right - left) for byte in range(left, right) if byte >= begin)
            waiting = 0.0
    return total + (waiting if begin < text.boundaries[-1] else 0.0)


@given(scores_of_models())
def test_models_are_compared_over_the_bytes_that_all_of_them_score(scores):
    found = over_common_bytes(scores)
    assert list(found) == list(scores)
    for place in range(2):
        begin = max(model["d"][place].boundaries[0] for model in scores.values())
        for label, model in scores.items():
            text, before = found[label]["d"][place], model["d"][place]
            assert (text.boundaries[0], text.boundaries[-1]) == (begin, before.boundaries[-1])
            assert len(text.boundaries) == len(text.nats) + 1
            assert (np.diff(text.boundaries) >= 0).all()
            if begin == before.boundaries[0]:
                assert text is before, "models that begin alike keep their figures"
            else:
                assert text.nats.sum() == pytest.approx(nats_from(before, begin), abs=1e-9)


def test_a_model_without_bos_is_compared_without_the_first_token_of_the_others():
    """By hand: 10 bytes; the model without BOS begins after 2, in the middle of the other's first token of 4 bytes."""
    with_bos = ScoredText(np.array([0, 4, 10]), np.array([8.0, 3.0]) * math.log(2))
    without = ScoredText(np.array([2, 10]), np.array([8.0]) * math.log(2))
    assert bits_per_byte([with_bos]) == pytest.approx(1.1), "alone it seems to be the worse one"
    found = over_common_bytes({"with BOS": {"d": [with_bos]}, "without": {"d": [without]}})
    assert bits_per_byte(found["with BOS"]["d"]) == pytest.approx((4.0 + 3.0) / 8)
    assert bits_per_byte(found["without"]["d"]) == pytest.approx(1.0)
    assert over_common_bytes({}) == {}


def test_importing_it_is_cheap():
    heavy = "sorted({'torch', 'transformers', 'ray'} & set(sys.modules))"
    code = f"import sys, pipelines.evaluation.bits_per_byte; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
