"""The time left follows the records of the steps, whatever lies between them."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.history.result import Progress
from engine.reporting.run_state import RunState
from engine.spec import CorpusSpec
from engine.spec.loading import parse
from tests.support.step_records import step_record


def spec_of(evaluation=None, **training):
    return parse(
        {
            "run": {"name": "trial", "output_dir": "outputs"},
            "corpus": {"paths": ["corpus.jsonl"]},
            "target_model": {"checkpoint": "target"},
            "source_models": [{"name": "llama-docs", "checkpoint": "a"}],
            "training": {"max_steps": 6250, **training},
            "evaluation": evaluation or {},
        }
    )


SPEC = spec_of()
EVALUATED = spec_of({"corpora": {"docs": ["held-out.jsonl"]}, "every_steps": 100})


def steps(first, last, **fields):
    """Steps of 1,000 tokens in 2 seconds, without a pause."""
    values = {"tokens": 1000, "seconds": 2.0} | fields
    return tuple(step_record(step, elapsed_seconds=2.0 * step, **values) for step in range(first, last + 1))


def test_the_time_left_stands_still_while_the_target_is_evaluated():
    state = RunState(SPEC, now=0.0)
    state.update(Progress(steps=steps(1, 150)), now=300.0)
    for now in range(301, 900):
        state.update(Progress(), now=float(now))
        assert state.seconds_left == pytest.approx(6100 * 2.0)


def test_the_pauses_that_are_still_to_come_count():
    state = RunState(EVALUATED, now=0.0)
    state.update(Progress(steps=steps(1, 99)), now=200.0)
    assert state.seconds_left == pytest.approx(6151 * 2.0)
    (evaluated,) = steps(100, 100, held_out={"docs": 2.5}, held_out_seconds=600.0)
    state.update(Progress(steps=(evaluated,)), now=800.0)
    assert state.seconds_left == pytest.approx(6150 * 2.0 + 62 * 600.0), "61 more, and one after the last step"


def test_a_slow_checkpoint_counts_as_often_as_there_are_more_of_them():
    spec = spec_of(checkpoint_every_steps=50)
    before, after = steps(1, 50), steps(51, 60)
    state = RunState(spec, now=0.0)
    later = tuple(replace(record, elapsed_seconds=record.elapsed_seconds + 300.0) for record in after)
    state.update(Progress(steps=before + later), now=500.0)
    assert state.seconds_left == pytest.approx(6190 * 2.0 + 124 * 300.0)


def test_the_first_step_of_a_stream_which_waits_for_the_models_does_not_count():
    state = RunState(SPEC, now=0.0)
    state.update(Progress(stream=1, steps=steps(1, 1, seconds=500.0)), now=500.0)
    assert math.isnan(state.seconds_left)
    state.update(Progress(stream=1, steps=steps(2, 5)), now=510.0)
    assert state.seconds_left == pytest.approx(6245 * 2.0)
    state.update(Progress(stream=2, began_at=5), now=900.0)
    state.update(Progress(stream=2, began_at=5, steps=steps(6, 6, seconds=500.0)), now=1010.0)
    assert state.seconds_left == pytest.approx(6244 * 2.0)


def test_the_tokens_of_earlier_starts_count_against_the_limit():
    state = RunState(spec_of(max_tokens=1_000_000), steps(1, 900), now=0.0)
    assert math.isnan(state.seconds_left)
    state.update(Progress(steps=steps(901, 910)), now=20.0)
    assert state.tokens == 910_000
    assert state.seconds_left == pytest.approx(180.0)
    assert state.run_seconds == pytest.approx(1820.0)


def test_the_domains_of_earlier_starts_count():
    corpus = CorpusSpec(domains={"prose": {"paths": ["p"]}})
    spec = SPEC.model_copy(update={"corpus": corpus})
    more = {"domain_tokens": (1000,), "domain_passages": (4,), "domain_bytes": (400,), "source_nats": (1.0,)}
    more |= dict.fromkeys(("domain_source_nats", "domain_source_bytes"), (1.0,))
    more |= dict.fromkeys(("domain_source_wins", "domain_source_covered_rows"), (1.0,))
    state = RunState(spec, steps(1, 3, **more), now=0.0)
    state.update(Progress(steps=steps(4, 5, **more)), now=20.0)
    assert state.domains[0].bytes == 5 * 400
    state.update(Progress(void_after=4), now=21.0)
    assert state.domains[0].bytes == 4 * 400


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [({}, 60.0), ({"max_tokens": 30_000}, 20.0), ({"max_hours": 0.02}, 32.0), ({"max_tokens": 1}, 0.0)],
)
def test_the_time_left_ends_at_the_first_limit(limits, seconds):
    state = RunState(spec_of(max_steps=50, **limits), now=0.0)
    state.update(Progress(steps=steps(1, 20)), now=60.0)
    assert state.seconds_left == pytest.approx(seconds)


@given(
    durations=st.lists(st.tuples(st.floats(0.1, 9.0), st.floats(0.0, 900.0)), min_size=2, max_size=60),
    silence=st.floats(0.0, 1e5),
)
def test_the_time_left_is_within_the_bounds_of_the_steps_and_pauses(durations, silence):
    """Steps of some seconds, each tenth followed by a checkpoint that takes longer; then nothing for a while."""
    elapsed, records = 0.0, []
    for step, (seconds, pause) in enumerate(durations, start=1):
        elapsed += seconds
        records.append(step_record(step, seconds=seconds, elapsed_seconds=elapsed))
        elapsed += pause if step % 10 == 0 else 0.0
    state = RunState(spec_of(max_steps=1000, checkpoint_every_steps=10), now=0.0)
    state.update(Progress(steps=tuple(records)), now=elapsed)
    state.update(Progress(), now=elapsed + silence)
    left, seconds = 1000 - len(records), [seconds for seconds, _ in durations[1:]]
    checkpoints = 100 - len(records) // 10
    least, most = left * min(seconds), left * max(seconds) + checkpoints * max(pause for _, pause in durations)
    assert least - 1e-6 <= state.seconds_left <= most + 1e-6
