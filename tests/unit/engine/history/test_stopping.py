"""Each limit ends a run at its step, and none before; what is exported is the best where that was asked for."""

import math
from dataclasses import replace

import pytest

from engine.errors import SpecError
from engine.history.stopping import best_step, exported_step, held_out_means, reached
from engine.spec.loading import load_spec, parse
from pipelines.planning.plan import plan
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(30)


def spec(patience=0, **training):
    evaluation = {"corpora": {"docs": ["docs.txt"], "code": ["code.txt"]}, "every_steps": 1, "patience": patience}
    return parse(
        {
            "run": {"name": "trial", "output_dir": "outputs"},
            "corpus": {"paths": ["corpus.jsonl"]},
            "target_model": {"checkpoint": "target"},
            "objective": {"lm_loss_weight": 1.0},
            "training": training,
            "evaluation": evaluation,
        }
    )


def history(steps, docs=()):
    """Steps of 100 tokens and 36 seconds; ``docs`` are the bits per byte of one domain after each, the other's 2."""
    return [
        step_record(
            step,
            elapsed_seconds=36.0 * step,
            held_out={"docs": docs[step - 1], "code": 2.0} if step <= len(docs) else {},
        )
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize(
    ("training", "last", "reason"),
    [
        ({"max_steps": 7}, 7, "steps"),
        ({"max_tokens": 601}, 7, "tokens"),
        ({"max_tokens": 600}, 6, "tokens"),
        ({"max_hours": 0.05}, 5, "time"),
        ({"max_steps": 9, "max_tokens": 800, "max_hours": 0.06}, 6, "time"),
    ],
)
def test_a_limit_ends_the_run_at_its_step(training, last, reason):
    assert reached(spec(**training), history(last - 1)) is None
    assert reached(spec(**training), history(last)) == reason


def test_nothing_is_reached_before_the_first_step():
    assert reached(spec(patience=1, max_steps=1, max_tokens=1, max_hours=1e-9), []) is None


def test_patience_counts_evaluations_since_the_best():
    bits = [3.0, 2.5, 2.6, 2.4, 2.4, 2.9]
    reasons = [reached(spec(patience=2), history(steps, bits)) for steps in range(1, 7)]
    assert reasons == [None, None, None, None, None, "no improvement"], "as good as before is no improvement"
    assert reached(spec(patience=3), history(6, bits)) is None
    assert reached(spec(), history(6, bits)) is None


def test_the_best_is_that_of_the_mean_and_exported_with_patience_alone():
    bits = [3.0, 2.5, 2.25, 2.6]
    assert held_out_means(spec(), history(4, bits)) == {1: 2.5, 2: 2.25, 3: 2.125, 4: 2.3}
    assert best_step(spec(), history(4, bits)) == 3
    assert exported_step(spec(patience=5), history(4, bits)) == 3
    assert exported_step(spec(), history(4, bits)) == 4
    assert exported_step(spec(patience=5), history(4)) == 4, "never evaluated"
    assert exported_step(spec(), []) == 0


def test_an_empty_domain_does_not_count():
    found = history(2, [math.nan, math.nan])
    assert held_out_means(spec(), found) == {1: 2.0, 2: 2.0}


def test_evaluations_on_other_domains_are_not_compared():
    found = history(3, [3.0, 2.0, 2.5])
    found[1] = replace(found[1], held_out={"docs": 1.0})
    assert best_step(spec(), found) == 3


@pytest.mark.parametrize(
    ("evaluation", "sentence"),
    [
        ({"every_steps": 5}, "evaluation.every_steps: is 5, but evaluation.corpora is empty"),
        (
            {"corpora": {"docs": ["a.txt"]}, "patience": 2},
            "evaluation.patience: is 2, but evaluation.every_steps is 0",
        ),
    ],
)
def test_conditions_that_could_never_hold_are_refused(evaluation, sentence):
    document = spec().model_dump(mode="json") | {"evaluation": evaluation}
    with pytest.raises(SpecError) as caught:
        parse(document)
    assert sentence in str(caught.value)


def test_the_plan_names_every_limit():
    limits = ["training.max_tokens=5000", "training.max_hours=1.5", "evaluation.every_steps=8", "evaluation.patience=3"]
    text = str(plan(load_spec("pipelines/specs/quickstart.yaml", limits), score=False))
    words = "with the corpus or with 5,000 tokens or after 1.5 hours or after 3 evaluations without improvement"
    assert f"at most 94 steps = 96,256 tokens; earlier {words}" in text
