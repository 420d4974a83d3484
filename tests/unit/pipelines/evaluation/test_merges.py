"""Merged models: parameter by parameter what the arithmetic says, refused where the models are unlike."""

import fsspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import FusionError
from engine.method.merging import linear, select_calculate_erase, slerp, ties
from engine.model_files.checkpoint import Checkpoint
from engine.spec import MergeSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.evaluation.bits_per_byte import bits_per_byte, score_texts
from pipelines.evaluation.merges import unlike, write_merge
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import tokenizer_folders

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("merges")


@pytest.fixture(scope="module")
def tokenizers(folder):
    return list(tokenizer_folders(folder / "tokenizers"))


@pytest.fixture(scope="module")
def checkpoints(folder, tokenizers):
    """Three models of one shape and one tokenizer."""
    return [
        Checkpoint(tiny_checkpoint(folder / f"model{seed}", "llama", tokenizers[0], seed=seed)) for seed in range(3)
    ]


def parameters(place):
    model = AutoModelForCausalLM.from_pretrained(place)
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def test_linear_is_the_weighted_mean_by_hand():
    found = linear([np.array([1.0, 2.0]), np.array([5.0, 10.0])], [3.0, 1.0])
    assert found.tolist() == [2.0, 4.0]


def test_a_linear_merge_is_a_checkpoint_with_the_weighted_means(checkpoints, folder):
    merge = MergeSpec(method="linear", models=("a", "b", "c"), weights=(2.0, 1.0, 1.0))
    place = write_merge(merge, checkpoints, str(folder / "linear"))
    first, second, third = (parameters(checkpoint.path) for checkpoint in checkpoints)
    for name, found in parameters(place).items():
        np.testing.assert_allclose(found, first[name] / 2 + second[name] / 4 + third[name] / 4, atol=1e-6)
    merged, member = (PassageTokenizer.load(checkpoint) for checkpoint in (Checkpoint(place), checkpoints[0]))
    assert merged.token_bytes == member.token_bytes


@pytest.mark.parametrize("arithmetic", ["paper", "published_code"])
def test_an_sce_merge_adds_changes_to_its_base(checkpoints, folder, arithmetic):
    merge = MergeSpec(method="sce", base="a", models=("b", "c"), select=0.25, arithmetic=arithmetic)
    place = write_merge(merge, checkpoints, str(folder / arithmetic))
    base, *others = (parameters(checkpoint.path) for checkpoint in checkpoints)
    found = parameters(place)
    for name in base:
        expected = select_calculate_erase(base[name], [other[name] for other in others], 0.25, arithmetic)
        np.testing.assert_allclose(found[name], expected, atol=1e-6)
    assert any(not np.array_equal(found[name], base[name]) for name in base)


@pytest.mark.parametrize("recipe", [{"method": "slerp", "place": 0.25}, {"method": "ties", "keep": 0.5}])
def test_the_other_merges_are_written_parameter_by_parameter(checkpoints, folder, recipe):
    has_base = recipe["method"] == "ties"
    merge = MergeSpec(**recipe, models=("b", "c"), base="a" if has_base else "")
    parts = checkpoints if has_base else checkpoints[1:]
    found = parameters(write_merge(merge, parts, str(folder / recipe["method"])))
    arrays = [parameters(part.path) for part in parts]
    for name, values in found.items():
        first, *others = (array[name] for array in arrays)
        expected = ties(first, others, [1.0, 1.0], 0.5) if has_base else slerp(first, *others, 0.25)
        np.testing.assert_allclose(values, expected, atol=1e-6)


def test_the_draw_of_a_dare_merge_is_that_of_its_seed(checkpoints, folder):
    merges = [MergeSpec(method="dare", models=("b", "c"), base="a", keep=0.5, seed=seed) for seed in (0, 0, 1)]
    once, again, other = (
        parameters(write_merge(merge, checkpoints, str(folder / f"dare-{place}"))) for place, merge in enumerate(merges)
    )
    assert all(np.array_equal(once[name], again[name]) for name in once)
    assert any(not np.array_equal(once[name], other[name]) for name in once)


def test_a_model_merged_with_itself_stays_what_it_is(checkpoints, folder):
    place = write_merge(MergeSpec(method="linear", models=("a", "a")), [checkpoints[0]] * 2, str(folder / "itself"))
    text = {"d": ["The quick brown fox jumps over the lazy dog."]}
    before, after = (bits_per_byte(score_texts(model, text, 64)["d"]) for model in (checkpoints[0], Checkpoint(place)))
    assert after == before


def test_tied_weights_stay_tied(tokenizers, folder):
    tied = [tiny_checkpoint(folder / f"tied{seed}", "llama", tokenizers[0], seed=seed, tied=True) for seed in (0, 1)]
    merge = MergeSpec(method="linear", models=("a", "b"))
    place = write_merge(merge, [Checkpoint(path) for path in tied], str(folder / "tied"))
    model = AutoModelForCausalLM.from_pretrained(place)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = sum(parameters(path)["model.embed_tokens.weight"] for path in tied) / 2
    torch.testing.assert_close(model.lm_head.weight.detach(), torch.from_numpy(expected))


def test_a_merge_takes_the_place_of_an_earlier_one(checkpoints, folder):
    merge = MergeSpec(method="linear", models=("a",))
    place = write_merge(merge, checkpoints[:1], str(folder / "again"))
    (folder / "again" / "left over").write_text("")
    assert write_merge(merge, checkpoints[1:2], place) == place
    assert not (folder / "again" / "left over").exists()
    name = "model.norm.weight"
    np.testing.assert_array_equal(parameters(place)[name], parameters(checkpoints[1].path)[name])


def test_a_merge_is_written_to_any_filesystem(checkpoints):
    url = "memory://merges/anywhere"
    for _ in range(2):
        assert write_merge(MergeSpec(method="linear", models=("a",)), checkpoints[:1], url) == url
        names = {name.rsplit("/", 1)[1] for name in fsspec.filesystem("memory").ls("/merges/anywhere", detail=False)}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


def test_models_of_other_shapes_are_refused_with_a_sentence(checkpoints, tokenizers, folder):
    other = Checkpoint(tiny_checkpoint(folder / "gpt2", "gpt2", tokenizers[0]))
    (reason,) = unlike([checkpoints[0], other])
    assert "differ in shape" in reason
    assert "missing" in reason
    with pytest.raises(FusionError, match=r"the merge soup cannot be made: .* differ in shape"):
        write_merge(MergeSpec(method="linear", models=("a", "b")), [checkpoints[0], other], str(folder / "soup"))


def test_models_of_other_vocabularies_are_refused(checkpoints, tokenizers, folder):
    """Embeddings of one shape, rows of different tokens."""
    other = folder / "other"
    AutoModelForCausalLM.from_pretrained(checkpoints[0].path).save_pretrained(other)
    for path in tokenizers[1].glob("tokenizer*"):
        (other / path.name).write_bytes(path.read_bytes())
    (reason,) = unlike([checkpoints[0], Checkpoint(str(other))])
    assert "different vocabularies" in reason


def test_like_models_are_merged(checkpoints):
    assert unlike(checkpoints) == []
