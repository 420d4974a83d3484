"""The metrics of a step, and their way to Ray, TensorBoard and Weights & Biases."""

import importlib.util
import math
import sys
from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from engine.errors import PreflightError
from engine.history.result import Committed, Progress, StageTotals
from engine.reporting.measurements import STEP_FAMILIES, measurements
from engine.reporting.trackers import TensorBoardLog, WandbLog, chosen_trackers, tracker_faults
from engine.spec.loading import load_spec, parse
from pipelines.cluster.ray_metrics import RayMetrics
from pipelines.run.preflight import preflight
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(60)


def step(number):
    return step_record(
        number,
        loss=3.0 / number,
        lm_loss=4.0,
        fusion_loss=math.nan,
        grad_norm=1.5,
        tokens=440,
        passages=40,
        bytes=2000,
        padding=0.125,
        fused_rows=300,
        fusion_gain=0.75,
        fusion_weight=0.5,
        source_nats=(1500.0, 0.0),
        source_bytes=(2000, 0),
        source_wins=(10, 30),
        source_covered_rows=(320, 0),
        domain_tokens=(320, 120),
        domain_passages=(20, 20),
        domain_bytes=(1500, 500),
        domain_lm_nats=(1800.0, 400.0),
        domain_source_nats=(1200.0, 0.0, 300.0, 0.0),
        domain_source_bytes=(1500, 0, 500, 0),
        domain_source_wins=(5.0, 15.0, 5.0, 15.0),
        domain_source_covered_rows=(270, 0, 50, 0),
        elapsed_seconds=10.0 * number,
        retired=("gpt2",) if number == 2 else (),
        held_out={"docs": 2.5} if number == 2 else {},
    )


def spec(output_dir="outputs", **run):
    return parse(
        {
            "run": {"name": "trial", "output_dir": str(output_dir), **run},
            "corpus": {"domains": {"docs": {"paths": ["d.jsonl"]}, "code": {"paths": ["c.jsonl"], "weight": 3.0}}},
            "target_model": {"checkpoint": "target"},
            "source_models": [{"name": "llama", "checkpoint": "a"}, {"name": "gpt2", "checkpoint": "b"}],
            "fusion": {"rule": "min_ce"},
        }
    )


EXPECTED = {
    ("loss", "objective"): 1.5,
    ("loss", "causal_lm"): 4.0,
    ("gradient_norm", ""): 1.5,
    ("learning_rate", ""): 1e-3,
    ("tokens_per_second", ""): 220.0,
    ("step_seconds", ""): 2.0,
    ("exposed_wait_seconds", ""): 0.5,
    ("packing_utilisation", ""): 0.875,
    ("fused_share", ""): 0.75,
    ("fusion_gain", ""): 0.75,
    ("fusion_weight", ""): 0.5,
    ("source_gain", "llama"): 4.0 * 400 / 2000 - 0.75,
    ("source_nats_per_byte", "llama"): 0.75,
    ("source_retired", "gpt2"): 2,
    ("source_win_rate", "llama"): 0.25,
    ("source_win_rate", "gpt2"): 0.75,
    ("source_coverage", "llama"): 0.8,
    ("source_coverage", "gpt2"): 0.0,
    ("domain_share", "code"): 0.75,
    ("domain_share", "docs"): 0.25,
    ("domain_source_nats_per_byte", "code/llama"): 0.8,
    ("domain_source_nats_per_byte", "docs/llama"): 0.6,
    ("domain_source_gain", "code/llama"): 1800 / 1500 - 0.8,
    ("domain_source_gain", "docs/llama"): 400 / 500 - 0.6,
    ("domain_source_win_rate", "code/llama"): 0.25,
    ("domain_source_win_rate", "code/gpt2"): 0.75,
    ("domain_source_win_rate", "docs/llama"): 0.25,
    ("domain_source_win_rate", "docs/gpt2"): 0.75,
    ("domain_source_coverage", "code/llama"): 0.9,
    ("domain_source_coverage", "code/gpt2"): 0.0,
    ("domain_source_coverage", "docs/llama"): 0.5,
    ("domain_source_coverage", "docs/gpt2"): 0.0,
    ("held_out_bits_per_byte", "docs"): 2.5,
}


def test_a_step_has_all_metrics_and_missing_numbers_are_left_out():
    found = {(name, label): value for name, label, value in measurements(spec(), step(2))}
    assert found == pytest.approx(EXPECTED)
    assert {name for name, _ in found} == set(STEP_FAMILIES)


