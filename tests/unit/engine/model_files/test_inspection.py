"""The files of a checkpoint say what is wrong with them before a library reads them."""

import json
import shutil
from pathlib import Path

import pytest

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.inspection import checkpoint_faults, folder_faults
from engine.model_files.rehearsal import loading_faults
from tests.support.broken_inputs import LFS_POINTER, QUICKSTART

LLAMA = QUICKSTART / "models" / "llama-docs"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(LLAMA, tmp_path / "model"))


def edit(file: Path, change) -> None:
    value = json.loads(file.read_text(encoding="utf8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf8")


def faults_of(folder: Path) -> list[str]:
    return [str(fault).replace(str(folder), "FOLDER") for fault in folder_faults("here", str(folder))]


@pytest.mark.parametrize("model", ["llama-docs", "gpt2-code", "neox-mixed", "mistral-target"])
def test_a_sound_checkpoint_has_no_fault(model):
    path = str(QUICKSTART / "models" / model)
    assert folder_faults("here", path) == []
    assert loading_faults("here", path) == []


def test_all_faults_are_listed_at_once(folder):
    (folder / "tokenizer_config.json").write_text("{torn")
    (folder / "generation_config.json").write_text("[]")
    (folder / "model.safetensors").unlink()
    assert faults_of(folder) == [
        "here: FOLDER/generation_config.json holds list, not a JSON object; fetch it again",
        "here: FOLDER/tokenizer_config.json is not JSON: Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1); fetch it again",
        "here: FOLDER has no weights (model.safetensors, or its parts and their index); fetch it again",
    ]


def test_git_lfs_pointers_are_named(folder):
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(LFS_POINTER)
    (fault,) = faults_of(folder)
    assert fault.startswith("here: model.safetensors and 1 more in FOLDER: Git LFS pointers stand in the place of")


def test_an_index_that_names_files_that_are_not_there_is_a_fault(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    places = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert faults_of(folder) == [
        "here: 2 of 3 files that FOLDER/model.safetensors.index.json names are missing, such as model-2.safetensors; "
        "fetch them"
    ]


def test_weights_that_are_cut_short_are_a_fault(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000000])
    (fault,) = faults_of(folder)
    assert fault.startswith("here: FOLDER/model.safetensors (1,000,000 bytes) is cut short or damaged: ")


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_a_fault(folder):
    added = {"id": 1500, "content": "<new>", "single_word": False, "lstrip": False, "rstrip": False}
    added |= {"normalized": False, "special": False}
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].append(added))
    (fault,) = faults_of(folder)
    assert fault.startswith(
        "here: the tokenizer of FOLDER has 1 ids beyond the 1,500 rows of the embedding, such as 1500 for '<new>'; take"
    )


def test_a_special_token_without_a_row_is_a_fault_only_where_it_has_a_role(folder):
    added = {"id": 1500, "content": "<image>", "single_word": False, "lstrip": False, "rstrip": False}
    added |= {"normalized": False, "special": True}
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].append(added))
    assert faults_of(folder) == []
    edit(folder / "tokenizer_config.json", lambda value: value.update(eos_token="<image>"))
    assert "such as 1500 for '<image>'" in faults_of(folder)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 64}, "tensors in FOLDER have another shape than config.json's model, such as"),
        (
            {"num_hidden_layers": 5},
            "FOLDER lack 9 tensors of config.json's model, such as model.layers.4",
        ),
        (
            {"num_hidden_layers": 1},
            "27 tensors in FOLDER are not in config.json's model, such as model.layers.1",
        ),
        ({"vocab_size": "many"}, "Validation error for field 'vocab_size': TypeError: Field 'vocab_size' expected int"),
        ({"num_attention_heads": 0}, "FOLDER cannot be loaded by its config.json: "),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "FOLDER needs a package: "),
    ],
)
def test_a_configuration_that_does_not_fit_is_a_fault(folder, change, words):
    edit(folder / "config.json", lambda value: value.update(change))
    (fault,) = loading_faults("here", str(folder))
    assert words in str(fault).replace(str(folder), "FOLDER")


def test_a_file_that_is_no_gguf_file_and_an_adapter_without_weights_are_faults(tmp_path):
    (tmp_path / "x.gguf").write_bytes(LFS_POINTER)
    (tmp_path / "y.gguf").write_bytes(b"")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    pointer, empty, adapter = (
        str(fault)
        for checkpoint in (
            Checkpoint(f"{tmp_path}/x.gguf"),
            Checkpoint(f"{tmp_path}/y.gguf"),
            Checkpoint(str(LLAMA), adapter=f"{tmp_path}/adapter"),
        )
        for fault in checkpoint_faults("source_models.0", checkpoint)
    )
    assert pointer.startswith(f"source_models.0.checkpoint: x.gguf in {tmp_path}: Git LFS pointers stand in the place")
    assert empty.startswith(f"source_models.0.checkpoint: {tmp_path}/y.gguf is not a GGUF file")
    assert adapter.startswith(f"source_models.0.adapter: {tmp_path}/adapter has no weights")
