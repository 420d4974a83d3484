"""The data of the token view are bounded, readable again from a page, and harmless inside of it."""

import json

import pytest

from engine.reporting.token_view import MOST_BYTES, data_in, text_of, token_data, token_view
from engine.spec.loading import parse

pytestmark = pytest.mark.timeout(30)

SPEC = parse(
    {
        "run": {"name": "trial", "output_dir": "outputs"},
        "corpus": {"paths": ["corpus.jsonl"]},
        "target_model": {"checkpoint": "models/target"},
        "source_models": [{"name": "one", "checkpoint": "models/one"}],
    }
)


def look(step, rows=3):
    row = [[1, 2], [0.5, 0.25], 0.2]
    source = {"how": [1] * rows, "cost": [0.5] * rows, "rows": [row] * rows}
    return {
        "step": step, "sample": step, "passage": f"0/a:{step}:0", "why": "at random", "first": 0,
        "before": [0], "tokens": [1] * rows,
        "fused": [row] * rows, "weights": [[1.0]] * rows, "cross_entropy": [0.4], "sources": [source],
        "own": [row] * rows, "costs": [0.7] * rows, "gains": [0.1] * rows,
    }  # fmt: skip


def test_the_data_come_back_from_the_page():
    data = token_data(SPEC, [look(1), look(2)], [None, b"</script><b>", b"\xf0\x9f"])
    assert data["texts"] == {0: "⟨special⟩", 1: "</script><b>", 2: "\\xf0\\x9f"}
    page = "<main>" + token_view(data) + "</main>"
    assert page.count("</script>") == 1 and "<b>" not in page
    assert data_in(page) == json.loads(json.dumps(data))
    assert data_in("<main></main>") == {} and token_view({}) == ""


def test_the_data_are_bounded():
    many = [look(step, rows=400) for step in range(1, 101)]
    shown = token_data(SPEC, many, [b"a", b"b", b"c"])["passages"]
    assert len(json.dumps(shown)) <= MOST_BYTES
    assert [passage["step"] for passage in shown] == list(range(1, 101))[:: 100 // len(shown)]


def test_the_view_takes_the_room_that_a_page_has_left():
    data = token_data(SPEC, [look(step, rows=64) for step in range(1, 17)], [b"a", b"b", b"c"])
    whole = token_view(data)
    assert len(data_in(whole)["passages"]) == 16 and token_view(data, len(whole)) == whole
    for room, shown in ((len(whole) - 1, range(1, 17, 2)), (len(whole) // 3, range(1, 17, 4))):
        section = token_view(data, room)
        assert len(section.encode("utf8")) <= room
        assert [passage["step"] for passage in data_in(section)["passages"]] == list(shown)
    assert token_view(data, 1000) == token_view(data, -1) == "", "not even one passage"


def test_a_passage_that_is_too_large_alone_is_left_out():
    assert token_data(SPEC, [look(1, rows=30_000)], [b"a", b"b", b"c"])["passages"] == []


def test_bytes_of_a_token_that_are_no_character_are_shown():
    assert text_of("é".encode()) == "é"
    assert text_of(b" \xc3") == " \\xc3"