class Recorder:
    """Replaces a metric of Ray and keeps the values in ``written``."""

    def __init__(self, written, name, description, *_, tag_keys=None):
        assert description
        self._written, self._name = written, name

    def record(self, value, tags):
        self._written[self._name, *sorted(tags.items())].append(value)

    set = inc = observe = record


def test_ray_gets_gauges_counters_and_histograms(monkeypatch):
    written = defaultdict(list)
    for kind in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(f"pipelines.cluster.ray_metrics.{kind}", partial(Recorder, written))
    monkeypatch.setattr("pipelines.cluster.ray_metrics.time.time", lambda: 1000.0)
    metrics = RayMetrics(spec())
    metrics.see(Progress(steps=(step(1), step(2)), stages=(StageTotals("llama", 40, 500, 3.0, 1.0, 2, 2),)), 0.0)
    later = (StageTotals("llama", 60, 700, 4.0, 1.0, 2, 3),)
    counts = {"num_skipped": 3, "num_left_out": 2, "num_not_finite": 1}
    metrics.see(Progress(stages=later, checkpoints=(Committed(1, 5.0), Committed(2, 6.5)), **counts), 1.0)
    metrics.close()
    assert not any("needed" in name for name, *_ in written), "before training has a rate"
    run = ("run", "trial")
    expected = {
        ("loss", ("part", "objective"), run): [3.0, 1.5],
        ("step_seconds", run): [2.0, 2.0],
        ("steps", run): [1, 1],
        ("learned_tokens", run): [440, 440],
        ("held_out_bits_per_byte", ("domain", "docs"), run): [2.5],
        ("source_win_rate", run, ("source", "gpt2")): [0.75, 0.75],
        ("learned_domain_bytes", ("domain", "code"), run): [1500, 1500],
        ("domain_source_coverage", ("domain", "docs"), run, ("source", "llama")): [0.5, 0.5],
        ("stage_tokens", run, ("stage", "llama")): [500, 200],
        ("stage_wait_seconds", run, ("stage", "llama")): [1.0],
        ("stage_replicas", run, ("stage", "llama")): [2, 2],
        ("stage_restarts", run, ("stage", "llama")): [0, 1],
        ("last_checkpoint_timestamp_seconds", run): [1000.0, 6.5],
        ("training", run): [1, 1, 0],
        ("skipped_rows", run): [0, 3],
        ("left_out_passages", run): [0, 2],
        ("not_finite_steps", run): [0, 1],
    }
    for (name, *tags), values in expected.items():
        assert written[f"knowledge_fusion_{name}", *tags] == pytest.approx(values), name


@pytest.mark.parametrize(
    ("address", "refused", "waits"), [("", 1, 0), ("10.0.0.1:6379", 0, 0), ("10.0.0.1:6379", 1, 1)]
)
def test_on_a_cluster_the_end_waits_until_a_loss_that_was_not_finite_is_read(monkeypatch, address, refused, waits):
    written, slept, said = defaultdict(list), [], []
    for kind in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(f"pipelines.cluster.ray_metrics.{kind}", partial(Recorder, written))
    monkeypatch.setattr("pipelines.cluster.ray_metrics.time.sleep", slept.append)
    monkeypatch.setenv("RAY_ADDRESS", address)
    metrics = RayMetrics(spec(), said.append)
    metrics.see(Progress(num_not_finite=refused), 0.0)
    metrics.close()
    assert (len(slept), len(said)) == (waits, waits)
    assert written["knowledge_fusion_training", ("run", "trial")] == [1, 0], "no other alert waits for the run"


def test_ray_gets_the_replicas_that_keep_training_busy(monkeypatch):
    written = defaultdict(list)
    for kind in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(f"pipelines.cluster.ray_metrics.{kind}", partial(Recorder, written))
    metrics = RayMetrics(spec())
    for number in (1, 2):
        source = StageTotals("llama", 40, 500, 10.0 * number, 0.0, 2, 2)
        train = StageTotals("train", 40, 500, 4.0 * number, 6.0 * number, 1, 1)
        metrics.see(Progress(steps=(step(number),), stages=(source, train)), 10.0 * number)
    name = "knowledge_fusion_stage_replicas_needed"
    assert written[name, ("run", "trial"), ("stage", "llama")] == [5], "2 / 0.4"


