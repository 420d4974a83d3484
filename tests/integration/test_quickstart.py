"""The quickstart, shortened, as a user runs it: what it returns, what it leaves on disk, and what it must not leave."""

import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.history.result import RunResult
from engine.reporting.token_view import data_in
from tests.support.browser import visit
from tests.support.own_home import COMPILED
from tests.support.paths import ROOT

STEPS = 30

pytestmark = pytest.mark.timeout(660)

PROGRAM = f"""
import pickle, sys
from engine import load_spec, run
spec = load_spec("pipelines/specs/quickstart.yaml", [
    "run.output_dir=" + sys.argv[1], "training.max_steps={STEPS}", "alignment.cache_dir=" + sys.argv[2],
    "training.checkpoint_every_steps=20",
])
result = run(spec)
pickle.dump(result, open(sys.argv[3], "wb"))
"""


def files_below(folder: Path) -> set[str]:
    """All files, Python's own compiled caches aside."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".git" not in path.parts and ".venv" not in path.parts
    }


def page_during(run: subprocess.Popen, report: Path, copy: Path) -> Path:
    """A copy of a page that a run has written, with tokens, before its end."""
    deadline = time.monotonic() + 600
    while run.poll() is None and time.monotonic() < deadline and not copy.exists():
        if report.exists() and data_in(page := report.read_text()) and "done: " not in page:
            copy.write_text(page)
        time.sleep(0.5)
    return copy


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict:
    """One run in a process of its own, with a home and a temporary folder of its own."""
    base = tmp_path_factory.mktemp("quickstart")
    home, temporary = base / "home", Path("/dev/shm") / f"fusion-{os.getpid()}"
    home.mkdir()
    temporary.mkdir()
    before = files_below(ROOT)
    places = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(temporary)}
    environment = {**places, **COMPILED, "LANG": "C.UTF-8"}
    arguments = [str(base / "output"), str(base / "tables"), str(base / "result.pickle")]
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=(base / "stdout").open("w"),
        stderr=(base / "stderr").open("w"),
    )
    during = page_during(run, base / "output" / "report.html", base / "during.html")
    run.wait(timeout=600)
    stdout, stderr = (base / "stdout").read_text(), (base / "stderr").read_text()
    assert run.returncode == 0, stdout[-3000:] + stderr[-6000:]
    leftovers = {name for name in files_below(temporary) if not name.startswith("ray/")}
    subprocess.run(["rm", "-rf", str(temporary)], check=True)
    return {
        "result": pickle.loads((base / "result.pickle").read_bytes()),
        "output": base / "output",
        "stdout": stdout,
        "during": during,
        "new in repository": files_below(ROOT) - before,
        "in home": files_below(home),
        "in temporary folder": leftovers,
        "tables": files_below(base / "tables"),
    }


def test_the_result_says_what_was_done(outcome):
    result = outcome["result"]
    assert isinstance(result, RunResult)
    assert result.steps == STEPS == len(result.history)
    assert result.tokens > 5_000
    assert result.passages > 50
    assert result.wall_seconds > 0
    assert not result.skipped
    assert math.isfinite(result.metrics.loss)
    assert result.metrics.fusion_loss > 0
    assert set(result.win_rates) == {"llama-docs", "gpt2-code", "neox-mixed"}
    assert all(math.isnan(rate) for rate in result.win_rates.values()), "an average has no winner"
    assert all(0.0 < record.fusion_gain < 5.0 and record.fusion_weight > 0.9 for record in result.history)
    assert all(source.gains[0] > source.gains[1] > 0.1 for source in result.sources), "far ahead all along"
    for source in result.sources:
        assert 0.5 < source.coverage <= 1.0
        assert 0.5 < source.cross_entropy < 4.0
    in_order = ["corpus", "llama-docs", "gpt2-code", "neox-mixed", "align and fuse", "train"]
    assert [stage.name for stage in result.stages] == in_order
    assert all(stage.passages >= result.passages for stage in result.stages if stage.name != "train")


def test_the_target_is_better_on_held_out_text_than_before(outcome):
    before, after = (outcome["result"].bits_per_byte[label] for label in ("target before", "fused target"))
    assert all(after[domain] < before[domain] - 0.02 for domain in ("docs", "code")), (before, after)


def test_the_evaluation_compares_all_models(outcome):
    table = outcome["result"].bits_per_byte
    assert set(table) >= {"target before", "fused target", "source llama-docs", "source gpt2-code", "source neox-mixed"}
    assert all(0.5 < value < 8.0 for row in table.values() for value in row.values())
    assert "fused target" in outcome["stdout"]
    assert str(outcome["output"] / "export") in outcome["stdout"].replace("\n", "")


def test_nothing_appears_outside_the_output_folder(outcome):
    assert outcome["new in repository"] == set()
    assert outcome["in home"] == set(), "but for what is compiled, which the tests keep elsewhere"
    assert outcome["in temporary folder"] == set()
    assert len(outcome["tables"]) == 6, "for each source its mapping and its cuts"


def test_only_what_belongs_there_is_in_the_output_folder(outcome):
    assert {path.name for path in outcome["output"].iterdir()} == {
        "corpus.json",
        "spec.yaml",
        "checkpoints",
        "evaluation.json",
        "evaluation.png",
        "export",
        "report.html",
        "logs",
    }
    # 768 bytes of top-k a token would be 40 MB by now: nothing of the stream is stored.
    stored = sum(path.stat().st_size for path in (outcome["output"] / "logs").rglob("*") if path.is_file())
    assert stored < 100_000
    assert {path.name for path in (outcome["output"] / "checkpoints").iterdir()} == {"step-00000020", "step-00000030"}


def test_the_events_say_what_has_happened(outcome):
    lines = (outcome["output"] / "logs" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    working = {event["stage"] for event in events if event["event"] == "working"}
    assert working == {stage.name for stage in outcome["result"].stages}
    others = [(event["event"], event["step"]) for event in events if event["event"] not in ("working", "evaluated")]
    assert others == [("started", 0), ("checkpoint", 20), ("checkpoint", STEPS), ("stopped", STEPS)]
    assert events[-1]["reason"] == "steps"
    assert all(events[0]["time"] <= event["time"] <= events[-1]["time"] for event in events)
    assert events[-2]["bits_per_byte"]["fused target"].keys() == {"docs", "code"}


def test_ray_spilled_nothing(outcome):
    assert outcome["result"].spilled_bytes == 0


def test_the_report_is_one_file_without_network(outcome):
    html = (outcome["output"] / "report.html").read_text()
    assert "llama-docs" in html
    assert 'src="http' not in html
    assert 'href="http' not in html.replace('href="https://arxiv.org', "")


@pytest.mark.parametrize("when", ["during", "after"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_opens_the_page_and_shows_the_rows_of_a_token(outcome, when, width):
    file = outcome["during"] if when == "during" else outcome["output"] / "report.html"
    with visit(file, width) as seen:
        during = ("running, step", f"trained for {STEPS} steps, evaluating")
        assert any(words in seen.status for words in (during if when == "during" else (f"done: {STEPS} steps",)))
        assert seen.page.locator(".token").count() >= 2
        seen.page.locator(".token").nth(1).click()
        names = [text.split("\n")[0] for text in seen.page.locator("#token-details tbody th").all_inner_texts()]
        assert [name.removeprefix("★ ") for name in names] == [
            "llama-docs", "gpt2-code", "neox-mixed", "fused", "target",
        ]  # fmt: skip
        assert not seen.is_wider_than_the_window


def test_the_tokens_shown_are_those_of_sampled_steps(outcome):
    shown = data_in((outcome["output"] / "report.html").read_text())
    assert shown["sources"] == ["llama-docs", "gpt2-code", "neox-mixed"]
    assert {passage["sample"] for passage in shown["passages"]} <= {1, *range(2, STEPS + 1, 2)}
    assert all(passage["step"] >= passage["sample"] for passage in shown["passages"])
    assert len(shown["passages"]) >= 4
    for passage in shown["passages"]:
        assert all(0.0 <= cost < 30.0 for cost in passage["costs"])
        assert len(passage["tokens"]) == len(passage["own"]) == len(passage["fused"])


def test_the_model_card_says_how_the_export_was_made(outcome):
    card = (outcome["output"] / "export" / "README.md").read_text()
    assert re.search(r"\| source gpt2-code \| gpt2-code \| sha256 [0-9a-f]{64} \|", card)
    assert "avg_ce by passage" in card
    assert f"{outcome['result'].tokens:,} target tokens" in card
    assert re.search(r"\| fused target \| [12]\.\d{4} \| [12]\.\d{4} \|", card)
    assert str(ROOT) not in card.partition("## Spec")[0]


def test_transformers_loads_the_export(outcome):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(outcome["output"] / "export")
    model = AutoModelForCausalLM.from_pretrained(outcome["output"] / "export")
    ids = tokenizer("def main():", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()
