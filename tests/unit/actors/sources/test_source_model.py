"""SourceModel around the plain backend: rows, habits, order, and what it refuses."""

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, MptConfig

from actors.monitor import NoMeter
from actors.sources.backends import PromptRows
from actors.sources.source_model import SourceModel, tempered
from engine.errors import FusionError, SourceModelError
from engine.model_files.configuration import context_limit
from engine.records import PASSAGE, check, rows_of, source_columns
from tests.support.source_passages import TEXTS, TOP_K, passages, section
from tests.support.tiny_models import POSITIONS, tiny_checkpoint, tiny_model
from tests.support.tiny_tokenizers import byte_level_with_bos, byte_level_without_bos

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    base = tmp_path_factory.mktemp("source")
    byte_level_with_bos().save_pretrained(base / "tokenizer")
    return tiny_checkpoint(base / "model", "llama", base / "tokenizer")


@pytest.mark.parametrize("bos", ["tokenizer", "never"])
def test_row_s_is_the_distribution_after_token_s(checkpoint, bos):
    source = SourceModel(section(checkpoint, bos=bos), TOP_K)
    table = source(passages(TEXTS))
    check(table, [*PASSAGE, *source_columns("one")], "test")
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    for row, text in enumerate(TEXTS):
        ids, ends = source._tokenizer.encode_with_roles(text, bos == "tokenizer", True)
        with torch.no_grad():
            logprobs = model(torch.tensor(ids[None].astype(np.int64))).logits[0].log_softmax(-1)
        found = {column.name[4:]: rows_of(table[column.name])[row] for column in source_columns("one")}
        assert found["token_ids"].tolist() == ids[:-1].tolist()
        assert found["end_bytes"].tolist() == ends[:-1].tolist()
        following = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:].astype(np.int64))]
        np.testing.assert_allclose(found["token_logprobs"], following, atol=1e-4)
        best = logprobs[:-1].topk(TOP_K)
        assert found["topk_ids"].tolist() == best.indices.flatten().tolist()
        np.testing.assert_allclose(found["topk_logprobs"], best.values.flatten(), rtol=1e-3)


def test_a_temperature_moves_the_kept_mass_and_nothing_else(checkpoint):
    plain, flat = (SourceModel(section(checkpoint, temperature=value), TOP_K)(passages(TEXTS)) for value in (1.0, 2.0))
    for row in range(len(TEXTS)):
        before, after = (
            np.exp(rows_of(table["one/topk_logprobs"])[row].astype(np.float64)).reshape(-1, TOP_K)
            for table in (plain, flat)
        )
        np.testing.assert_allclose(after.sum(-1), before.sum(-1), rtol=4e-3)
        expected = np.sqrt(before) / np.sqrt(before).sum(-1, keepdims=True) * before.sum(-1, keepdims=True)
        np.testing.assert_allclose(after, expected, rtol=1e-2)
        assert rows_of(flat["one/token_logprobs"])[row].tolist() == rows_of(plain["one/token_logprobs"])[row].tolist()


def test_tempering_keeps_what_a_model_rules_out():
    logprobs = np.log(np.array([[0.6, 0.3, 1e-30]], np.float32))
    logprobs[0, 2] = -np.inf
    found = np.exp(tempered(logprobs, 0.5))
    np.testing.assert_allclose(found, [[0.9 * 0.36 / 0.45, 0.9 * 0.09 / 0.45, 0]], rtol=1e-5)
    assert tempered(logprobs, 1.0) is logprobs


def test_other_columns_pass_through_and_order_is_kept(checkpoint):
    source = SourceModel(section(checkpoint), TOP_K)
    batch = passages(TEXTS).append_column("other", pa.array([4, 3, 2, 1]))
    table = source(batch)
    assert table["other"].to_pylist() == [4, 3, 2, 1]
    alone = source(passages(TEXTS[2:3]))
    np.testing.assert_allclose(
        rows_of(table["one/token_logprobs"])[2], rows_of(alone["one/token_logprobs"])[0], atol=1e-4
    )


def test_a_passage_beyond_the_context_is_named(checkpoint):
    source = SourceModel(section(checkpoint, max_context_tokens=8), TOP_K)
    with pytest.raises(SourceModelError, match=r"one: passage 0/a:0:0 has \d+ tokens, the model takes 8"):
        source(passages(TEXTS))


def test_a_vocabulary_smaller_than_k_is_refused(checkpoint):
    with pytest.raises(SourceModelError, match=r"fusion.top_k is 1024, the vocabulary has 400 tokens; lower top_k"):
        SourceModel(section(checkpoint), 1024)


def test_bos_that_the_tokenizer_does_not_have_is_refused(tmp_path):
    tokenizer = byte_level_without_bos()
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(SourceModelError, match="bos is always, but the tokenizer has no BOS; use never"):
        SourceModel(section(tiny_checkpoint(tmp_path / "m", "gpt2", tmp_path / "tokenizer"), bos="always"), 3)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceModelError, match=r"one: .*nowhere cannot be loaded: "):
        SourceModel(section(str(tmp_path / "nowhere")), TOP_K)


def test_a_checkpoint_that_cannot_be_read_now_ends_the_process_so_that_another_tries_again(tmp_path, monkeypatch):
    class Ended(Exception):
        """Instead of the end of the process."""

    class Meter:
        """Keeps why the process ends."""

        def start_or_refuse(self):
            pass

        def end_process(self, error, reason, out_of_memory):
            raise Ended(reason)

    def away(checkpoint):
        raise OSError("the store does not answer")

    monkeypatch.setattr("actors.sources.source_model.load_configuration", away)
    with pytest.raises(Ended, match="OSError: s3://models/one cannot be loaded: the store does not answer"):
        SourceModel(section("s3://models/one"), TOP_K, Meter())


