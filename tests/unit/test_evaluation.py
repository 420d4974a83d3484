"""Bits per byte against a plain loop, over three tokenizers and three architectures with random weights."""

import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from engine.errors import RecordError
from engine.tokenization import PassageTokenizer
from pipelines import evaluation
from pipelines.evaluation import MEAN, best, bits_per_byte, columns
from tests.tiny_models import POSITIONS, tiny_checkpoint
from tests.tiny_tokenizers import tokenizer_folders

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
    tokenizer = PassageTokenizer.load(checkpoint)
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
    assert [PassageTokenizer.load(checkpoint).adds_bos for checkpoint in checkpoints] == [True, False, True]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_it_equals_a_plain_loop(checkpoints, index):
    scores = bits_per_byte(checkpoints[index], PASSAGES)
    assert scores == pytest.approx(
        {domain: slowly(checkpoints[index], PASSAGES[domain]) for domain in PASSAGES}, rel=1e-5
    )
    assert all(value > 1.0 for value in scores.values()), "random weights compress nothing"


@pytest.mark.parametrize("index", [0, 1, 2])
def test_padding_and_batches_do_not_change_it(checkpoints, index):
    alone = bits_per_byte(checkpoints[index], PASSAGES, batch_tokens=1)
    for batch_tokens in (64, 150, 4096):
        assert bits_per_byte(checkpoints[index], PASSAGES, batch_tokens) == pytest.approx(alone, abs=1e-6)
    turned = {domain: passages[::-1] for domain, passages in PASSAGES.items()}
    assert bits_per_byte(checkpoints[index], turned, 150) == pytest.approx(alone, abs=1e-6)


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary(checkpoints, tmp_path):
    """By hand: every token costs log2 V bits; n tokens after the first, over the bytes that they cover."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints[0])
    torch.nn.init.zeros_(model.lm_head.weight)
    tokenizer = PassageTokenizer.load(checkpoints[0])
    for path in Path(checkpoints[0]).glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model.save_pretrained(tmp_path)
    text = PASSAGES["prose"][0]
    expected = len(tokenizer.encode(text)[0]) * math.log2(model.config.vocab_size) / len(text.encode())
    assert bits_per_byte(str(tmp_path), {"prose": [text]})["prose"] == pytest.approx(expected, rel=1e-6)


def test_without_bos_the_first_token_and_its_bytes_are_left_out(checkpoints):
    text = "The quick brown fox"
    model = AutoModelForCausalLM.from_pretrained(checkpoints[1]).eval()
    ids, end_bytes = PassageTokenizer.load(checkpoints[1]).encode(text)
    with torch.no_grad():
        loss = model(torch.tensor(ids[None].tolist()), labels=torch.tensor(ids[None].tolist())).loss
    expected = float(loss) * (len(ids) - 1) / math.log(2) / (len(text) - int(end_bytes[0]))
    assert bits_per_byte(checkpoints[1], {"d": [text]})["d"] == pytest.approx(expected, rel=1e-5)


def test_the_end_of_a_document_is_not_scored(checkpoints):
    text = PASSAGES["prose"][0]
    scores = [
        bits_per_byte(checkpoints[0], {"d": passages})["d"] for passages in ([text], [(text, True)], [(text, False)])
    ]
    assert scores[0] == scores[1] == scores[2]


def test_a_domain_is_the_sum_of_its_passages_not_their_mean(checkpoints):
    """Lengths weigh: bits and bytes are added up before they are divided."""
    long, short = PASSAGES["prose"][0], PASSAGES["prose"][1]
    parts = {text: bits_per_byte(checkpoints[0], {"d": [text]})["d"] for text in (long, short)}
    sizes = {text: len(text.encode()) for text in parts}
    expected = sum(parts[text] * sizes[text] for text in parts) / sum(sizes.values())
    assert bits_per_byte(checkpoints[0], {"d": [long, short]})["d"] == pytest.approx(expected, abs=1e-6)


def test_a_passage_that_does_not_fit_is_named(checkpoints):
    with pytest.raises(RecordError, match=rf"passage 1 of 'long' \('x x.*takes at most {POSITIONS}"):
        bits_per_byte(checkpoints[0], {"long": ["short", "x " * 400]})


def test_a_domain_without_text_is_not_a_number(checkpoints):
    scores = bits_per_byte(checkpoints[1], {"empty": [], "blank": [""], "prose": PASSAGES["prose"]})
    assert math.isnan(scores["empty"])
    assert math.isnan(scores["blank"])
    assert scores["prose"] > 0


SCORES = {
    "before": {"docs": 2.5, "code": 1.0},
    "after": {"docs": 1.5, "code": math.nan},
    "other": {"docs": 2.0, "code": 1.5},
}


def test_the_mean_is_over_domains():
    assert columns(SCORES)[MEAN]["other"] == pytest.approx(1.75)
    assert best(columns(SCORES)["docs"]) == 1.5
    assert math.isnan(best({"only": math.nan}))


def test_the_table_marks_the_best():
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(evaluation.table(SCORES))
    text = console.export_text()
    assert all(word in text for word in ("docs", "code", "1.5000*", "1.0000*", "1.7500*", "before", "other"))


def test_importing_it_is_cheap():
    code = "import sys, pipelines.evaluation; print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
