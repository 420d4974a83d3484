"""Small inputs that people really have and that cannot run: refused before anything starts, in one sentence each."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(300)

MODELS = ROOT / "pipelines" / "quickstart" / "models"


def spec_file(tmp_path: Path, **sections) -> Path:
    """A small spec with some sections replaced."""
    document = {
        "run": {"name": "x", "output_dir": str(tmp_path / "out")},
        "corpus": {"paths": [str(ROOT / "pipelines/quickstart/corpus/train.jsonl")]},
        "target_model": {"checkpoint": str(MODELS / "mistral-target")},
        "objective": {"lm_loss_weight": 1.0},
        "training": {"block_length": 64, "global_batch_blocks": 1, "max_steps": 1},
    }
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(document | sections, allow_unicode=True))
    return path


def run(tmp_path: Path, verb: str, **sections) -> subprocess.CompletedProcess:
    """Start a verb of the engine on a small spec."""
    command = [sys.executable, "-m", "engine", verb, str(spec_file(tmp_path, **sections))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


def faults_of(done: subprocess.CompletedProcess) -> list[str]:
    """The sentences of a refusal, after its headline."""
    headline, *faults = done.stderr.strip().splitlines()[-20:]
    assert headline.startswith(("the run cannot start", "the spec cannot be used")), done.stderr
    assert "Traceback" not in done.stderr
    return [fault.removeprefix("  - ") for fault in faults]


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(tmp_path):
    short = tmp_path / "short"
    shutil.copytree(MODELS / "mistral-target", short)
    model = AutoModelForCausalLM.from_pretrained(short, dtype=torch.float32)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(short)) - 3)
    model.save_pretrained(short)
    done = run(tmp_path, "run", target_model={"checkpoint": str(short)})
    assert done.returncode == 1
    (fault,) = faults_of(done)
    assert fault.startswith(
        f"target_model.checkpoint: the tokenizer of {short} has 3 ids beyond the 1,197 rows of the embedding, such as"
    )
    assert not (tmp_path / "out").exists()


def test_a_source_that_needs_a_package_which_is_not_installed_is_refused(tmp_path):
    quantised = tmp_path / "gptq"
    shutil.copytree(MODELS / "llama-docs", quantised)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (quantised / "config.json").write_text(json.dumps(config))
    source = {"name": "s", "checkpoint": str(quantised), "dtype": "float32", "backend": "transformers"}
    done = run(tmp_path, "run", source_models=[source], objective={"lm_loss_weight": 0.9})
    assert done.returncode == 1
    (fault,) = faults_of(done)
    assert fault == (
        f"source_models.0.checkpoint: {quantised} is quantised by gptq, which transformers reads by a package that is "
        f"not installed: optimum; install it, or take another form of the model"
    )


@pytest.mark.parametrize("folder", ["{}/file", "{}/file/out", "/proc/nothing/out"])
def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("x")
    folder = folder.format(tmp_path)
    done = run(tmp_path, "run", run={"name": "x", "output_dir": folder})
    assert done.returncode == 1
    (fault,) = faults_of(done)
    assert fault.startswith(f"run.output_dir: {folder} cannot be made or written: ")


@pytest.mark.parametrize("url", ["memory://out", "file://{}/my runs/out"])
def test_an_output_folder_that_ray_train_does_not_reach_is_refused(tmp_path, url):
    url = url.format(tmp_path)
    done = run(tmp_path, "run", run={"name": "x", "output_dir": url})
    assert done.returncode == 1
    (fault,) = faults_of(done)
    assert fault.startswith(f"run.output_dir: {url} ")
    assert list(tmp_path.iterdir()) == [tmp_path / "spec.yaml"]


def test_check_lists_the_faults_of_all_files_at_once(tmp_path):
    shutil.copytree(MODELS / "llama-docs", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "x.jsonl").mkdir()
    done = run(
        tmp_path,
        "check",
        run={"name": "x", "output_dir": "az://container/out"},
        corpus={"paths": [str(tmp_path / "x.jsonl")]},
        target_model={"checkpoint": str(tmp_path / "model")},
    )
    assert done.returncode == 1
    assert [fault.partition(":")[0] for fault in faults_of(done)] == [
        "corpus.paths.0",
        "target_model.checkpoint",
        "run.output_dir",
    ]


def test_check_passes_over_files_that_are_on_another_machine(tmp_path):
    done = run(
        tmp_path,
        "check",
        run={"name": "x", "output_dir": "s3://bucket/out"},
        corpus={"paths": ["s3://bucket/*.parquet", "/nowhere/corpus.jsonl"]},
        target_model={"checkpoint": "/nowhere/model"},
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["target_model"]["checkpoint"] == "/nowhere/model"


def no_text(folder: Path) -> Path:
    """Write a corpus without the column of the spec."""
    path = folder / "rows.jsonl"
    path.write_text('{"body": "one"}\n{"body": "two"}\n')
    return path


def no_rows(folder: Path) -> Path:
    """Write a corpus without rows."""
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize(
    ("words", "written"), [("none of the first 2 rows can be read", no_text), ("hold no row", no_rows)]
)
def test_every_verb_refuses_a_corpus_that_holds_nothing_to_learn(tmp_path, words, written):
    spec = spec_file(tmp_path, corpus={"paths": [str(written(tmp_path))], "on_error": "skip"})
    found = verbs(spec)
    assert (found["codes"], found["loaded"]) == ([1, 1, 1, 1], [])
    assert found["said"].count(words) == 4


def test_a_cluster_that_does_not_answer_is_refused_before_a_library_of_models_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    command = [sys.executable, "-c", VERBS.replace('"check", "plan", ', ""), str(spec_file(tmp_path))]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout)
    assert (found["codes"], found["loaded"]) == ([1, 1], [])
    assert (
        found["said"].count("environment variable RAY_ADDRESS: no Ray answers at '127.0.0.1:1': ConnectionRefused") == 2
    )


def verbs(spec: Path) -> dict:
    """Exit codes and words of all verbs on one spec, and the libraries of models that they have loaded."""
    command = [sys.executable, "-c", VERBS, str(spec)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout)


VERBS = """
import io, json, sys
from contextlib import redirect_stderr
from engine.__main__ import main
said = io.StringIO()
with redirect_stderr(said):
    codes = [main([verb, sys.argv[1]]) for verb in ("check", "plan", "run", "evaluate")]