def test_the_meter_counts_passages_and_own_tokens(checkpoint):
    class Kept:
        """Keeps the last call."""

        def start_or_refuse(self):
            pass

        def record(self, **figures):
            self.recorded = figures

    meter = Kept()
    table = SourceModel(section(checkpoint), TOP_K, meter)(passages(TEXTS))
    rows = sum(len(row) for row in rows_of(table["one/end_bytes"]))
    assert (meter.recorded["passages"], meter.recorded["tokens"]) == (len(TEXTS), rows + len(TEXTS))
    assert 0 < meter.recorded["busy_seconds"] < 60


def test_a_source_whose_replicas_died_too_often_is_not_loaded_again():
    class Meter:
        """Refuses a replica that has been replaced too often."""

        def start_or_refuse(self):
            raise FusionError("one: its replicas have died 2 times")

    with pytest.raises(FusionError, match="one: its replicas have died 2 times"):
        SourceModel(section("nowhere"), TOP_K, Meter())


def test_without_eos_the_last_token_has_no_row(tmp_path):
    tokenizer = byte_level_with_bos()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = SourceModel(section(tiny_checkpoint(tmp_path / "m", "llama", tmp_path / "tokenizer"), bos="never"), TOP_K)
    table = source(passages(["x", *TEXTS]))
    for text, ends in zip(["x", *TEXTS], rows_of(table["one/end_bytes"]), strict=True):
        assert len(ends) == len(source._tokenizer.encode(text)[0]) - 1
        assert (ends < len(text.encode())).all()


@pytest.mark.parametrize("wrong", [np.nan, -np.inf, 2.0])
def test_numbers_that_are_no_log_probabilities_are_refused(checkpoint, wrong):
    class Broken:
        """A backend that returns one wrong number."""

        vocab_size = 400

        def score(self, prompts):
            rows = [_minus_one(len(prompt) - 1) for prompt in prompts]
            (rows[-1].topk_logprobs[0] if wrong == 2.0 else rows[-1].token_logprobs)[0] = wrong
            return rows

    source = SourceModel(section(checkpoint), TOP_K)
    source._backend = Broken()
    with pytest.raises(
        SourceModelError, match=r"passage 0/a:\d:0 got log-probabilities that are not finite or above 0"
    ):
        source(passages(TEXTS))


def test_any_error_but_our_own_ends_the_process_and_memory_is_named(checkpoint):
    class Broken:
        """A backend that raises what it is given."""

        vocab_size = 400
        error: Exception = SourceModelError("one: a prompt has ids from 0 to 900")

        def score(self, prompts):
            raise self.error

    class Meter(NoMeter):
        """Keeps why the process would end."""

        ended: ClassVar[list[tuple[str, bool]]] = []

        def end_process(self, error, reason, out_of_memory):
            self.ended.append((reason, out_of_memory))

    source = SourceModel(section(checkpoint), TOP_K, Meter())
    source._backend = Broken()
    with pytest.raises(SourceModelError, match="ids from 0 to 900"):
        source(passages(TEXTS))
    source._backend.error = ImportError("no module named gptqmodel")
    with pytest.raises(SourceModelError, match="one: ImportError: no module named gptqmodel"):
        source(passages(TEXTS))
    assert Meter.ended == []
    source._source = source._source.model_copy(update={"backend": "vllm", "num_gpus": 0.5})
    for error in (RuntimeError("Executor failed."), RuntimeError("Worker failed with error 'CUDA out of memory.'")):
        source._backend.error = error
        with pytest.raises(SourceModelError, match="one: RuntimeError: "):
            source(passages(TEXTS))
    (dead_rank, memory) = Meter.ended
    assert dead_rank == ("RuntimeError: Executor failed.", False)
    assert memory[1]
    assert memory[0].endswith(
        "; lower its batched_tokens, kv_cache_bytes, max_context_tokens, set num_gpus to 1, raise "
        "tensor_parallel_size, or take a larger GPU"
    )


def test_tokens_that_the_model_does_not_have_are_refused(checkpoint):
    class Broken:
        """A backend that names a token beyond its vocabulary."""

        vocab_size = 400

        def score(self, prompts):
            rows = [_minus_one(len(prompt) - 1) for prompt in prompts]
            rows[0].topk_ids[0, 0] = 400
            return rows

    source = SourceModel(section(checkpoint), TOP_K)
    source._backend = Broken()
    with pytest.raises(SourceModelError, match=r"passage 0/a:1:0 got tokens from 0 to 400, the model has 0 to 399"):
        source(passages(TEXTS))


def test_the_context_leaves_room_for_what_the_backend_generates():
    config = tiny_model("gpt2", 50).config
    assert context_limit(config, 4096, generated_tokens=1) == POSITIONS - 1
    assert context_limit(config, 4096, generated_tokens=0) == POSITIONS
    assert context_limit(config, 20, generated_tokens=1) == 20


@pytest.mark.parametrize("config", [MptConfig(max_seq_len=64), BloomConfig(seq_length=64)])
def test_the_context_is_found_under_the_names_of_other_architectures(config):
    assert context_limit(config, 4096, generated_tokens=1) == 63


def _minus_one(rows: int) -> PromptRows:
    return PromptRows(np.zeros((rows, TOP_K), np.int32), np.full((rows, TOP_K), -1.0), np.full(rows, -1.0))


def test_a_model_on_cpus_has_as_many_threads_as_its_replica_has_cpus(checkpoint):
    for cpus, threads in ((0.5, 1), (2.0, 2)):
        source = SourceModel(section(checkpoint, num_cpus=cpus), TOP_K)
        assert source._backend._thread.submit(torch.get_num_threads).result() == threads
