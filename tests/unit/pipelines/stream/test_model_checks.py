"""A tokenizer that has lost its EOS is a fault; one that never had any is not."""

import json
import shutil
from pathlib import Path

import pytest

from engine.errors import PreflightError
from engine.model_files.checkpoint import Checkpoint
from pipelines.planning.check import check
from pipelines.stream.model_checks import model_faults
from tests.support.broken_inputs import QUICKSTART


@pytest.fixture
def folder(tmp_path) -> Path:
    """The target's checkpoint without the file that names its roles."""
    folder = Path(shutil.copytree(QUICKSTART / "models" / "mistral-target", tmp_path / "model"))
    (folder / "tokenizer_config.json").unlink()
    return folder


def test_a_tokenizer_without_the_eos_of_its_model_is_a_fault(folder):
    (fault,) = model_faults("target_model", Checkpoint(str(folder)))
    assert str(fault) == (
        f"target_model.checkpoint: the tokenizer of {folder} has no EOS, which config.json names by the id 1; fetch "
        f"its tokenizer_config.json or special_tokens_map.json, or write one with eos_token and bos_token (eos_token "
        f"is '[EOS]')"
    )


def test_check_says_the_same(folder, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"text": "a"}\n')
    sections = {"run": {"name": "x", "output_dir": str(tmp_path / "out")}, "corpus": {"paths": [f"{tmp_path}/*.jsonl"]}}
    sections |= {"objective": {"lm_loss_weight": 1.0}}
    with pytest.raises(PreflightError) as refused:
        check(sections | {"target_model": {"checkpoint": str(folder)}})
    assert list(refused.value.faults) == model_faults("target_model", Checkpoint(str(folder)))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "[EOS]"}))
    check(sections | {"target_model": {"checkpoint": str(folder)}})


def test_special_tokens_map_names_the_roles_too(folder):
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "[BOS]", "eos_token": "[EOS]"}))
    assert model_faults("target_model", Checkpoint(str(folder))) == []


def test_a_model_without_eos_has_no_fault(folder):
    (folder / "generation_config.json").unlink()
    for named in (None, [], 7):  # 7 is a token of text
        settings = json.loads((folder / "config.json").read_text()) | {"eos_token_id": named}
        (folder / "config.json").write_text(json.dumps(settings))
        assert model_faults("target_model", Checkpoint(str(folder))) == []
