"""FuseChat's recipe: which runs it makes, that their targets are merged, and what it refuses."""

import os

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM

from engine.errors import SpecError
from engine.history.result import EvaluationResult, RunResult, SourceTotals
from engine.method.merging import select_calculate_erase
from engine.spec.loading import as_located_spec, dump_spec, load_spec
from pipelines.evaluation.merges import parts_of, write_merge
from pipelines.evaluation.models import compared_models, named
from pipelines.run import pairwise
from pipelines.run.pairwise import pair_spec, run_pairwise
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import tokenizer_folders

pytestmark = pytest.mark.timeout(120)

QUICKSTART = "pipelines/specs/quickstart.yaml"


def recipe(folder, *overrides):
    own = [f"run.output_dir={folder / 'out'}", "pairwise={method: sce, select: 0.5}", *overrides]
    return as_located_spec(load_spec(QUICKSTART, own))


def test_a_pair_is_the_recipes_run_with_one_source_and_no_evaluation_after_it(tmp_path):
    spec = recipe(tmp_path)
    pair = pair_spec(spec, spec.source_models[1])
    assert pair.source_models == spec.source_models[1:2]
    assert pair.run.output_dir == str(tmp_path / "out" / "pairs" / pair.source_models[0].name)
    assert (pair.pairwise, pair.evaluation.corpora, pair.evaluation.tasks) == (None, {}, ())
    for section in ("corpus", "target_model", "alignment", "fusion", "objective", "training", "cluster"):
        assert getattr(pair, section) == getattr(spec, section), section
    assert load_spec(yaml.safe_load(dump_spec(pair))) == pair
    stopping = recipe(tmp_path, "evaluation.every_steps=2")
    assert pair_spec(stopping, spec.source_models[0]).evaluation.corpora == spec.evaluation.corpora


def test_the_targets_of_the_pairs_are_merged_into_the_export(tmp_path, monkeypatch):
    """Each run is a stand-in that exports a random model; the merge is real."""
    tokenizer = next(iter(tokenizer_folders(tmp_path / "tokenizers")))
    before = tiny_checkpoint(tmp_path / "before", "llama", tokenizer, seed=9)
    spec = recipe(tmp_path, f"target_model.checkpoint={before}")
    done = []

    def run(pair):
        (source,) = pair.source_models
        tiny_checkpoint(os.path.join(pair.run.output_dir, "export"), "llama", tokenizer, seed=len(done))
        done.append(source.name)
        sources = (SourceTotals(source.name, 1.0, 1.0, 1.0),)
        return RunResult("pair", pair.run.output_dir, "", "", "", 5, 10, 100, 400, 2.0, 0, sources=sources)

    def evaluate(merged):
        models = compared_models(merged)
        for label, merge in merged.evaluation.merges.items():
            place = os.path.join(merged.run.output_dir, "merges", label)
            write_merge(merge, [named(models, part) for part in parts_of(merge)], place)
        return EvaluationResult(checkpoints={label: str(model) for label, model in models.items()})

    monkeypatch.setattr(pairwise, "evaluate_located", evaluate)
    monkeypatch.setattr(pairwise, "report", lambda folders, url: f"{len(folders)} runs in {url}")
    result = run_pairwise(spec, run)
    names = [source.name for source in spec.source_models]
    assert done == [source.name for source in result.sources] == names
    assert (result.steps, result.passages, result.tokens, result.bytes) == (15, 30, 300, 1200)
    assert result.report_path == f"3 runs in {tmp_path / 'out' / 'report.html'}"
    assert {f"pair {name}" for name in names} <= set(result.evaluation.checkpoints)
    pairs = [tmp_path / "out" / "pairs" / name / "export" for name in names]
    base, *targets, merged = (parameters(place) for place in (before, *pairs, result.export_dir))
    for name, found in merged.items():
        expected = select_calculate_erase(base[name], [target[name] for target in targets], 0.5, "paper")
        np.testing.assert_allclose(found, expected, atol=1e-6)


def parameters(place):
    model = AutoModelForCausalLM.from_pretrained(place)
    return {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pairwise={method: slerp}"], "pairwise.method: slerp merges two, there are 3 source models"),
        (["pairwise={method: ties, weights: [1.0]}"], r"pairwise.weights: \[1.0\] cannot weigh 3 models"),
        (["pairwise={method: sce, weights: [1.0, 1.0, 1.0]}"], "pairwise.weights: are set, but sce has none"),
        (["pairwise={}"], "pairwise.method: is missing"),
        (["source_models=[]", "objective.lm_loss_weight=1.0"], "pairwise: is set for 0 source models"),
        (["fusion={rule: single, single_source: gpt2-code}"], "fusion.rule: is single, but under pairwise"),
    ],
)
def test_a_recipe_that_cannot_be_carried_out_is_refused(tmp_path, overrides, message):
    with pytest.raises(SpecError, match=message):
        recipe(tmp_path, *overrides)
