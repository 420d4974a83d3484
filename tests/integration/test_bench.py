"""The experiment's runs, one after another in one process and one Ray, which ends with the process."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import psutil
import pytest

from engine.history.stopping import reached
from pipelines.experiment.arms import SPEC
from pipelines.experiment.bench import carry_out, start_bench
from pipelines.run.report import recorded_run

pytestmark = pytest.mark.timeout(240)

OVERRIDES = (
    "source_models=[]",
    "objective.lm_loss_weight=1.0",
    "target_model.checkpoint=pipelines/quickstart/models/mistral-target",
    "corpus.paths=[pipelines/quickstart/corpus/train.jsonl]",
    "training.max_steps=2",
)


def test_a_bench_carries_out_one_run_after_another(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    others = set(psutil.Process().children())  # the Ray that other tests share
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned, initializer=start_bench, initargs=(SPEC,)) as bench:

        def runs(name: str, *overrides: str, most_seconds: int = 120) -> float:
            place = [*OVERRIDES, f"run.output_dir={tmp_path / name}", *overrides]
            return bench.submit(carry_out, SPEC, place, tmp_path / name / "console.log", most_seconds).result()

        assert runs("first") > 0
        assert runs("second", "run.seed=1") > 0
        with pytest.raises(RuntimeError, match=r"no-such-model(.|\n)*broken/console\.log"):
            runs("broken", "target_model.checkpoint=/no-such-model")
        own = set(psutil.Process().children()) - others
        started = [process for child in own for process in (child, *child.children(recursive=True))]
        with pytest.raises(RuntimeError, match=r"too long(.|\n)*slow/console\.log"):
            runs("slow", most_seconds=1)
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not [process for process in alive if "resource_tracker" not in " ".join(process.cmdline())]
    for name in ("first", "second"):
        spec, result = recorded_run(str(tmp_path / name))
        assert reached(spec, result.history) and result.steps == 2
        assert "causal LM loss" in (tmp_path / name / "console.log").read_text()
