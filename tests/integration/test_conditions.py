"""Runs that end by each condition and are watched in each way, from a spec through the whole engine."""

import json
import math
import re
import time
import urllib.request
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import ray
from transformers import AutoTokenizer

from engine import run
from engine.reporting import watch
from tests.support.paths import ROOT
from tests.support.prometheus import Prometheus, is_installed, prometheus
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import byte_level_with_bos

pytestmark = [pytest.mark.timeout(360), pytest.mark.usefixtures("shared_ray")]

#: Id of ``<s>``.
BOS = 0

MONITORING = ROOT / "pipelines" / "cluster" / "monitoring"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A tiny random model; its tokenizer_config.json alone puts BOS before a text, as DeepSeek V3 does."""
    folder = tmp_path_factory.mktemp("target")
    byte_level_with_bos().save_pretrained(folder / "tokenizer")
    model = tiny_checkpoint(folder / "model", "llama", folder / "tokenizer")
    edit(Path(model, "tokenizer.json"), post_processor=None)
    edit(Path(model, "tokenizer_config.json"), add_bos_token=True)
    assert AutoTokenizer.from_pretrained(model)("a")["input_ids"][0] != BOS, "transformers leaves it aside"
    return model


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def write_spec(folder, target, **sections):
    """A tiny target, itself as two sources, on a corpus of three passes, about nine steps each."""
    rows = [json.dumps({"text": f"document {row} has some words of its own, {row * 7919}"}) for row in range(120)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    held_out = [json.dumps({"text": f"document {row} has other words, {row * 7907}"}) for row in range(24)]
    (folder / "held_out.jsonl").write_text("\n".join(held_out))
    source = {"name": "source", "checkpoint": target, "backend": "transformers", "probe": "off"}
    no_better = source | {"name": "no-better", "retire": True}
    spec = {
        "run": {"name": "conditions", "output_dir": str(folder / "out"), "deterministic": True},
        "corpus": {"paths": [str(folder / "corpus.jsonl")], "passes": 3},
        "target_model": {"checkpoint": target},
        "source_models": [source, no_better],
        "objective": {"lm_loss_weight": 0.9},
        "fusion": {"rule": "min_ce", "top_k": 8},
        "alignment": {"cache_dir": str(folder / "tables")},
        "training": {
            "block_length": 128,
            "global_batch_blocks": 4,
            "checkpoint_every_steps": 4,
            "export_dtype": "float32",  # the export is compared with the target in training
            "optimizer": {"learning_rate": 0.03},
        },
    }
    return spec | {name: spec.get(name, {}) | values for name, values in sections.items()}


def metrics_address():
    """Where the node serves its metrics."""
    (node,) = ray.nodes()
    return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"


def scraping(folder) -> AbstractContextManager[Prometheus | None]:
    """A Prometheus that scrapes the node; None where none is installed, and the dashboard remains unasked."""
    return prometheus(folder, metrics_address(), MONITORING / "alerts.yaml") if is_installed() else nullcontext()


def scraped(families):
    """What the node's metrics address serves of some families: name and labels to number."""
    address = f"http://{metrics_address()}/metrics"
    deadline = time.monotonic() + 30
    found = {}
    while time.monotonic() < deadline and not families <= {name for name, *_ in found}:
        time.sleep(0.5)
        text = urllib.request.urlopen(address, timeout=10).read().decode()
        for name, labels, value in re.findall(r"^ray_knowledge_fusion_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            kept = re.findall(r'(run|part|source|domain|stage)="([^"]*)"', labels)
            found[name, *sorted(kept)] = float(value)
    return found


def test_limits_count_over_all_starts_and_the_best_weights_are_exported(tmp_path, target, capsys, monkeypatch):
    # The rates of a stream need two pictures of its steps, and the second stream here is over within a second.
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_PICTURES", 0.05)
    evaluation = {"corpora": {"own": [str(tmp_path / "held_out.jsonl")]}, "every_steps": 2, "patience": 2}
    corpus = {"paths": [], "domains": {"own": {"paths": [str(tmp_path / "corpus.jsonl")]}}}
    first = run(write_spec(tmp_path, target, corpus=corpus, training={"max_hours": 1e-9}, evaluation=evaluation))
    assert (first.stopped_by, first.steps) == ("time", 1)
    assert (tmp_path / "out" / "checkpoints" / "step-00000001" / "state.json").exists()
    training = {"max_hours": 1.0, "num_workers": 2}
    sections = {"corpus": corpus, "training": training, "evaluation": evaluation}
    spec = write_spec(tmp_path, target, run={"tensorboard": True}, **sections)
    with scraping(tmp_path) as server:
        result = run(spec)
        check_dashboard(server)
    assert result.stopped_by == "no improvement"
    assert result.history[0] == first.history[0]
    assert result.passages < 3 * 120, "in the middle of the passes"
    check_free_cluster()
    check_times(first, result)
    check_retirement(result)
    check_best_weights(result)
    check_bos(result)
    check_lines(result, capsys.readouterr().out)
    check_event_files(result, tmp_path / "out" / "logs" / "tensorboard")
    check_served_metrics(result)


def test_a_second_pass_has_the_weights_of_the_first(tmp_path, target):
    """Stopped in its middle and started again: the weights come from the checkpoint."""
    source = {"name": "knows-more", "checkpoint": str(ROOT / "pipelines/quickstart/models/llama-docs")}
    sections = {
        "corpus": {"passes": 2},
        "source_models": [source | {"backend": "transformers", "probe": "off"}],
        "objective": {"lm_loss_weight": 0.5, "full_gain": 5.0},
    }
    written = write_spec(tmp_path, target) | {"source_models": []}
    stopped = run(with_sections(written, sections, {"max_tokens": 6000}))
    result = run(with_sections(written, sections, {"max_tokens": 7500}))
    new = [record for record in result.history if not record.repeated_bytes]
    again = [record for record in result.history if record.repeated_bytes == record.bytes]
    assert len(new) > 5 and len(again) > 5 and again[0].step < stopped.steps < result.steps
    assert all(math.isfinite(record.fusion_gain) for record in new)
    assert all(math.isnan(record.fusion_gain) for record in again)
    weights = [record.fusion_weight for record in again]
    assert weights == pytest.approx([weights[0]] * len(weights), rel=1e-6)
    assert min(record.fusion_weight for record in new) < weights[0] < max(record.fusion_weight for record in new)
    (knows_more,) = result.sources
    assert all(math.isfinite(gain) for gain in knows_more.gains), "of the first pass"


def with_sections(spec, sections, training):
    """A spec with other values in some sections and in ``training``."""
    training = {"training": spec["training"] | training}
    return spec | {n: v if isinstance(v, list) else spec.get(n, {}) | v for n, v in sections.items()} | training


def check_times(first, result):
    times = [record.elapsed_seconds for record in result.history]
    assert times == sorted(times)
    assert times[0] == first.metrics.elapsed_seconds
    assert times[-1] < result.wall_seconds


def check_retirement(result):
    """The target has caught up with what it was, and the stream goes on without that."""
    before, after = result.history[:4], result.history[4:]
    assert [record.retired for record in result.history if record.retired] == [("no-better",)] and before[3].retired
    assert all(record.source_left_out == (0, 0) for record in before)
    assert after and all(record.source_left_out == (0, record.passages) for record in after)
    assert all(record.fused_rows for record in result.history), "by the other one"
    assert [source.retired_after for source in result.sources] == [0, 4]
    assert {stage.name: stage.starts for stage in result.stages}["train"] == 1, "no restart"


def check_best_weights(result):
    """Those of the step with the lowest held-out loss, which is the number of an evaluation on its own."""
    curve = {record.step: record.held_out["own"] for record in result.history if record.held_out}
    assert list(curve) == [1, *range(2, result.steps + 1, 2)], "the last step of each start, and every other"
    assert result.exported_step == min(curve, key=curve.get) == result.steps - 4
    assert result.bits_per_byte["fused target"]["own"] == pytest.approx(curve[result.exported_step], rel=1e-5)
    assert result.bits_per_byte["target before"]["own"] > curve[2]


def check_bos(result):
    """The export puts BOS before a text, as the model was trained, and not by its configuration alone."""
    tokenizer = AutoTokenizer.from_pretrained(result.export_dir)
    assert tokenizer("a")["input_ids"][0] == BOS


def check_lines(result, text):
    assert "no improvement: the held-out loss" in text
    assert "no-better retired: the target predicts the text as well" in text
    assert "no-better after step 4" in text
    assert f"weights of step {result.exported_step}" in text
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| conditions \| step \d+/1000 \| ", text, re.MULTILINE)


def check_event_files(result, folder):
    data = b"".join(path.read_bytes() for path in folder.glob("events.out.tfevents.*"))
    new_steps = result.steps - 1  # the first start had none
    assert data.count(b"held_out_bits_per_byte/own") == result.steps // 2
    assert data.count(b"loss/fusion") == data.count(b"source_coverage/source") == new_steps


def check_served_metrics(result):
    run_label, last = ("run", "conditions"), result.metrics
    found = scraped({"steps_total", "loss", "stage_tokens_total", "step_seconds_count", "held_out_bits_per_byte"})
    assert found["steps_total", run_label] == result.steps == found["step_seconds_count", run_label]
    assert found["learned_bytes_total", run_label] == result.bytes
    assert found["loss", ("part", "fusion"), run_label] == pytest.approx(last.fusion_loss)
    assert found["gradient_norm", run_label] == pytest.approx(last.grad_norm)
    assert found["source_win_rate", run_label, ("source", "source")] == 1.0
    assert found["source_retired", run_label, ("source", "no-better")] == 4
    assert found["domain_source_win_rate", ("domain", "own"), run_label, ("source", "source")] == 1.0
    assert found["held_out_bits_per_byte", ("domain", "own"), run_label] == pytest.approx(last.held_out["own"])
    assert found["stage_passages_total", run_label, ("stage", "source")] >= result.passages


def check_dashboard(server):
    """Prometheus answers every query of the dashboard with a number for this run."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"] if server is not None else []
    open_queries = {target["expr"].replace("$run", "conditions") for panel in panels for target in panel["targets"]}
    deadline = time.monotonic() + 30
    while open_queries and time.monotonic() < deadline:
        time.sleep(0.5)
        open_queries = {query for query in open_queries if not any(map(math.isfinite, numbers(server.ask(query))))}
    assert not open_queries


def numbers(series):
    return [float(one["value"][1]) for one in series]


def check_free_cluster():
    """Everything that the run has held is given back, though the stream was not at its end."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]
