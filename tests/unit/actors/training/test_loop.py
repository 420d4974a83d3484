"""The training loop of one worker: what it reports and saves, and how long a step took."""

import math
import os
from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.train import PreemptionInfo

from actors.training import loop
from actors.training.checkpoint_index import checkpoints_folder, complete, read_state, recorded_steps
from actors.training.held_out_loss import HeldOutBlocks
from actors.training.journal import Journal
from actors.training.looks import Looks
from actors.training.loop import StepReports, learn, train_worker
from actors.training.step_counts import StepCounts
from actors.training.target_model import StepLosses
from engine.errors import TrainingError
from engine.history import files, retirement
from engine.method.losses import NO_LABEL
from engine.records.batches import shares
from engine.records.ragged import of_list
from engine.spec.loading import parse
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import byte_level_with_bos
from tests.support.training_blocks import LENGTH, TOP_K, VOCABULARY, training_blocks
from tests.unit.actors.training.test_looks import described

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("process_group")]

STEPS = 3


class Monitor:
    """Keeps the records that are reported to it through what looks like an actor's handle."""

    def __init__(self):
        self.records = []
        self.step = SimpleNamespace(remote=self.records.append)
        self.checkpoints = []
        self.commit = SimpleNamespace(remote=self.checkpoints.append)
        self.refused = 0
        self.refuse_step = SimpleNamespace(remote=self._refuse)
        self.looks = []
        self.inspect = SimpleNamespace(remote=self.looks.extend)

    def _refuse(self):
        self.refused += 1


@pytest.fixture
def spec(tmp_path):
    byte_level_with_bos().save_pretrained(tmp_path / "tokenizer")
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama", tmp_path / "tokenizer")
    return parse(
        {
            "run": {"name": "trial", "output_dir": str(tmp_path / "out")},
            "corpus": {"paths": ["corpus.jsonl"]},
            "target_model": {"checkpoint": checkpoint},
            "source_models": [{"name": name, "checkpoint": checkpoint} for name in ("one", "two")],
            "fusion": {"top_k": TOP_K},
            "training": {"block_length": LENGTH, "global_batch_blocks": 4, "checkpoint_every_steps": 100},
            "evaluation": {"every_steps": 2, "corpora": {"own": ["held_out.jsonl"]}},
        }
    )


class Clock:
    """Stands in for ``time`` in the module under test; a test moves ``now``."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter


def held_out_domains():
    """Two blocks of one window each."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH)).astype(np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    labels = np.concatenate([ids[:, 1:], np.full((2, 1), NO_LABEL, np.int32)], axis=1)
    return {"own": HeldOutBlocks(ids, positions, labels, scored_bytes=100)}


def work(spec, monkeypatch, steps=STEPS, notices=repeat(None), first_step=1):  # noqa: B008
    """Run the loop over so many steps, each with a notice of Ray Train; what it has reported to, and its history."""
    monkeypatch.setattr(loop.ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(loop.ray.train, "get_preemption_info", lambda: next(notices))
    monitor = Monitor()
    shares = [training_blocks(seed) for seed in range(first_step + 1, first_step + 1 + steps)]
    history = train_worker(spec, monitor, 1, shares, held_out_domains)
    return monitor, history


def test_every_step_is_reported_once_with_its_evaluation_the_last_of_the_corpus_too(spec, monkeypatch):
    monitor, history = work(spec, monkeypatch)
    assert tuple(monitor.records) == history
    assert [record.step for record in history] == [1, 2, 3]
    assert [bool(record.held_out) for record in history] == [False, True, True]


def test_looks_at_tokens_travel_with_their_blocks_and_get_the_targets_rows(spec, monkeypatch):
    monkeypatch.setattr(loop.ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(loop.ray.train, "get_preemption_info", lambda: None)
    monitor, blocks = Monitor(), described(training_blocks(seed=2), {"0/a:2:1"})
    (row,) = shares(blocks, 1)
    train_worker(spec, monitor, 1, [of_list(row["share"]), training_blocks(seed=3)], held_out_domains)
    (look,) = monitor.looks
    assert (look["step"], look["passage"], len(look["own"]), len(look["costs"])) == (1, "0/a:2:1", 3, 3)
    assert all(cost > 0 for cost in look["costs"])


def test_a_finished_run_that_is_started_again_leaves_its_checkpoint_alone(spec, monkeypatch):
    _, history = work(spec, monkeypatch)
    (folder,) = os.scandir(os.path.join(spec.run.output_dir, "checkpoints"))
    before = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder)}
    monitor, again = work(spec, monkeypatch, steps=0)
    assert {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder)} == before
    assert again == history
    assert not monitor.records, "the first start has reported these steps"