def events(folder):
    """All events of all files, oldest file first: each is length, checksum, message, checksum."""
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            message, checksum = data[12 : 12 + length], data[12 + length : 16 + length]
            assert masked_crc32c(message) == int.from_bytes(checksum, "little")
            yield Event.FromString(message)
            data = data[16 + length :]


def test_tensorboard_gets_every_step_at_its_time(tmp_path):
    log = TensorBoardLog(spec(tmp_path))
    log.see(Progress(steps=(step(1), step(2))), 0.0)
    log.close()
    found = {
        (event.step, value.tag): (value.simple_value, event.wall_time)
        for event in events(tmp_path / "logs" / "tensorboard")
        for value in event.summary.value
    }
    names = {f"{name}/{label}" if label else name: value for (name, label), value in EXPECTED.items()}
    assert {tag: found[2, tag][0] for tag in names} == pytest.approx(names)
    assert found[1, "loss/objective"][0] == 3.0
    assert found[2, "learning_rate"][1] - found[1, "learning_rate"][1] == pytest.approx(10.0, abs=0.1)


def test_tensorboard_hides_the_steps_that_a_restart_lost(tmp_path):
    for first in (1, 3):
        log = TensorBoardLog(spec(tmp_path))
        log.see(Progress(steps=(step(first),)), 0.0)
        log.close()
    marks = [event.step for event in events(tmp_path / "logs" / "tensorboard") if event.HasField("session_log")]
    assert marks == [1, 3]


def test_tensorboard_hides_the_steps_that_a_restart_of_the_workers_has_made_void(tmp_path):
    log = TensorBoardLog(spec(tmp_path))
    log.see(Progress(steps=(step(1), step(2), step(3))), 0.0)
    log.see(Progress(void_after=1), 1.0)
    log.see(Progress(steps=(step(2),)), 2.0)
    log.close()
    marks = [event.step for event in events(tmp_path / "logs" / "tensorboard") if event.HasField("session_log")]
    assert marks == [1, 2]


def test_wandb_gets_every_step_in_a_resumed_run(monkeypatch, tmp_path):
    calls, axes = [], []
    run = SimpleNamespace(
        log=lambda values: calls.append(values),
        finish=lambda: calls.append("finished"),
        define_metric=lambda name, step_metric="": axes.append((name, step_metric)),
    )
    fake = SimpleNamespace(init=lambda **how: calls.append(how) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        log = WandbLog(spec(tmp_path, wandb_project="fusion"))
        log.see(Progress(steps=(step(2),)), 0.0)
        log.close()
    first, values, finished, second = calls[:4]
    assert (first["project"], first["name"], first["resume"]) == ("fusion", "trial", "allow")
    assert first["config"]["fusion"]["rule"] == "min_ce"
    assert first["id"] == second["id"]
    assert (values["step"], values["loss/objective"], values["source_win_rate/gpt2"]) == (2, 1.5, 0.75)
    assert axes[:2] == [("step", ""), ("*", "step")], "its own steps only grow"
    assert finished == "finished"
    assert list(tmp_path.iterdir()) == [], "its own files lie elsewhere"


def test_only_the_chosen_trackers_write(tmp_path):
    assert chosen_trackers(spec()) == []
    assert [type(log) for log in chosen_trackers(spec(tmp_path, tensorboard=True))] == [TensorBoardLog]
    assert list(tmp_path.iterdir()) == [], "no file before the first step"


def test_missing_requirements_of_trackers_are_preflight_faults(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec  # of the libraries that the other checks need
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else find_spec(name))
    overrides = [f"run.output_dir={tmp_path / 'out'}", "run.wandb_project=fusion"]
    with pytest.raises(PreflightError) as caught:
        preflight(load_spec("pipelines/specs/quickstart.yaml", overrides))
    assert str(caught.value).splitlines()[1:] == [
        "  - run.wandb_project: is 'fusion', but the package wandb is not installed; "
        "pip install wandb where the driver runs, or unset it"
    ]
    assert not (tmp_path / "out").exists()


def test_event_files_cannot_go_to_every_filesystem():
    (fault,) = tracker_faults(spec("memory://runs/trial", tensorboard=True))
    assert str(fault) == (
        "run.tensorboard: event files cannot be written to memory://runs/trial; "
        "use a local run.output_dir, s3:// or gs://, or set it to false"
    )
