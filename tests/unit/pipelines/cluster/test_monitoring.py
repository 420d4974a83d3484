"""The alerts fire when they should, and dashboard and alerts ask for metrics that a run exports."""

import json
import re
import subprocess
from functools import partial
from itertools import combinations

import pytest
import yaml

from engine.spec.loading import parse
from pipelines.cluster.ray_metrics import RayMetrics
from tests.support.paths import ROOT
from tests.support.prometheus import program

pytestmark = pytest.mark.timeout(60)

FOLDER = ROOT / "pipelines" / "cluster" / "monitoring"
PANELS = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]

#: What Prometheus calls the metrics of each kind of Ray's.
SUFFIXES = {"Gauge": ("",), "Counter": ("_total",), "Histogram": ("_bucket", "_count", "_sum")}


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_alerts():
    assert "4 rules found" in promtool("check", "rules", str(FOLDER / "alerts.yaml"))


def test_each_alert_fires_when_it_should():
    cases = ROOT / "tests/unit/pipelines/cluster/alerts.test.yaml"
    promtool("test", "rules", str(cases))
    fired = [
        check["alertname"]
        for case in yaml.safe_load(cases.read_text())["tests"]
        for check in case["alert_rule_test"]
        if "exp_alerts" in check
    ]
    assert set(fired) == {rule["alert"] for rule in ALERTS}


@pytest.fixture
def exported(monkeypatch):
    """The names of all metrics that a run with domains exports, as Prometheus sees them."""
    names = set()

    def record(suffixes, name, *_, **__):
        names.update(f"ray_{name}{suffix}" for suffix in suffixes)

    for kind, suffixes in SUFFIXES.items():
        monkeypatch.setattr(f"pipelines.cluster.ray_metrics.{kind}", partial(record, suffixes))
    spec = {
        "run": {"name": "trial", "output_dir": "outputs"},
        "corpus": {"domains": {"docs": {"paths": ["d.jsonl"]}}},
        "target_model": {"checkpoint": "target"},
        "objective": {"lm_loss_weight": 1.0},
    }
    RayMetrics(parse(spec))
    return names


def test_dashboard_and_alerts_ask_for_what_is_exported(exported):
    asked = {name for query in (*QUERIES, *(rule["expr"] for rule in ALERTS)) for name in re.findall(r"ray_\w+", query)}
    assert asked <= exported, asked - exported
    assert len(asked) >= 20


def test_every_query_is_of_the_chosen_runs():
    for query in QUERIES:
        assert query.count("ray_") == query.count('{run=~"$run"}'), query


def test_every_panel_has_a_name_a_meaning_and_a_place_of_its_own():
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart_across = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_down = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_across or apart_down, (one, other)
