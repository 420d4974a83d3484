"""A source model is retired at a checkpoint, once it predicts the text of no domain better than the target does."""

import json
from dataclasses import asdict, replace

import pytest

from engine.errors import SpecError
from engine.history.files import record_of
from engine.history.retirement import retired_sources, to_retire
from engine.spec.loading import parse
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(30)

#: Nats per byte of the target, and of the source that is compared with it.
TARGET, WORSE, BETTER = 1.0, 1.25, 0.75


def spec(retire=True, domains=(), **sections):
    corpus = {"domains": {name: {"paths": [name]} for name in domains}} if domains else {"paths": ["corpus.jsonl"]}
    return parse(
        {
            "run": {"name": "trial", "output_dir": "outputs"},
            "corpus": corpus,
            "target_model": {"checkpoint": "target"},
            "source_models": [
                {"name": "llama", "checkpoint": "a", "retire": retire},
                {"name": "gpt2", "checkpoint": "b"},
            ],
            "training": {"checkpoint_every_steps": 3},
            **sections,
        }
    )


def step(number, llama, by_domain=()):
    """A step of 96 rows on 400 bytes; gpt2 is always worse than the target, llama as said, in each domain alike."""
    sources = {"source_nats": (400 * llama, 400 * WORSE), "source_bytes": (400, 400)}
    domains = {
        "domain_bytes": (200,) * len(by_domain),
        "domain_lm_nats": (200 * TARGET,) * len(by_domain),
        "domain_source_nats": tuple(200 * nats for own in by_domain for nats in (own, WORSE)),
        "domain_source_bytes": (200, 200) * len(by_domain),
    }
    return step_record(number, lm_loss=400 * TARGET / 96, **sources, **domains)


def test_the_steps_since_the_last_checkpoint_decide():
    better, worse = ([step(number, nats) for number in range(1, 4)] for nats in (BETTER, WORSE))
    assert to_retire(spec(), worse) == ("llama",)
    assert to_retire(spec(), better) == ()
    assert to_retire(spec(), [*better, *worse]) == ("llama",)
    assert to_retire(spec(), [*worse, *better]) == ()
    assert to_retire(spec(retire=False), worse) == (), "gpt2 stays, too: it is not to be retired"


def test_no_source_is_judged_while_text_is_read_again():
    """It may lead in the domain of which the target has learned the labels by heart."""
    worse = [step(number, WORSE, by_domain=(WORSE, WORSE)) for number in range(1, 4)]
    again = replace(worse[1], repeated_bytes=200, domain_repeated_bytes=(200, 0))
    assert to_retire(spec(domains=("code", "docs")), worse) == ("llama",)
    assert to_retire(spec(domains=("code", "docs")), [worse[0], again, worse[2]]) == ()


def test_a_source_that_leads_in_one_domain_stays():
    leads = [step(number, WORSE, by_domain=(BETTER, WORSE)) for number in range(1, 4)]
    lags = [step(number, WORSE, by_domain=(TARGET, WORSE)) for number in range(1, 4)]
    assert to_retire(spec(domains=("code", "prose")), leads) == ()
    assert to_retire(spec(domains=("code", "prose")), lags) == ("llama",)


def test_a_source_without_scores_is_not_judged():
    nothing = [replace(step(number, WORSE), source_nats=(0.0, 0.0), source_bytes=(0, 0)) for number in range(1, 4)]
    assert to_retire(spec(), nothing) == ()
    of_old_checkpoint = [replace(step(1, WORSE, (WORSE, WORSE)), domain_lm_nats=())]
    assert to_retire(spec(domains=("code", "prose")), of_old_checkpoint) == ()


def test_the_decision_is_in_the_record_and_outlives_a_checkpoint():
    history = [step(1, WORSE), replace(step(2, WORSE), retired=("llama",)), step(3, WORSE)]
    saved = json.loads(json.dumps([asdict(record) for record in history]))
    assert retired_sources([record_of(fields) for fields in saved]) == {"llama": 2}


def test_nats_per_own_token_cannot_decide():
    with pytest.raises(SpecError, match=r"source_models\.0\.retire: is true, but fusion\.arithmetic fusellm"):
        spec(fusion={"arithmetic": "fusellm"})
