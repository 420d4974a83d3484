"""The faults of an evaluation are shown before any work, as sentences that name the place."""

from contextlib import nullcontext

import pytest

from engine.errors import PreflightError, SpecError
from engine.spec.loading import as_located_spec, load_spec
from pipelines.evaluation import models as comparison
from pipelines.evaluation.models import compared_models, comparison_faults
from pipelines.planning.check import check
from tests.support.paths import ROOT

MODELS = ROOT / "pipelines" / "quickstart" / "models"
TASKS = str(ROOT / "pipelines" / "quickstart" / "tasks")

pytestmark = pytest.mark.timeout(120)


def spec(tmp_path, **evaluation):
    (tmp_path / "c.jsonl").write_text('{"text": "one document"}\n')
    return as_located_spec(
        {
            "run": {"name": "r", "output_dir": str(tmp_path / "output")},
            "corpus": {"paths": [str(tmp_path / "c.jsonl")]},
            "target_model": {"checkpoint": str(MODELS / "mistral-target")},
            "source_models": [{"name": "llama-docs", "checkpoint": str(MODELS / "llama-docs")}],
            "evaluation": evaluation,
        }
    )


def faults(tmp_path, trains_first=True, **evaluation):
    return [str(fault) for fault in comparison_faults(spec(tmp_path, **evaluation), trains_first)]


@pytest.mark.parametrize(
    ("rows", "on_error", "words"),
    [
        (
            '{"body": "x"}\n',
            "skip",
            "none of the first 1 rows can be read; the first one is FILE, row 1: has no",
        ),
        ('{"text": "x"}\n{torn\n', "fail", "FILE, row 2: is not JSON"),
        ("\n", "skip", "FILE hold no row; name files that do"),
        ('{"text": "x"}\n{torn\n{torn\n', "skip", ""),
    ],
)
def test_a_domain_that_cannot_be_read_is_a_fault_before_a_run(tmp_path, rows, on_error, words):
    file = tmp_path / "held_out.jsonl"
    file.write_text(rows)
    located = spec(tmp_path, corpora={"docs": [str(file)]})
    located = located.model_copy(update={"corpus": located.corpus.model_copy(update={"on_error": on_error})})
    found = [str(fault) for fault in comparison_faults(located, trains_first=True)]
    with pytest.raises(PreflightError) if words else nullcontext() as refused:
        check(located)
    assert [str(fault) for fault in refused.value.faults] == found if words else not found
    assert not words or found[0].startswith(f"evaluation.corpora.docs: {words.replace('FILE', str(file))}")


def test_the_export_is_compared_once_it_is_there(tmp_path):
    labels = ["target before", "source llama-docs", "other"]
    located = spec(tmp_path, models={"other": str(MODELS / "gpt2-code")})
    assert list(compared_models(located)) == labels
    (tmp_path / "output" / "export").mkdir(parents=True)
    assert list(compared_models(located)) == [*labels, "fused target"]


def test_models_are_compared_with_the_bos_of_the_spec(tmp_path):
    located = spec(tmp_path)
    target = located.target_model.model_copy(update={"bos": "never"})
    source = located.source_models[0].model_copy(update={"bos": "always"})
    changed = located.model_copy(update={"target_model": target, "source_models": (source,)})
    assert [checkpoint.bos for checkpoint in compared_models(changed).values()] == ["never", "always"]


def test_a_run_may_name_its_own_export_before_it_is_there(tmp_path):
    assert not faults(
        tmp_path,
        corpora={"docs": [str(tmp_path / "c.jsonl")]},
        ensembles={"both": ["fused target", "source llama-docs", "soup"]},
        merges={"soup": {"method": "linear", "models": ["target before", "fused target"]}},
    )


def test_an_evaluation_alone_cannot_name_an_export_that_is_not_there(tmp_path):
    (fault,) = faults(tmp_path, trains_first=False, ensembles={"alone": ["fused target"]})
    assert fault.startswith("evaluation.ensembles.alone.0: 'fused target' is neither a label nor a checkpoint")


def test_a_member_that_is_neither_label_nor_checkpoint_is_named(tmp_path):
    (fault,) = faults(tmp_path, ensembles={"both": ["source llama-docs", "source llama"]})
    assert fault.startswith("evaluation.ensembles.both.1: 'source llama' is neither a label nor a checkpoint")
    assert "source llama-docs" in fault.split("labels: ")[1]


def test_models_that_cannot_be_merged_are_named(tmp_path):
    (fault,) = faults(tmp_path, merges={"soup": {"method": "linear", "models": ["target before", "source llama-docs"]}})
    assert fault.startswith("evaluation.merges.soup: ")
    assert "differ in shape" in fault


def test_a_missing_folder_and_a_missing_file_are_named(tmp_path):
    found = faults(tmp_path, corpora={"docs": [str(tmp_path / "no.jsonl")]}, task_folders=[str(tmp_path / "none")])
    assert found[0].startswith("evaluation.corpora.docs")
    assert f"evaluation.task_folders: there is no folder {tmp_path / 'none'}" in found[1]


def test_an_unknown_task_is_named_with_those_near_it(tmp_path):
    (fault,) = faults(tmp_path, tasks=["quickstart_continuations", "boolq", "arc_eazy"], task_folders=[TASKS])
    assert "'arc_eazy' is no task of the harness; near: arc_easy" in fault


def test_tasks_need_the_harness(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "find_spec", lambda name: None)
    (fault,) = faults(tmp_path, tasks=["boolq"])
    assert "not installed" in fault
    assert "lm-eval" in fault


def test_labels_stay_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(MODELS)
    evaluation = spec(
        tmp_path,
        models={"gpt2-code": "llama-docs"},
        ensembles={"both": ["gpt2-code", "neox-mixed"]},
        merges={"soup": {"method": "sce", "base": "neox-mixed", "models": ["gpt2-code", "target before"]}},
    ).evaluation
    assert evaluation.ensembles["both"] == ("gpt2-code", str(MODELS / "neox-mixed"))
    assert evaluation.merges["soup"].base == str(MODELS / "neox-mixed")
    assert evaluation.merges["soup"].models == ("gpt2-code", "target before")


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"merges": {"m": {"method": "sce", "models": ["a"]}}}, "evaluation.merges.m.base: is missing"),
        ({"merges": {"m": {"method": "linear", "models": ["a"], "base": "b"}}}, "linear has none"),
        ({"merges": {"m": {"method": "linear", "models": ["a"], "weights": [0]}}}, "cannot weigh 1 models"),
        ({"merges": {"m": {"method": "sce", "models": ["a"], "base": "b", "weights": [1]}}}, "sce has none"),
        ({"merges": {"m": {"method": "slerp", "models": ["a", "b", "c"]}}}, "has 3 models, slerp takes two"),
        ({"merges": {"m": {"method": "ties", "models": ["a"]}}}, "ties adds changes to a base"),
        ({"ensembles": {"m": ["a"]}, "models": {"m": "a"}}, "evaluation.ensembles.m: 'm' is in evaluation.models too"),
        ({"stride_tokens": 4096}, "evaluation.stride_tokens: 4096 is more than a window of 2048 tokens"),
    ],
)
def test_settings_that_do_not_go_together_are_told(tmp_path, evaluation, words):
    with pytest.raises(SpecError) as error:
        load_spec(
            {
                "run": {"name": "r", "output_dir": "o"},
                "corpus": {"paths": ["c.jsonl"]},
                "target_model": {"checkpoint": "t"},
                "objective": {"lm_loss_weight": 1.0},
                "evaluation": evaluation,
            }
        )
    assert words in str(error.value)
