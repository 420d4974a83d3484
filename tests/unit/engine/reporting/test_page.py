"""The report is one page that holds every number, needs no other file and parses as HTML."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from engine.history.result import (
    EvaluationResult,
    LeftOut,
    Progress,
    RunResult,
    SkippedRow,
    SourceTotals,
    StageTotals,
)
from engine.history.sampling import is_sampled
from engine.history.series import StepSeries
from engine.reporting.charts import MOST_BUCKETS, smoothed, thinned
from engine.reporting.figures import slowest_stage
from engine.reporting.page import MOST_BYTES, MOST_SKIPPED_ROWS, Status, render_report, write_page
from engine.reporting.plots import plots
from engine.reporting.token_view import data_in, token_data
from engine.spec.loading import parse
from pipelines.run.result import result_of
from tests.support.step_records import step_record
from tests.unit.engine.reporting.test_token_view import look

pytestmark = pytest.mark.timeout(60)

DONE = Status("done", written=1.8e9)

SOURCES = ("llama-docs", "gpt2-code")
SPEC = parse(
    {
        "run": {"name": "trial", "output_dir": "outputs"},
        "corpus": {"paths": ["corpus/<all>.jsonl"]},
        "target_model": {"checkpoint": "models/target"},
        "source_models": [{"name": name, "checkpoint": f"models/{name}"} for name in SOURCES],
        "fusion": {"rule": "min_ce"},
    }
)


def step(number, sources=2):
    return step_record(
        number,
        loss=7.0 / number,
        lm_loss=8.0 / number,
        fusion_loss=math.nan if number == 3 else 6.0 / number,
        tokens=440,
        passages=40,
        bytes=2000,
        fused_rows=300,
        source_nats=(1500.0, 1000.0)[:sources],
        source_bytes=(2000, 2000)[:sources],
        source_wins=(10, 30)[:sources],
        source_covered_rows=(320, 360)[:sources],
        source_left_out=(0, 0)[:sources],
    )


def drawn(result, spec=SPEC):
    return plots(result, StepSeries(spec).add(result.history))


@pytest.fixture
def result():
    return RunResult(
        name="trial",
        output_dir="outputs",
        export_dir="outputs/export",
        report_path="outputs/report.html",
        spec_path="outputs/spec.yaml",
        steps=12,
        passages=480,
        tokens=5280,
        bytes=24000,
        wall_seconds=125.0,
        spilled_bytes=0,
        sources=(SourceTotals("llama-docs", 0.75, 0.25, 0.8), SourceTotals("gpt2-code", 0.5, 0.75, 0.9)),
        history=tuple(step(number) for number in range(1, 13)),
        stages=(
            StageTotals("corpus", 480, 0, 1.0, 99.0, 1, 1),
            StageTotals("llama-docs", 480, 6000, 40.0, 60.0, 1, 1),
            StageTotals("train", 480, 5280, 18.0, 6.0, 1, 1),
        ),
        skipped=(SkippedRow("corpus/a.jsonl", 7, "not JSON: <b>&"),),
        evaluation=EvaluationResult(
            bits_per_byte={
                "target before": {"docs": 2.5, "code": 3.0},
                "source gpt2-code": {"docs": 2.0, "code": 1.25},
                "fused target": {"docs": 1.75, "code": 1.375},
            }
        ),
    )


class Page(HTMLParser):
    """Collects the texts and the references of a page, and checks that elements are closed in order."""

    EMPTY = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.fetched, self.ids, self.bold = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data") and not value.startswith("#"):
                self.fetched.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())
        if "strong" in self.open:
            self.bold.append(data)


def test_the_page_holds_every_number(result):
    page = Page(render_report(SPEC, result, DONE))
    for text in (
        "trial",
        "2 min 05 s",
        "5,280 tokens in 480 passages, 24,000 bytes",
        "42 tokens/s, loading and evaluation included",
        "7.0000 -> 0.5833 nats per row",
        "24.0 s, 220 tokens/s, waiting for data 25.0 %",
        "0.7500",  # nats per byte of the first source
        "0.7213",  # bits per byte of the second: 0.5 / ln 2
        "25.0 %",
        "90.0 %",
        "1 min 39 s",  # that the corpus has waited
        "150",  # tokens/s of llama-docs, were it never to wait
        "1.3750",
        "1.6250",  # mean of the domains
        "not JSON: <b>&",
        "outputs/export",
    ):
        assert text in page.texts, text
    assert any("corpus/<all>.jsonl" in text for text in page.texts), "the spec, escaped"
    assert any("fused from llama-docs, gpt2-code by min_ce, 128 entries a row" in text for text in page.texts)


def test_the_best_of_every_column_is_marked(result):
    assert Page(render_report(SPEC, result, DONE)).bold == ["1.2500", "1.7500", "1.5625"]


def test_the_page_needs_no_other_file(result):
    text = render_report(SPEC, result, DONE)
    page = Page(text)
    assert page.fetched == []
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert len(page.ids) == len(set(page.ids)), "ids are unique over all plots"


def test_every_plot_is_well_formed_and_takes_the_colours_of_the_page(result):
    found = drawn(result)
    assert len(found) == 10
    for caption, svg in found.items():
        ElementTree.fromstring(svg)
        assert "currentColor" in svg, caption
        assert "#010203" not in svg
    losses = next(svg for caption, svg in found.items() if caption.startswith("Loss"))
    assert all(label in losses for label in ("objective", "causal LM", "fusion", "nats per row"))


def test_curves_show_the_numbers_of_the_steps(result):
    steady = replace(result, history=tuple(replace(step(number), lm_loss=4.0) for number in range(1, 13)))
    svg = next(svg for caption, svg in drawn(steady).items() if caption.startswith("Win rate"))
    curves = [path for path in re.findall(r' d="([^"]+)"', svg) if len(re.findall("[ML]", path)) == 12]
    level = [set(re.findall(r"[ML] [\d.]+ ([\d.]+)", path)) for path in curves]
    assert len(level) == 4 and len(set.union(*level)) == 2, (
        "two sources with 25 % and 75 % of the passages run level, each on its own height"
    )


def test_evaluations_during_training_have_one_curve_per_domain(result):
    bits = {4: {"docs": 2.5, "code": 2.0}, 8: {"docs": 2.25, "code": 1.5}, 12: {"docs": 2.3, "code": 1.25}}
    history = tuple(replace(record, held_out=bits.get(record.step, {})) for record in result.history)
    evaluated = replace(result, history=history, stopped_by="no improvement", exported_step=8)
    caption = "Held-out bits per byte of the target during training."
    svg = drawn(evaluated)[caption]
    assert all(label in svg for label in ("docs", "code", "bits per byte"))
    curves = [re.findall(r"[ML] ([\d.]+) ([\d.]+)", path) for path in re.findall(r' d="([^"]+)"', svg)]
    docs = next(points for points in curves if len(points) == 3)
    heights = [float(y) for _, y in docs]
    assert heights[0] < heights[2] < heights[1], "SVG counts downwards: the lowest value stands lowest"
    page = Page(render_report(SPEC, evaluated, DONE))
    for text in (
        caption,
        "2.0000 after step 4 -> 1.2500 bits per byte after step 12",
        "the weights of step 8, the best on held-out text",
        "no improvement: the held-out loss stopped falling (evaluation.patience)",
        "90.0 % of the blocks' places hold a token to learn",
    ):
        assert text in page.texts, text


@pytest.mark.parametrize("steps", [0, 1, 2, 500])
def test_short_and_long_runs_have_a_report(result, steps):
    history = tuple(step(number) for number in range(1, steps + 1))
    stages = result.stages if steps else ()
    text = render_report(SPEC, replace(result, history=history, stages=stages, evaluation=EvaluationResult()), DONE)
    page = Page(text)
    assert ("Over the run" in page.texts) == bool(steps)
    assert not any("Held-out" in words for words in page.texts)
    assert len(text) < 800_000


def test_a_baseline_without_sources_has_a_report(result):
    target = SPEC.target_model.model_copy(update={"checkpoint": "/models/of/mine/target"})
    spec = SPEC.model_copy(update={"source_models": (), "target_model": target})
    history = tuple(replace(step(number, sources=0), fusion_loss=math.nan, fused_rows=0) for number in (1, 2, 3))
    baseline = replace(result, sources=(), history=history)
    page = Page(render_report(spec, baseline, DONE))
    assert "target, trained further on the causal LM loss alone." in page.texts, "without local folders"
    assert "Source models on the learned passages" not in page.texts
    assert len(drawn(baseline, spec)) == 6


def test_many_skipped_rows_are_counted_not_listed(result):
    many = tuple(SkippedRow("corpus/a.jsonl", row, "not JSON") for row in range(1, 1001))
    page = Page(render_report(SPEC, replace(result, skipped=many, num_skipped=1000), DONE))
    assert f"Skipped rows (the first {MOST_SKIPPED_ROWS} of 1,000)" in page.texts
    assert page.texts.count("not JSON") == MOST_SKIPPED_ROWS


def test_a_picture_of_the_first_rows_has_the_numbers_of_all(result):
    """The monitor lists a hundred rows while a run works, and counts all."""
    rows = tuple(SkippedRow("corpus/a.jsonl", row, "not JSON") for row in range(1, 101))
    passages = tuple(LeftOut("gpt2-code", f"0/a:{row}", "too long") for row in range(100))
    picture = Progress(skipped=rows, left_out=passages, num_skipped=5000, num_left_out=1200)
    running = result_of(SPEC, [step(1)], picture, 10.0, None)
    page = Page(render_report(SPEC, running, DONE))
    for text in (
        "5,000",
        "1,200 passages, one of them: too long",
        "Skipped rows (the first 100 of 5,000)",
        "Passages without a source (the first 100 of 1,200)",
    ):
        assert text in page.texts, text
    assert "spilled to disk" not in page.texts, "Ray is asked at the end"


def test_the_report_is_written_to_any_filesystem(result, tmp_path):
    import fsspec

    local = tmp_path / "new" / "folder" / "report.html"
    page = render_report(SPEC, result, DONE)
    for url in (str(local), str(local), "memory://runs/trial/report.html"):
        write_page(page, url)
        with fsspec.open(url, "r", encoding="utf8") as file:
            assert file.read() == page == render_report(SPEC, result, DONE), "the same run gives the same page"
    assert [path.name for path in local.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        ("s3", {"ContentType": "text/html; charset=utf-8", "CacheControl": "no-cache"}),
        (
            "gs",  # the arguments of gcsfs.core.GCSFile
            {
                "content_type": "text/html; charset=utf-8",
                "fixed_key_metadata": {"cache_control": "no-cache"},
            },
        ),
    ],
)
def test_a_store_is_told_to_serve_the_newest_page(monkeypatch, protocol, told):
    opened_with = []

    class Store(MemoryFileSystem):
        def _open(self, path, mode="rb", block_size=None, autocommit=True, cache_options=None, **kwargs):
            opened_with.append(kwargs)
            return super()._open(path, mode)

    Store.protocol = (protocol, f"{protocol}a")
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (Store(), url.removeprefix(f"{protocol}:/")))
    write_page("<p>", f"{protocol}://runs/trial/report.html")
    assert opened_with == [told]


def test_smoothing_is_a_moving_average_that_leaves_out_gaps():
    values = [1.0] * 50 + [math.nan] * 2 + [1.0] * 50
    assert smoothed(values) == pytest.approx(np.ones(102))
    ramp = np.arange(100.0)
    assert smoothed(ramp)[3:-3] == pytest.approx(ramp[3:-3]), "a straight line stays one"
    noisy = np.random.default_rng(0).normal(size=400)
    assert smoothed(noisy).std() < 0.35 * noisy.std()
    assert np.isnan(smoothed([math.nan, math.nan])).all()
    assert smoothed([5.0]).tolist() == [5.0]


@pytest.mark.parametrize(
    ("busy", "expected"),
    [
        (
            {"gpt2-code": 90, "train": 30},
            "gpt2-code, 1 min 30 s of work for a replica: more replicas of it would help most",
        ),
        ({"gpt2-code": 4, "train": 8, "corpus": 1}, "train, 8.0 s of work for a replica: the others wait for it"),
        ({}, "-"),
    ],
)
def test_the_slowest_stage_is_named(result, busy, expected):
    stages = tuple(
        StageTotals(name, 1, 1, busy_seconds=2 * seconds, wait_seconds=9.0, replicas=2, starts=2)
        for name, seconds in busy.items()
    )
    sources = (SourceTotals("gpt2-code", 1.0, 1.0, 1.0),)
    assert slowest_stage(replace(result, stages=stages, sources=sources)) == expected


def test_thinning_keeps_the_lowest_and_the_highest_of_every_stretch():
    values = np.random.default_rng(0).normal(size=100_000)
    values[[12_345, 77_777]] = 50.0, -50.0
    values[40_000:60_000] = np.nan
    places = thinned(values)
    assert len(places) <= 2 * MOST_BUCKETS + 2
    assert {0, 12_345, 77_777, 99_999} <= set(places.tolist())
    assert (np.diff(places) > 0).all()
    size = math.ceil(len(values) / MOST_BUCKETS)
    for start in range(0, 39_000, size):
        stretch, kept = values[start : start + size], values[places[(places >= start) & (places < start + size)]]
        assert (kept.min(), kept.max()) == (stretch.min(), stretch.max())
    assert np.isnan(values[places]).any(), "a gap stays one"
    assert thinned(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]


def test_a_hundred_thousand_steps_make_a_small_page(result):
    history = tuple(step(number) for number in range(1, 100_001))
    text = render_report(SPEC, replace(result, history=history, steps=len(history)), DONE)
    assert len(text.encode("utf8")) < 1_000_000


def mixture(steps, sources):
    """The spec of sixteen domains and the history of a run whose larger domains have higher numbers."""
    names = [f"domain-{number:02d}" for number in range(16)]
    spec = parse(
        {
            "run": {"name": "mixture", "output_dir": "outputs"},
            "corpus": {"domains": {name: {"paths": [f"{name}.jsonl"], "weight": 1.0} for name in names}},
            "target_model": {"checkpoint": "models/target"},
            "source_models": [{"name": f"source-{index}", "checkpoint": f"models/{index}"} for index in range(sources)],
        }
    )
    random = np.random.default_rng(0)
    spread = {name: [] for name in ("source_nats", "domain_lm_nats", "domain_source_nats")}
    widths = dict(zip(spread, (sources, 16, 16 * sources), strict=True))
    for name, width in widths.items():
        spread[name] = [tuple((100 + random.random(width)).tolist()) for _ in range(101)]
    counts = {
        **dict.fromkeys(("source_bytes", "source_wins", "source_covered_rows", "source_left_out"), (7,) * sources),
        "domain_bytes": tuple(range(100, 116)),
        **dict.fromkeys(("domain_tokens", "domain_passages"), (7,) * 16),
        **dict.fromkeys(
            ("domain_source_bytes", "domain_source_wins", "domain_source_covered_rows"), (7,) * 16 * sources
        ),
    }
    first = step_record(1, **counts)

    def numbers(number):
        return {name: values[number * number % 101] for name, values in spread.items()}

    held_out = {number: dict.fromkeys(names, 2.0 + math.sin(number)) for number in range(0, steps + 1, 50)}
    history = [
        replace(first, step=number, loss=math.sin(number), held_out=held_out.get(number, {}), **numbers(number))
        for number in range(1, steps + 1)
    ]
    return spec, history


@pytest.mark.timeout(240)
def test_the_page_of_many_domains_sources_and_steps_is_bounded():
    steps, sources = 100_000, 8
    spec, history = mixture(steps, sources)
    looks = []
    for number in filter(lambda number: is_sampled(number, steps), range(1, steps + 1)):
        wide = look(number, rows=150)
        looks += [wide | {"passage": f"{number}:{again}", "sources": wide["sources"] * sources} for again in range(2)]
    result = result_of(spec, history, Progress(), 60.0, None)
    data = token_data(spec, looks, [b"a", b"b", b"c"])
    page = render_report(spec, result, DONE, data)
    assert 1_000_000 < len(page.encode("utf8")) <= MOST_BYTES == 3_000_000
    assert len(data_in(page)["passages"]) >= 8
    drawn = re.findall(r"Gain in the domain (domain-\d\d)", page)
    assert drawn == [f"domain-{number:02d}" for number in range(8, 16)], "the largest"
    smaller = ", ".join(f"domain-{number:02d}" for number in range(8))
    assert f"The smaller domains are in the tables only: {smaller}." in page


def test_the_page_of_a_running_run_says_so_and_reloads(result):
    status = Status("running, step 12 of 40, at most 3 min 20 s left", written=1.8e9, seconds_between=30.0)
    text = render_report(SPEC, replace(result, stopped_by=None), status)
    page = Page(text)
    assert status.words in page.texts
    assert "last written 15 January 2027, 08:00:00 UTC" in page.texts
    assert 'data-written="1800000000" data-next="30"' in text
    assert "ended by" not in page.texts
    assert 'data-next="0"' in render_report(SPEC, result, DONE)
