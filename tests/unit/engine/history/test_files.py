"""The files of a run's history: full ones stay as they are, and come back as they were."""

import math

import pytest

from engine.errors import StoreError
from engine.history import files
from engine.history.files import STEPS_IN_FILE, read_files, steps_in_files, write_files
from tests.support.step_records import step_record


def test_all_steps_but_the_last_ones_are_in_full_files():
    for num_steps in (0, 1, STEPS_IN_FILE - 1, STEPS_IN_FILE):
        assert steps_in_files(num_steps) == 0, "the last step may be evaluated later"
    assert steps_in_files(STEPS_IN_FILE + 1) == STEPS_IN_FILE
    assert steps_in_files(3 * STEPS_IN_FILE) == 2 * STEPS_IN_FILE


@pytest.mark.parametrize("place", ["{folder}", "memory://history-of-a-run"])
def test_records_come_back_as_they_were(tmp_path, monkeypatch, place):
    monkeypatch.setattr(files, "STEPS_IN_FILE", 3)
    output_dir = place.format(folder=tmp_path / "run [1]")
    records = [
        step_record(step, source_nats=(1.5, 2.0), held_out={"docs": math.inf} if step == 4 else {}, retired=("a",))
        for step in range(1, 10)
    ]
    write_files(output_dir, 0, records[:3])
    write_files(output_dir, 3, records[3:])
    for num_steps in (0, 3, 6, 9):
        assert read_files(output_dir, num_steps, 1) == records[:num_steps]
    again = [step_record(step, loss=0.5) for step in range(4, 7)]
    write_files(output_dir, 3, again)  # steps that are taken again, since no checkpoint counted on the file
    assert read_files(output_dir, 9, 1) == [*records[:3], *again, *records[6:]]


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"history/steps-00000001\.jsonl: .* counts on this file"):
        read_files(str(tmp_path), STEPS_IN_FILE, 1)
