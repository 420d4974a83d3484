"""Faults that give plausible numbers, put in on purpose: each is refused, and sound models pass."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoModelForCausalLM

from actors.sources.backends import PromptRows
from actors.sources.probe import BOS_MARGIN, FEWEST_ROWS, Probe, check_distributions, probe, settled_bos
from actors.sources.source_model import SourceModel
from engine.errors import SourceModelError
from engine.records import rows_of as rows_of_column
from engine.spec import SourceModelSpec
from engine.text.tokenization import PassageTokenizer
from tests.support.paths import ROOT
from tests.support.source_passages import passages
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import byte_level_with_bos

pytestmark = pytest.mark.timeout(60)

MODELS = ROOT / "pipelines/quickstart/models"
SOUND = ("llama-docs", "gpt2-code", "neox-mixed")
TOP_K, VOCABULARY = 3, 20


def section(checkpoint: Path | str, **fields) -> SourceModelSpec:
    return SourceModelSpec(name="one", checkpoint=str(checkpoint), backend="transformers", dtype="float32", **fields)


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_model_passes(name):
    source = SourceModel(section(MODELS / name), 64)
    table = source(passages(["Return the number of items in a container.", "x", "def main():\n    return 3\n"]))
    assert len(table) == 3
    found = probe(source._backend, source._tokenizer, source._adds_bos, 128)
    assert found.as_configured < 0.8 * found.chance
    assert not found.otherwise < found.as_configured - BOS_MARGIN


def test_weights_that_learned_nothing_are_refused(tmp_path):
    byte_level_with_bos().save_pretrained(tmp_path / "tokenizer")
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama", tmp_path / "tokenizer")
    with pytest.raises(SourceModelError, match=r"one: it predicts a plain text at .* no better than chance \(5.99\)"):
        SourceModel(section(checkpoint), TOP_K)
    assert SourceModel(section(checkpoint, probe="off"), TOP_K)


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    shutil.copytree(MODELS / "gpt2-code", tmp_path / "mixed")
    for file in (MODELS / "llama-docs").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "mixed")
    with pytest.raises(SourceModelError, match="the tokenizer are another model's"):
        SourceModel(section(tmp_path / "mixed"), TOP_K)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_when_the_replica_starts(tmp_path, value):
    model = AutoModelForCausalLM.from_pretrained(MODELS / "llama-docs")
    model.model.norm.weight.data[3] = value
    model.save_pretrained(shutil.copytree(MODELS / "llama-docs", tmp_path / "broken"))
    with pytest.raises(SourceModelError, match=r"at (nan|inf) nats per token; look at the weights and at .* dtype"):
        SourceModel(section(tmp_path / "broken"), TOP_K)


def many(text: str) -> pa.Table:
    """Passages of one text with more than ``FEWEST_ROWS`` rows in all."""
    return passages([text] * FEWEST_ROWS)


def test_weights_that_go_wrong_later_are_refused():
    """The cross-entropy of a batch is far from the probe's; a second probe tells why."""
    source = SourceModel(section(MODELS / "llama-docs"), TOP_K)
    assert len(source(many("Return the number of items."))) == FEWEST_ROWS
    head = source._backend.backend._model.get_output_embeddings().weight.data
    head[:] = head.flip(0)
    with pytest.raises(SourceModelError, match=r"one: it predicts a plain text at .*, and did at 3\.\d\d .* changed"):
        source(many("Return the number of items."))


def test_a_text_that_is_strange_to_a_sound_model_passes():
    """Chinese costs these models more than a guess would, and they are as they were."""
    source = SourceModel(section(MODELS / "llama-docs"), TOP_K)
    table = source(many("東京は日本の首都であり、人口は約千四百万人です。"))
    nats = -np.concatenate(rows_of_column(table["one/token_logprobs"])).mean()
    assert nats > source._probed.chance


class Backend:
    """A model that costs 2 nats per token when it gets BOS, and 5 when it does not."""

    vocab_size = 400

    def __init__(self, bos_id: int):
        self._bos_id = bos_id

    def score(self, prompts):
        return [self._rows(prompt) for prompt in prompts]

    def _rows(self, prompt):
        count = len(prompt) - 1
        nats = 2.0 if prompt[0] == self._bos_id else 5.0
        return PromptRows(np.zeros((count, 1), np.int32), np.zeros((count, 1), np.float32), np.full(count, -nats))


