"""Totals of a run: the gain of a source at the beginning and at the end of it, and the sentence when there is none."""

import math

import pytest

from engine.history.result import RunResult
from engine.history.totals import source_gain, source_totals
from engine.reporting.figures import run_figures, source_rows
from engine.spec.loading import parse
from tests.support.step_records import step_record

SPEC = {
    "run": {"name": "trial", "output_dir": "outputs"},
    "corpus": {"paths": ["corpus.jsonl"]},
    "target_model": {"checkpoint": "target"},
    "source_models": [{"name": "llama", "checkpoint": "a"}, {"name": "gpt2", "checkpoint": "b"}],
}


def step(number: int, lm_loss: float):
    """96 rows on 400 bytes; one source at 1 nat per byte, one that has scored nothing."""
    nothing = {"source_wins": (0.0, 0.0), "source_covered_rows": (90, 0), "source_left_out": (0, 4)}
    return step_record(number, lm_loss=lm_loss, source_nats=(400.0, 0.0), source_bytes=(400, 0), **nothing)


def test_the_gain_is_the_targets_nats_per_byte_less_the_sources():
    assert source_gain(step(1, lm_loss=5.0), 0) == pytest.approx(5.0 * 96 / 400 - 1.0)
    assert math.isnan(source_gain(step(1, lm_loss=5.0), 1))


def test_a_source_that_the_target_has_caught_up_with_is_named():
    sources = source_totals(parse(SPEC), [step(1, lm_loss=5.0), step(2, lm_loss=4.0)])
    result = RunResult(*["trial"] * 5, 2, 8, 200, 800, 4.0, 0, sources=sources)
    figures = dict(run_figures(result).rows)
    assert "as well as llama: no longer worth the work" in figures["caught up"]
    assert source_rows(result).rows[0][5] == "0.200 -> -0.040"


def test_a_run_has_the_gains_of_its_first_and_last_tenth():
    history = [step(number, lm_loss=6.0 - number / 10) for number in range(1, 31)]
    llama, gpt2 = source_totals(parse(SPEC), history)
    first, last = ([6.0 - number / 10 for number in numbers] for numbers in ((1, 2, 3), (28, 29, 30)))
    assert llama.gains == pytest.approx([sum(losses) / 3 * 96 / 400 - 1.0 for losses in (first, last)])
    assert all(math.isnan(gain) for gain in gpt2.gains)
