"""A file of events: appended to, whole after a crash, bounded, and the same in an object store."""

import json
import math
from itertools import product

import fsspec
import pytest

from engine.reporting import event_file
from engine.reporting.event_file import EventFile

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(params=["disk", "store"])
def url(request, tmp_path):
    yield f"memory://events/{tmp_path.name}/logs/events.jsonl" if request.param == "store" else f"{tmp_path}/e.jsonl"


def events(url):
    with fsspec.open(url, "r", encoding="utf8") as file:
        text = file.read()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_events_of_all_starts_are_kept_in_order(url):
    for start in range(2):
        file = EventFile(url)
        for step in range(3):
            file.add("step", 1.8e9 + step, "trial", step, {"start": start, "seconds": 2.5, "values": (1.5, math.nan)})
            assert not file.is_written
            file.write()
            assert file.is_written
    found = events(url)
    assert [(event["start"], event["step"]) for event in found] == [*product((0, 1), range(3))]
    assert found[1] == {
        "time": "2027-01-15T08:00:01.000Z",
        "event": "step",
        "run": "trial",
        "step": 1,
        "start": 0,
        "seconds": 2.5,
        "values": [1.5, None],
    }


def test_half_a_line_of_a_crash_is_dropped(url):
    with fsspec.open(url, "w", encoding="utf8") as file:
        file.write('{"event": "started"}\n{"event": "che')
    file = EventFile(url)
    file.add("started", 0.0, "trial", 0, {})
    file.write()
    assert [event["event"] for event in events(url)] == ["started", "started"]


def test_the_file_is_bounded(url, monkeypatch):
    monkeypatch.setattr(event_file, "MOST_LINES", 10)
    for _ in range(2):
        file = EventFile(url)
        for step in range(18):
            file.add("step", 0.0, "trial", step, {})
            file.write()
            assert len(events(url)) <= 10
    assert [event["step"] for event in events(url)][-3:] == [15, 16, 17]


def test_a_disk_is_appended_to(tmp_path):
    path = tmp_path / "e.jsonl"
    file = EventFile(str(path))
    file.add("started", 0.0, "trial", 0, {})
    file.write()
    with open(path) as reader:
        reader.readline()
        file.add("checkpoint", 1.0, "trial", 10, {})
        file.write()
        assert json.loads(reader.readline())["event"] == "checkpoint", "a program that follows the file sees it"
