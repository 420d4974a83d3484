"""Run arms, each in a process of its own, and score their models. Finished runs are not repeated."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from engine.model_files.checkpoint import Checkpoint
from pipelines.evaluation.bits_per_byte import ScoredText, score_texts
from pipelines.evaluation.ensemble import ensemble
from pipelines.experiment.arms import SETTINGS, Run
from pipelines.experiment.bootstrap import ScoredDomain, Scores, mean_bits_per_byte
from pipelines.experiment.real_tasks import scores_of_tasks
from pipelines.experiment.real_texts import TASKS
from pipelines.experiment.texts import read_texts

#: Loading takes half of a run's time and does not fill a core, so two runs share two cores well.
AT_ONCE = 2


class Laboratory:
    """The experiment's folder, and two processes that score models.

    Args:
        folder: of the experiment; relative, so that the commands on the results page have relative paths.
        longest_run_seconds: after which a run has failed.
        say: called with a line about every finished run.
    """

    def __init__(self, folder: Path, longest_run_seconds: float, say: Callable[[str], None]):
        self.folder = folder
        self._longest_run_seconds = longest_run_seconds
        self._say = say
        self._scorers = ProcessPoolExecutor(AT_ONCE, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *_error: object) -> None:
        self._scorers.shutdown(cancel_futures=True)

    def run(self, runs: Sequence[Run]) -> None:
        """Start ``python -m engine run`` for each unfinished run, ``AT_ONCE`` at a time.

        Raises:
            RuntimeError: a run failed; the message names its log.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(self._run, [run for run in runs if not self._done(run).exists()]):
                pass

    def scores(self, setting: str, part: str, checkpoints: Sequence[Path]) -> list[Scores]:
        """Scores of models on the texts of ``part``."""
        texts = [self._scorers.submit(scored, self.folder, setting, part, place) for place in checkpoints]
        return [_by_document(found.result()) for found in texts]

    def tasks(self, setting: str, checkpoints: Sequence[Path]) -> list[dict[str, float]]:
        """The figures of models on a real corpus's tasks (``real_tasks.HEADINGS``)."""
        folder = self.folder / "texts" / setting / TASKS
        jobs = [self._scorers.submit(scores_of_tasks, folder, place) for place in checkpoints]
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

    def export(self, run: Run) -> Path:
        """Folder of a run's exported model."""
        return run.folder(self.folder) / run.arm.export

    def seconds(self, run: Run) -> float:
        """Wall time of a finished run."""
        return json.loads(self._done(run).read_text())["seconds"]

    def _done(self, run: Run) -> Path:
        return run.folder(self.folder) / "done.json"

    def _run(self, run: Run) -> None:
        started = time.monotonic()
        folder = run.folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        spec = SETTINGS[run.arm.setting].spec
        command = [sys.executable, "-m", "engine", "run", spec, *run.overrides(self.folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        log = folder / "console.log"
        with log.open("w") as output:
            ended = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, timeout=self._longest_run_seconds
            )
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {ended.returncode}; see {log}")
        seconds = time.monotonic() - started
        self._done(run).write_text(json.dumps({"command": command[1:], "seconds": seconds}))
        self._say(f"{run.arm.setting} {run.arm.name}, rate {run.rate:g}, seed {run.seed}: {seconds:.0f} s")


def scored(folder: Path, setting: str, part: str, checkpoint: Path) -> dict[str, list[ScoredText]]:
    """Domain to scored documents of one checkpoint; called in a process of its own."""
    import torch

    torch.set_num_threads(1)
    texts, window = read_texts(folder / "texts" / setting, part), SETTINGS[setting].window_tokens
    return score_texts(Checkpoint(str(checkpoint)), texts, window, window // 2)


def _by_document(scored_texts: dict[str, list[ScoredText]]) -> dict[str, ScoredDomain]:
    return {
        domain: ScoredDomain(
            np.array([text.nats.sum() / np.log(2) for text in texts]),
            np.array([text.boundaries[-1] - text.boundaries[0] for text in texts], float),
        )
        for domain, texts in scored_texts.items()
    }
