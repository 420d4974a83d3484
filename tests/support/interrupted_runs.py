"""Short runs in processes of their own that a test may kill: part of the quickstart with one source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import psutil

from actors.training.checkpoint_index import checkpoints_folder, complete, read_state
from tests.support.paths import ROOT

CORPUS = ROOT / "pipelines/quickstart/corpus/train.jsonl"

#: Documents in the corpus: about eighty steps, so that a run is not over before the last of several kills.
DOCUMENTS = 120

SECONDS_TO_WAIT = 240.0

#: With transformers the numbers depend on what else is in the batch, so that equal losses prove equal batches.
TRANSFORMERS, VLLM = (f"source_models.0.backend={backend}" for backend in ("transformers", "vllm"))


class InterruptedRun:
    """A run of ``python -m engine`` and its folder; a test may start it several times.

    Args:
        folder: holds the log.
        overrides: changes of the quickstart's spec, ``section.field=value``.
        store: folder or URL that holds the corpus and all output; by default the folder of the log.
    """

    def __init__(self, folder: Path, *overrides: str, store: str = ""):
        self._log, self._store = folder / "log.txt", store or str(folder)
        self._output = f"{self._store}/out"
        self.corpus = f"{self._store}/corpus.jsonl"
        with fsspec.open(self.corpus, "w", encoding="utf8") as file:
            file.write("\n".join(CORPUS.read_text(encoding="utf8").splitlines()[:DOCUMENTS]))
        self._overrides = overrides
        self.process: subprocess.Popen | None = None

    def start(self, *overrides: str) -> InterruptedRun:
        """Start the run, or start it again, with further overrides, in a session of its own that can be sent Ctrl-C."""
        command = [
            *(sys.executable, "-m", "engine", "run", "pipelines/specs/quickstart.yaml", "evaluation.corpora={}"),
            *(f"run.output_dir={self._output}", f"alignment.cache_dir={self._store}/tables"),
            "source_models=[{name: gpt2-code, checkpoint: pipelines/quickstart/models/gpt2-code, dtype: float32}]",
            *(f"corpus.paths=[{self.corpus}]", "training.max_steps=1000", "training.checkpoint_every_steps=2"),
            "training.num_workers=1",
            *(*self._overrides, *overrides),
        ]
        with open(self._log, "a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        return self

    def wait(self) -> int:
        """Return the exit code; kill a run that does not end in time."""
        try:
            return self.process.wait(SECONDS_TO_WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def __enter__(self) -> InterruptedRun:
        return self

    def __exit__(self, *_: object) -> None:
        """End the run, also after a failed assertion."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        """The last 4,000 characters that all starts have printed."""
        return self._log.read_text()[-4000:]

    def has_said(self, words: str) -> bool:
        """Whether any start has printed these words."""
        return words in self._log.read_text()

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Return the first true value of ``condition``; fail if the run ends before or takes too long."""
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while not (found := condition()):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return found

    def wait_for_step(self, step: int) -> None:
        """Wait for a checkpoint of this step or a later one."""
        self.wait_for(lambda: any(_step(checkpoint) >= step for checkpoint in self._checkpoints()))

    def processes(self, name: str) -> list[psutil.Process]:
        """The run's processes whose title contains ``name``, without children that they have just forked."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in _title(process) and name not in _title(process.parent()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    @property
    def state(self) -> dict[str, Any]:
        """The journal of the newest complete checkpoint."""
        return read_state(self._checkpoints()[-1])

    @property
    def curve(self) -> list[tuple[float, ...]]:
        """The fields of each step that must not depend on time."""
        names = ("step", "loss", "lm_loss", "fusion_loss", "grad_norm", "learning_rate", "tokens", "passages", "bytes")
        return [tuple(record[name] for name in names) for record in self.state["history"]]

    @property
    def report(self) -> str:
        """The run's report."""
        with fsspec.open(f"{self._output}/report.html", "r", encoding="utf8") as file:
            return file.read()

    def check_exactly_once(self) -> None:
        """Check that the corpus was learned to its end, each byte of it once, and each step is in the journal once.

        The ledger itself refuses a training block that is learned twice.
        """
        state = self.state
        history, learned = state["history"], state["learned"]
        assert [record["step"] for record in history] == list(range(1, state["step"] + 1))
        assert (learned["done"], learned["open"]) == ([[0, 1]], {})
        assert learned["blocks_done"] <= sum(record["passages"] for record in history)
        with fsspec.open(self.corpus, "r", encoding="utf8") as file:
            texts = [json.loads(row)["text"] for row in file]
        assert sum(record["bytes"] for record in history) == sum(len(text.encode("utf8")) for text in texts)

    def _checkpoints(self) -> list[str]:
        return complete(checkpoints_folder(self._output))


def _step(checkpoint: str) -> int:
    """The step in a checkpoint's name, ``step-00000010``."""
    return int(checkpoint.rpartition("-")[2])


def _title(process: psutil.Process | None) -> str:
    return "" if process is None else " ".join([process.name(), *process.cmdline()])


def kill_group(process: subprocess.Popen, signal_number: int) -> None:
    """Send a signal to all processes of the run's group, as a terminal does."""
    os.killpg(process.pid, signal_number)
