"""The last checkpoint of a run: one that its store does not show for a moment is not taken for missing."""

import json

import numpy as np
import pytest

from actors.training.checkpoint_index import TRIES, complete, latest, learned_blocks, recorded_steps
from engine import store as store_module
from engine.errors import StoreError
from engine.history.ledger import ENTRY_NUMBERS, Ledger
from tests.support.failing_store import failing_store

RUN, FOLDER = "failing://out", "failing://out/checkpoints"


@pytest.fixture
def store():
    """A store with two complete checkpoints and half of one."""
    ledger = Ledger()
    ledger.learn(np.ones((1, ENTRY_NUMBERS), np.int64))
    with failing_store() as found:
        for step in (1, 2):
            journal = {"step": step, "steps_in_files": 0, "history": [], "learned": ledger.state()}
            found.write(f"out/checkpoints/step-{step:08d}/state.json", json.dumps(journal).encode("utf8"))
        found.write("out/checkpoints/step-00000003/__0_0.distcp", b"x")
        found.write("out/checkpoints/.keep", b"")
        yield found


def test_a_store_that_fails_for_a_moment_has_the_same_checkpoints(store):
    learned = learned_blocks(RUN).state()
    assert learned != Ledger().state()
    assert latest(FOLDER) == f"{FOLDER}/step-00000002"
    for kind in ("list", "info", "open", "read"):
        for numbers in ({1}, {2}, range(1, TRIES)):
            store.fail(**{kind: numbers})
            assert learned_blocks(RUN).state() == learned
            store.fail(**{kind: numbers})
            assert recorded_steps(RUN) == []
            store.fail(**{kind: numbers})
            assert complete(FOLDER) == [f"{FOLDER}/step-{step:08d}" for step in (1, 2)]


@pytest.mark.parametrize("kind", ["list", "info", "read"])
def test_a_store_that_fails_for_minutes_is_an_error_and_no_new_beginning(store, kind):
    store.fail(**{kind: range(10**9)})
    with pytest.raises(
        StoreError, match=r"out/checkpoints: the last checkpoint cannot be read: PayloadError.* \(tried 9"
    ):
        learned_blocks(RUN)


def test_a_disk_that_is_away_is_no_new_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FIRST_PAUSE_SECONDS", 0.0)
    assert learned_blocks(str(tmp_path)).state() == Ledger().state()

    def away(*_arguments, **_options):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr("os.stat", away)  # as a mounted bucket answers that has lost its connection
    with pytest.raises(StoreError, match="Transport endpoint is not connected"):
        learned_blocks(str(tmp_path))


def test_the_folder_of_a_checkpoint_that_goes_while_it_is_read_is_looked_for_again(store, monkeypatch):
    open_file = store._open

    def gone(self, path, *arguments, **options):
        monkeypatch.setattr(store, "_open", open_file)
        del store.files[path]
        raise FileNotFoundError(path)

    monkeypatch.setattr(store, "_open", gone)
    assert learned_blocks(RUN).state() != Ledger().state()
    assert latest(FOLDER) == f"{FOLDER}/step-00000001"
