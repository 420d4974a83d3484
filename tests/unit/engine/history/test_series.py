"""The arrays of a run's steps give what plain loops over the steps give, however the steps come in."""

import math
from dataclasses import replace

import numpy as np
import pytest

from engine.history import series as series_module
from engine.history.series import NUMBERS, OF_SOURCES, StepSeries
from engine.history.totals import mean_gain, source_gain
from engine.spec.loading import parse
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(60)

SOURCES, DOMAINS = ("llama", "gpt2"), ("code", "docs", "web")
SPEC = parse(
    {
        "run": {"name": "trial", "output_dir": "outputs"},
        "corpus": {"domains": {name: {"paths": [f"{name}.jsonl"], "weight": 1.0} for name in DOMAINS}},
        "target_model": {"checkpoint": "target"},
        "source_models": [{"name": name, "checkpoint": name} for name in SOURCES],
        "fusion": {"rule": "min_ce"},
    }
)


def steps(count):
    """Random steps; some lack bytes of a source or a domain, the first ones the losses of the domains."""
    random = np.random.default_rng(0)

    def numbers(width):
        return tuple(random.random(width).tolist())

    def counts(width):
        return tuple(random.integers(0, 3, width).tolist())

    return [
        step_record(
            step,
            lm_loss=random.random(),
            tokens=100 + step,
            source_nats=numbers(2),
            source_bytes=counts(2),
            source_wins=numbers(2),
            source_covered_rows=counts(2),
            source_left_out=counts(2),
            domain_tokens=counts(3),
            domain_passages=counts(3),
            domain_bytes=counts(3),
            repeated_bytes=step % 3,
            domain_repeated_bytes=(0, step % 2, step % 5) if step > 4 else (),
            domain_lm_nats=numbers(3) if step > 4 else (),
            domain_source_nats=numbers(6),
            domain_source_bytes=counts(6),
            domain_source_wins=numbers(6),
            domain_source_covered_rows=counts(6),
            held_out={"docs": 1.0 / step} if step % 10 == 0 else {},
        )
        for step in range(1, count + 1)
    ]


def test_the_arrays_are_the_steps_fields_however_they_come_in(monkeypatch):
    monkeypatch.setattr(series_module, "STEPS_AT_ONCE", 7)
    history, series = steps(57), StepSeries(SPEC)
    for start, end in ((0, 1), (1, 30), (30, 30), (30, 57)):
        series.add(history[start:end])
        assert len(series) == end
    for name in NUMBERS + OF_SOURCES:
        assert series[name].tolist() == [
            list(value) if isinstance(value := getattr(record, name), tuple) else value for record in history
        ], name
    for index in range(2):
        expected = [source_gain(record, index) for record in history]
        np.testing.assert_array_equal(series.gains[:, index], expected)
        for domain in range(3):
            expected = [source_gain(record, index, domain) for record in history]
            np.testing.assert_array_equal(series.domain_gains[:, domain, index], expected)
    at_once = StepSeries(SPEC).add(history)
    assert repr(at_once.source_totals()) == repr(series.source_totals())


def test_the_totals_are_those_of_plain_loops():
    history = [*steps(57)[:-1], replace(steps(57)[-1], retired=("gpt2",))]
    series = StepSeries(SPEC).add(history)
    passages = sum(record.passages for record in history)
    rows = sum(record.tokens for record in history) - passages
    for index, found in enumerate(series.source_totals()):

        def total(name, index=index):
            return sum(getattr(record, name)[index] for record in history)

        assert found.name == SOURCES[index] and found.retired_after == (57 if index else 0)
        assert found.cross_entropy == pytest.approx(total("source_nats") / total("source_bytes"))
        assert found.win_rate == pytest.approx(total("source_wins") / passages)
        assert found.coverage == pytest.approx(total("source_covered_rows") / rows)
        assert found.left_out == total("source_left_out")
        assert found.gains == pytest.approx(first_and_last_gain(history, index), nan_ok=True)
    for domain, found in enumerate(series.domain_totals()):
        assert found.name == DOMAINS[domain]
        assert found.held_out == 1.0 / 50 if domain == 1 else math.isnan(found.held_out)
        assert found.tokens == sum(record.domain_tokens[domain] for record in history)
        assert found.bytes == sum(record.domain_bytes[domain] for record in history)
        for index, source in enumerate(found.sources):
            place = 2 * domain + index
            nats = sum(record.domain_source_nats[place] for record in history)
            assert source.cross_entropy == pytest.approx(
                nats / sum(record.domain_source_bytes[place] for record in history)
            )
            assert source.gains == pytest.approx(first_and_last_gain(history, index, domain), nan_ok=True)


def first_and_last_gain(history, index, domain=None):
    """The means over a tenth of the steps, up to the last one in which a source has a gain."""
    while not any(math.isfinite(source_gain(history[-1], source, domain)) for source in range(2)):
        history = history[:-1]
    tenth = len(history) // 10
    return mean_gain(history[:tenth], index, domain), mean_gain(history[-tenth:], index, domain)


def test_a_run_without_steps_has_totals_that_are_not_known():
    series = StepSeries(SPEC).add([])
    assert [math.isnan(source.cross_entropy) for source in series.source_totals()] == [True, True]
    assert [domain.tokens for domain in series.domain_totals()] == [0, 0, 0]
