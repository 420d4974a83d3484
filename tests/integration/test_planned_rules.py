"""What a plan says of the fusion rules, on the experiment's page: the figures of ``plan --compare`` itself."""

import pytest

import engine
from engine import load_spec
from pipelines.experiment.arms import SPEC
from pipelines.experiment.planned import planned_rules

pytestmark = pytest.mark.timeout(180)


def test_the_rules_of_a_plan_are_in_order_and_of_the_specs_own_alignment(tmp_path):
    overrides = [
        "target_model.checkpoint=pipelines/quickstart/models/mistral-target",
        "corpus.paths=[pipelines/quickstart/corpus/train.jsonl]",
        f"run.output_dir={tmp_path}",
    ]
    found = planned_rules(SPEC, overrides)
    assert list(found) == sorted(found, key=found.__getitem__)
    assert sorted(found) == ["avg_ce", "min_ce", "uniform"]
    lines = str(engine.plan(load_spec(SPEC, overrides), mappings=())).splitlines()
    for rule, nats in found.items():
        [line] = [line.split() for line in lines if line.split()[:2] == [rule, "bytes"]]
        assert f"{nats:.4f}" in line