def test_a_model_that_misses_its_bos_is_refused_or_corrected():
    tokenizer = PassageTokenizer(byte_level_with_bos(), "one")
    backend = Backend(tokenizer.bos_id)
    with_bos, without = (probe(backend, tokenizer, adds_bos, 512) for adds_bos in (True, False))
    assert (with_bos.as_configured, with_bos.otherwise) == (2.0, 5.0)
    assert (without.as_configured, without.otherwise) == (5.0, 2.0)
    assert settled_bos(with_bos, "one", True, correct=False) is True
    with pytest.raises(SourceModelError, match=r"without BOS .* 5.00 .* the other way at 2.00; set .* always"):
        settled_bos(without, "one", False, correct=False)
    assert settled_bos(without, "one", False, correct=True) is True


class FirstTokenBackend(Backend):
    """A model whose first row after BOS costs 1,000 nats, and every other row 3 nats, BOS or not."""

    def _rows(self, prompt):
        nats = np.full(len(prompt) - 1, 3.0)
        nats[0] = 1000.0 if prompt[0] == self._bos_id else 3.0
        return PromptRows(np.zeros((len(nats), 1), np.int32), np.zeros((len(nats), 1), np.float32), -nats)


def test_both_ways_are_compared_over_the_same_tokens():
    """Without BOS no row predicts the text's first token: what it costs after BOS says nothing about BOS."""
    tokenizer = PassageTokenizer(byte_level_with_bos(), "one")
    found = probe(FirstTokenBackend(tokenizer.bos_id), tokenizer, True, 512)
    assert (found.as_configured, found.otherwise) == (3.0, 3.0)
    assert settled_bos(found, "one", True, correct=True) is True


def test_a_matter_of_taste_is_no_mistake():
    assert settled_bos(Probe(2.0, 1.5, 6.0), "one", False, correct=False) is False
    assert settled_bos(Probe(2.0, float("nan"), 6.0), "one", False, correct=True) is False


def rows_of(prompt: np.ndarray, random: np.random.Generator) -> PromptRows:
    """Sound rows: a distribution over the vocabulary for every place, and what it gave to the token that follows."""
    logits = random.normal(0, 2, (len(prompt) - 1, VOCABULARY))
    logprobs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    order = np.argsort(-logprobs, axis=1)[:, :TOP_K].astype(np.int32)
    following = logprobs[np.arange(len(prompt) - 1), prompt[1:]]
    return PromptRows(order, np.take_along_axis(logprobs, order, 1), following)


@pytest.fixture
def scored() -> tuple[np.ndarray, PromptRows]:
    random = np.random.default_rng(0)
    prompt = random.integers(0, VOCABULARY, 60).astype(np.int32)
    return prompt, rows_of(prompt, random)


def insist(prompt: np.ndarray, rows: PromptRows) -> None:
    check_distributions("one", ["0/a:1:0"], [prompt], [rows], VOCABULARY, "float32")


def test_sound_rows_pass(scored):
    prompt, rows = scored
    insist(prompt, rows)
    insist(prompt[:1], PromptRows(rows.topk_ids[:0], rows.topk_logprobs[:0], rows.token_logprobs[:0]))
    check_distributions("one", [], [], [], VOCABULARY, "float32")
    with pytest.raises(SourceModelError):  # so they have been looked at
        insist(prompt, PromptRows(rows.topk_ids, rows.topk_logprobs + 1.0, rows.token_logprobs + 1.0))


@pytest.mark.parametrize("by", [-1, 1])
def test_rows_shifted_against_the_prompt_are_refused(scored, by):
    prompt, rows = scored
    shifted = PromptRows(np.roll(rows.topk_ids, by, 0), np.roll(rows.topk_logprobs, by, 0), rows.token_logprobs)
    with pytest.raises(SourceModelError, match="passage 0/a:1:0 got rows that do not belong to the tokens that follow"):
        insist(prompt, shifted)
    whole = PromptRows(shifted.topk_ids, shifted.topk_logprobs, np.roll(rows.token_logprobs, by))
    with pytest.raises(SourceModelError, match="has shifted its rows"):
        insist(prompt, whole)


def test_mass_that_is_nearly_all_rest_is_refused(scored):
    prompt, rows = scored
    flat = PromptRows(rows.topk_ids, rows.topk_logprobs - 12, rows.token_logprobs - 12)
    with pytest.raises(SourceModelError, match=r"the kept entries hold .*e-06 of the mass, nearly all of it is rest"):
        insist(prompt, flat)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 2.0])
def test_what_is_no_log_probability_is_refused(scored, value):
    prompt, rows = scored
    rows.token_logprobs[3] = value
    if value == 2.0:
        rows.topk_logprobs[3, 0] = value
    with pytest.raises(SourceModelError, match="log-probabilities that are not finite or above 0"):
        insist(prompt, rows)


def test_tokens_outside_the_vocabulary_are_refused(scored):
    prompt, rows = scored
    rows.topk_ids[5, 1] = VOCABULARY
    with pytest.raises(SourceModelError, match=r"tokens from 0 to 20, the model has 0 to 19"):
        insist(prompt, rows)
