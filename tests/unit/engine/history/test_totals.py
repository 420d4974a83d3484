"""Totals of a run: the gain of a source at the beginning and at the end of it, and the sentence when there is none."""

import math
from dataclasses import replace

import pytest

from engine.history.result import DomainTotals, RunResult, SourceTotals
from engine.history.series import StepSeries
from engine.history.totals import source_gain
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


def totals_of(history):
    return StepSeries(parse(SPEC)).add(history).source_totals()


def test_the_gain_is_the_targets_nats_per_byte_less_the_sources():
    assert source_gain(step(1, lm_loss=5.0), 0) == pytest.approx(5.0 * 96 / 400 - 1.0)
    assert math.isnan(source_gain(step(1, lm_loss=5.0), 1))


def test_text_that_the_target_has_read_before_says_nothing_of_a_source():
    again = replace(step(2, lm_loss=1.0), repeated_bytes=1)
    assert math.isnan(source_gain(again, 0))
    assert totals_of([step(1, lm_loss=5.0), again])[0].gains == pytest.approx((0.2, 0.2))
    domains = {"domain_lm_nats": (5.0, 5.0), "domain_bytes": (4, 4), "domain_repeated_bytes": (0, 4)}
    sources = {"domain_source_nats": (1.0,) * 4, "domain_source_bytes": (4,) * 4}
    of_domains = replace(step(1, lm_loss=5.0), **domains, **sources)
    assert source_gain(of_domains, 0, domain=0) == 1.0 and math.isnan(source_gain(of_domains, 0, domain=1))


def test_a_source_that_the_target_has_caught_up_with_is_named():
    sources = totals_of([step(1, lm_loss=5.0), step(2, lm_loss=4.0)])
    result = RunResult(*["trial"] * 5, 2, 8, 200, 800, 4.0, 0, sources=sources)
    figures = dict(run_figures(result).rows)
    assert "as well as llama: no longer worth the work" in figures["caught up"]
    assert source_rows(result).rows[0][5] == "0.200 -> -0.040"


def test_a_retired_source_is_named_with_its_last_step_and_not_as_caught_up():
    history = [step(1, lm_loss=5.0), replace(step(2, lm_loss=4.0), retired=("llama",))]
    result = RunResult(*["trial"] * 5, 2, 8, 200, 800, 4.0, 0, sources=totals_of(history))
    figures = dict(run_figures(result).rows)
    assert figures["retired"] == "llama after step 2: the target predicted the text as well"
    assert "caught up" not in figures


def test_a_source_that_leads_in_one_domain_has_not_been_caught_up_with():
    found = {"sources": (SourceTotals("llama", 1.0, math.nan, 1.0, gains=(0.5, -0.1)),)}
    for gain, is_named in ((0.2, False), (-0.2, True)):
        of_domain = DomainTotals("code", 1, 1, 1, 1.0, 1.0, (replace(found["sources"][0], gains=(0.5, gain)),))
        result = RunResult(*["trial"] * 5, 2, 8, 200, 800, 4.0, 0, domains=(of_domain,), **found)
        assert ("caught up" in dict(run_figures(result).rows)) == is_named


def test_a_run_has_the_gains_of_its_first_and_last_tenth():
    history = [step(number, lm_loss=6.0 - number / 10) for number in range(1, 31)]
    llama, gpt2 = totals_of(history)
    first, last = ([6.0 - number / 10 for number in numbers] for numbers in ((1, 2, 3), (28, 29, 30)))
    assert llama.gains == pytest.approx([sum(losses) / 3 * 96 / 400 - 1.0 for losses in (first, last)])
    assert all(math.isnan(gain) for gain in gpt2.gains)