def test_a_notice_of_preemption_makes_one_checkpoint_at_once(spec, monkeypatch):
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)  # a local Ray switches it off
    notice = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [0]})
    kept = spec.model_copy(update={"training": spec.training.model_copy(update={"keep_checkpoints": 9})})
    monitor, _ = work(kept, monkeypatch, steps=5, notices=iter([None, notice, notice, None, None]))
    saved = sorted(entry.name for entry in os.scandir(os.path.join(spec.run.output_dir, "checkpoints")))
    assert saved == ["step-00000002", "step-00000005"]
    assert monitor.checkpoints == [2, 5], "reported when they are complete"


def test_a_long_history_goes_into_files_and_a_checkpoint_holds_the_rest(spec, monkeypatch):
    monkeypatch.setattr(files, "STEPS_IN_FILE", 2)
    training = spec.training.model_copy(update={"checkpoint_every_steps": 3})
    long = spec.model_copy(update={"training": training})
    _, history = work(long, monkeypatch, steps=4)
    folder = checkpoints_folder(spec.run.output_dir)
    held = [
        (state["step"], state["steps_in_files"], len(state["history"])) for state in map(read_state, complete(folder))
    ]
    assert held == [(3, 2, 1), (4, 2, 2)], "the last step is never in a file"
    assert tuple(recorded_steps(spec.run.output_dir)) == history
    _, longer = work(long, monkeypatch, steps=3, first_step=5)
    assert longer[:4] == history and [record.step for record in longer[4:]] == [5, 6, 7]
    assert sorted(os.listdir(os.path.join(spec.run.output_dir, "history"))) == [
        f"steps-{first:08d}.jsonl" for first in (1, 3, 5)
    ]
    assert tuple(recorded_steps(spec.run.output_dir)) == longer


def test_a_step_that_is_not_finite_is_reported(spec):
    class Target:
        step, device, block_length = 1, torch.device("cpu"), LENGTH

        def train_step(self, table, asked=None):
            raise TrainingError("step 2: not finite")

    monitor = Monitor()
    with pytest.raises(TrainingError, match="not finite"):
        waited = (training_blocks(seed=1), 0.0)
        learn(Target(), waited, spec, Journal(), Looks(is_wanted=False), StepReports(monitor, 0))
    assert monitor.refused == 1


def test_a_source_that_no_longer_pays_ends_the_workers_at_a_checkpoint(spec, monkeypatch):
    """The others go on from there; this source is named once, though nothing is known of it any more."""
    sources = [spec.source_models[0].model_copy(update={"retire": True}), spec.source_models[1]]
    training = spec.training.model_copy(update={"checkpoint_every_steps": 2})
    retiring = spec.model_copy(update={"source_models": tuple(sources), "training": training})
    monkeypatch.setattr(retirement, "mean_gain", lambda window, index, _: 0.25 if window[-1].step == 2 else 0.0)
    monitor, history = work(retiring, monkeypatch, steps=7)
    assert [record.retired for record in history] == [()] * 3 + [("one",)], "in the middle of the corpus"
    assert tuple(monitor.records) == history
    assert monitor.checkpoints == [2, 4]
    assert sorted(os.listdir(os.path.join(spec.run.output_dir, "checkpoints")))[-1] == "step-00000004"
    assert not os.path.exists(os.path.join(spec.run.output_dir, "export")), "the run has not ended"
    assert recorded_steps(spec.run.output_dir)[-1].retired == ("one",)
    monkeypatch.setattr(retirement, "mean_gain", lambda *_: math.nan)
    monitor, history = work(retiring, monkeypatch, steps=2, first_step=5)
    assert [record.step for record in monitor.records] == [5, 6]
    assert retirement.retired_sources(history) == {"one": 4}
    assert os.path.exists(os.path.join(spec.run.output_dir, "export"))


def test_a_step_that_waits_for_the_data_of_another_worker_counts_the_wait_once(spec, monkeypatch):
    clock = Clock()

    class Target:
        step, device = 1, torch.device("cpu")

        def train_step(self, table, asked=None):
            clock.now += 0.25
            return StepLosses(1.0, 1.0, 1.0, 1.0, 0.1, 1, 1, 0.5, 1.0)

    def others_come_later(counts: StepCounts, wait_seconds: float, device: torch.device):
        clock.now += 0.5
        return counts, wait_seconds + 0.5

    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "over_workers", others_come_later)
    record = learn(Target(), (training_blocks(seed=1), 0.125), spec, Journal())
    assert record.wait_seconds == 0.625
    assert record.seconds == 0.875, "0.125 s for its own data, 0.5 s for another's, 0.25 s of work"
