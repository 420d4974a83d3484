"""Run arms, two at once, and score their models. Finished runs are not repeated."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from actors.training.checkpoint_index import checkpoints_folder
from engine.model_files.checkpoint import Checkpoint
from engine.spec.loading import dump_spec, load_spec
from pipelines.evaluation.bits_per_byte import ScoredText, score_texts
from pipelines.evaluation.ensemble import ensemble
from pipelines.experiment.arms import SETTINGS, SPEC, Run
from pipelines.experiment.bench import carry_out, start_bench
from pipelines.experiment.bootstrap import ScoredDomain, Scores, mean_bits_per_byte
from pipelines.experiment.finished import finished
from pipelines.experiment.kept import scores_of
from pipelines.experiment.planned import planned_rules
from pipelines.experiment.real_tasks import scores_of_tasks
from pipelines.experiment.real_texts import TASKS
from pipelines.experiment.texts import read_texts

#: Folder of finished scores, in the experiment's.
SCORES = "scores"

#: A run waits for itself in many places, so two share two cores well.
AT_ONCE = 2


class Laboratory:
    """The experiment's folder, two processes that carry out runs, and two that score models.

    Args:
        folder: of the experiment; relative, so that the commands on the results page have relative paths.
        longest_run_seconds: after which a run has failed.
        say: called with a line about every finished run.
    """

    def __init__(self, folder: Path, longest_run_seconds: int, say: Callable[[str], None]):
        self.folder = folder
        self._longest_run_seconds = longest_run_seconds
        self._say = say
        spawned = multiprocessing.get_context("spawn")
        self._benches = ProcessPoolExecutor(AT_ONCE, mp_context=spawned, initializer=start_bench, initargs=(SPEC,))
        self._scorers = ProcessPoolExecutor(AT_ONCE, mp_context=spawned)

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *_error: object) -> None:
        self._benches.shutdown(cancel_futures=True)
        self._scorers.shutdown(cancel_futures=True)

    def run(self, runs: Sequence[Run]) -> None:
        """Carry out each unfinished run, ``AT_ONCE`` at a time, as ``python -m engine run`` would.

        Of a finished one its model, its report and its settings stay.

        Raises:
            RuntimeError: a run failed; the message names its log.
        """
        jobs = {}
        for run in runs:
            recorded, spec, overrides = self._recorded(run), SETTINGS[run.arm.setting].spec, run.overrides(self.folder)
            settings = dump_spec(load_spec(spec, overrides))
            if recorded.get("settings") != settings:
                if recorded:  # the output of other settings, which a run would refuse
                    shutil.rmtree(run.folder(self.folder))
                log = run.folder(self.folder) / "console.log"
                job = self._benches.submit(carry_out, spec, overrides, log, self._longest_run_seconds)
                jobs[job] = run, settings
        for job in as_completed(jobs):
            (run, settings), seconds = jobs[job], job.result()
            # A real model's state takes 1.7 GB, and a corpus has some twenty runs. One of pairs has a folder for each.
            for checkpoints in [*run.folder(self.folder).rglob(checkpoints_folder(""))]:
                shutil.rmtree(checkpoints)
            self._done(run).write_text(json.dumps({"settings": settings, "seconds": seconds}))
            self._say(f"{run.arm.setting} {run.arm.name}, rate {run.rate:g}, seed {run.seed}: {seconds:.0f} s")

    def scores(self, setting: str, part: str, checkpoints: Sequence[Path]) -> list[Scores]:
        """Scores of models on the texts of ``part``; a model is scored once."""
        models = dict.fromkeys(checkpoints)
        jobs = {place: self._scorers.submit(scored_once, self.folder, setting, part, place) for place in models}
        return [scores_of(jobs[place].result()) for place in checkpoints]

    def tasks(self, setting: str, checkpoints: Sequence[Path]) -> list[dict[str, float]]:
        """The figures of models on a real corpus's tasks (``real_tasks.HEADINGS``)."""
        folder = self.folder / "texts" / setting / TASKS
        jobs = [self._scorers.submit(tasks_once, self.folder, folder, place) for place in checkpoints]
        return [job.result() for job in jobs]

    def ensemble_scores(self, setting: str, part: str, checkpoints: Iterable[Path]) -> Scores:
        """Scores of the ensemble of some checkpoints (``pipelines.evaluation.ensemble``)."""
        jobs = [self._scorers.submit(scored, self.folder, setting, part, place) for place in checkpoints]
        members = [job.result() for job in jobs]
        return _by_document(
            {
                domain: [ensemble(texts) for texts in zip(*(member[domain] for member in members), strict=True)]
                for domain in members[0]
            }
        )

    def means(self, setting: str, part: str, checkpoints: Sequence[Path], domain: str = "") -> list[float]:
        """Bits per byte of each model: of one domain, or the mean over domains if ``domain`` is empty."""
        scores = self.scores(setting, part, checkpoints)
        return [mean_bits_per_byte({domain: score[domain]} if domain else score) for score in scores]

    def planned(self, run: Run) -> dict[str, float]:
        """Each fusion rule's nats per byte before any training (``planned_rules``), at the settings of a run."""
        overrides = [*run.overrides(self.folder), f"run.output_dir={self.folder / 'plans' / run.arm.setting}"]
        return self._scorers.submit(planned_rules, SETTINGS[run.arm.setting].spec, overrides).result()

    def export(self, run: Run) -> Path:
        """Folder of a run's exported model."""
        return run.folder(self.folder) / run.arm.export

    def seconds(self, run: Run) -> float:
        """Wall time of a finished run."""
        return self._recorded(run)["seconds"]

    def _recorded(self, run: Run) -> dict[str, Any]:
        """Settings, with all defaults, and seconds of a finished run; nothing of an unfinished one."""
        return json.loads(self._done(run).read_text()) if self._done(run).exists() else {}

    def _done(self, run: Run) -> Path:
        return run.folder(self.folder) / "done.json"


def scored(folder: Path, setting: str, part: str, checkpoint: Path) -> dict[str, list[ScoredText]]:
    """Domain to scored documents of one checkpoint; called in a process of its own."""
    import torch

    torch.set_num_threads(1)
    texts, window = read_texts(folder / "texts" / setting, part), SETTINGS[setting].window_tokens
    return score_texts(Checkpoint(str(checkpoint)), texts, window, window // 2)


def scored_once(folder: Path, setting: str, part: str, checkpoint: Path) -> dict[str, dict[str, list[float]]]:
    """Domain to the fields of ``ScoredDomain`` of one checkpoint; called in a process of its own."""

    def work() -> dict[str, dict[str, list[float]]]:
        found = _by_document(scored(folder, setting, part, checkpoint))
        return {domain: {name: values.tolist() for name, values in vars(of).items()} for domain, of in found.items()}

    texts = sorted((folder / "texts" / setting).glob(f"{part}_*.jsonl"))
    return finished(folder / SCORES, [checkpoint, *texts], f"windows of {SETTINGS[setting].window_tokens}", work)


def tasks_once(folder: Path, tasks: Path, checkpoint: Path) -> dict[str, float]:
    """The figures of one checkpoint on a folder of tasks; called in a process of its own."""
    return finished(folder / SCORES, [checkpoint, tasks], "tasks", lambda: scores_of_tasks(tasks, checkpoint))


def _by_document(scored_texts: dict[str, list[ScoredText]]) -> dict[str, ScoredDomain]:
    return {
        domain: ScoredDomain(
            np.array([text.nats.sum() / np.log(2) for text in texts]),
            np.array([text.boundaries[-1] - text.boundaries[0] for text in texts], float),
        )
        for domain, texts in scored_texts.items()
    }
