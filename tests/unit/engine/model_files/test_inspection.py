"""The files of a checkpoint say what is wrong with them before a library reads them."""

import io
import json
import pickle
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from engine.model_files.checkpoint import Checkpoint
from engine.model_files.inspection import (
    QUANTISATIONS,
    checkpoint_faults,
    folder_faults,
    quantisation,
    quantisation_faults,
)
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


def as_pickle(folder: Path, legacy: bool = False) -> bytes:
    """The folder's weights as torch saves them."""
    saved = io.BytesIO()
    torch.save(load_file(folder / "model.safetensors"), saved, _use_new_zipfile_serialization=not legacy)
    return saved.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_in_a_pickle_have_no_fault(folder, legacy):
    data = as_pickle(folder, legacy)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(data)
    assert faults_of(folder) == []
    assert loading_faults("here", str(folder)) == []


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"<!doctype html>404", lambda _: pickle.dumps([1])],
)
def test_a_damaged_pickle_is_a_fault(folder, damage):
    data = damage(as_pickle(folder))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(data)
    assert faults_of(folder) == [
        f"here: FOLDER/pytorch_model.bin ({len(data):,} bytes) is cut short or damaged: torch has not saved it so; "
        f"fetch it again"
    ]


def test_a_pickle_of_more_than_tensors_is_a_fault_that_advises_no_one_to_run_it(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model": Fraction(1)}, folder / "pytorch_model.bin")
    (fault,) = loading_faults("here", str(folder))
    assert "are a pickle of more than tensors, which could run any code; save the model's state_dict" in str(fault)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("model-00001-of-00002.safetensors", "has parts of weights, such as {}, and no model.safetensors.index.json"),
        ("pytorch_model-00001-of-00002.bin", "has parts of weights, such as {}, and no pytorch_model.bin.index.json"),
        ("model.gguf", "has no weights (model.safetensors, or its parts and their index); give the path of {} in it"),
        ("training_args.bin", "has no weights (model.safetensors, or its parts and their index), but {}; fetch"),
        ("consolidated.00.pth", "has no weights (model.safetensors, or its parts and their index), but {}; fetch"),
    ],
)
def test_weights_that_transformers_does_not_read_are_named(folder, name, fault):
    (folder / "model.safetensors").rename(folder / name)
    (found,) = faults_of(folder)
    assert found.startswith(f"here: FOLDER {fault.format(name)}")


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"a": "pytorch_model-1.bin"}, "1 of 1 files that FOLDER/pytorch_model.bin.index.json names are missing"),
        ({}, "FOLDER/pytorch_model.bin.index.json has no metadata, an object that transformers asks for"),
        (5, "FOLDER/pytorch_model.bin.index.json has no weight_map from tensors to files"),
    ],
)
def test_the_index_of_pickles_is_looked_at(folder, places, words):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    (fault,) = faults_of(folder)
    assert words in fault


@pytest.mark.parametrize("value", ["true", "false", 0, []])
def test_a_flag_of_the_tokenizer_that_is_neither_true_nor_false_is_a_fault(folder, value):
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(add_bos_token=value))
    assert faults_of(folder) == [
        f"here: add_bos_token in FOLDER/tokenizer_config.json is {value!r}; write true or false, without quotes"
    ]


@pytest.mark.parametrize(
    "settings", [{"quant_method": "no-such"}, {"quant_method": None}, {"quant_method": 5}, [1], {}]
)
@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_a_quantisation_that_the_backend_does_not_read_is_a_fault(folder, settings, backend):
    edit(folder / "config.json", lambda value: value.update(quantization_config=settings))
    (fault,) = quantisation_faults("target_model", Checkpoint(str(folder)), backend, may_be_elsewhere=True)
    assert fault.what.endswith(f", which {backend} does not read")


def test_quantisations_are_those_of_transformers(folder):
    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}
    assert set(QUANTISATIONS["transformers"]) == known
    edit(folder / "config.json", lambda value: value.update(quantization_config={"load_in_8bit": True}))
    assert quantisation(str(folder)) == "bitsandbytes"


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


def test_a_gguf_file_that_is_cut_short_or_one_of_several_is_a_fault(tmp_path):
    for name, parts in (("whole", 1), ("part", 3)):
        writer = GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_uint16("split.count", parts)
        writer.add_tensor("output.weight", np.zeros((8, 8), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    whole = (tmp_path / "whole.gguf").read_bytes()
    assert checkpoint_faults("target_model", Checkpoint(f"{tmp_path}/whole.gguf")) == []
    (fault,) = checkpoint_faults("target_model", Checkpoint(f"{tmp_path}/part.gguf"))
    assert fault.what == f"{tmp_path}/part.gguf is one of 3 parts"
    for length in (8, 30, 100, len(whole) - 100):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        (fault,) = checkpoint_faults("target_model", Checkpoint(f"{tmp_path}/cut.gguf"))
        assert fault.what.startswith(f"{tmp_path}/cut.gguf ({length} bytes) is cut short or damaged: "), fault


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