loaded = [name for name in ("torch", "transformers", "ray", "vllm", "numba") if name in sys.modules]
print(json.dumps({"codes": codes, "loaded": loaded, "said": said.getvalue()}))
"""


def cut_short(folder: Path, name: str) -> None:
    """Leave half of a file."""
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


def no_tokenizer(folder: Path) -> None:
    """Write JSON that is no tokenizer."""
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPEE"}}')


def longer_vocabulary(folder: Path) -> None:
    """Write a token that the embedding has no row for."""
    value = json.loads((folder / "tokenizer.json").read_text())
    value["model"]["vocab"]["more"] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("words", "damage"),
    [
        ("is not JSON", lambda folder: cut_short(folder, "config.json")),
        ("has no config.json", lambda folder: (folder / "config.json").unlink()),
        ("is cut short or damaged", lambda folder: cut_short(folder, "model.safetensors")),
        ("has no weights", lambda folder: (folder / "model.safetensors").unlink()),
        ("is not JSON", lambda folder: cut_short(folder, "tokenizer.json")),
        ("is not a tokenizer", no_tokenizer),
        ("1 ids beyond the", longer_vocabulary),
    ],
)
def test_every_verb_refuses_damaged_files_before_it_loads_a_library_of_models(tmp_path, words, damage):
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "llama-docs", folder)
    damage(folder)
    found = verbs(spec_file(tmp_path, target_model={"checkpoint": str(folder)}))
    assert found["codes"] == [1, 1, 1, 1]
    assert found["loaded"] == []
    assert found["said"].count("target_model.checkpoint: ") == 4
    assert found["said"].count(words) == 4
