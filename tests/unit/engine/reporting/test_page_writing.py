"""A page is replaced at once, by several writers as well, and takes another status without being made again."""

import threading
from pathlib import Path

import pytest

from engine.history.result import Progress
from engine.reporting.page import Status, render_report, status_element, with_status, write_page
from engine.spec.loading import parse
from pipelines.run.result import result_of
from tests.support.step_records import step_record

pytestmark = pytest.mark.timeout(60)


def test_two_who_write_one_page_do_not_disturb_one_another(tmp_path):
    """Each has a file of its own that becomes the page: the page is whole at any time, and nothing is left over."""
    url, failures = str(tmp_path / "report.html"), []
    pages = [letter * 100_000 for letter in "ab"]

    def write(page):
        try:
            for _ in range(200):
                write_page(page, url)
        except OSError as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(page,)) for page in pages]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if (file := Path(url)).exists():
            assert file.read_text() in pages
    assert failures == []
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_leaves_nothing_over(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError):
        write_page("page", str(tmp_path / "report.html"))
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_another_status_changes_nothing_else_in_a_page():
    spec = parse(
        {
            "run": {"name": "trial", "output_dir": "outputs"},
            "corpus": {"paths": ['<p class="status" id="status">.jsonl']},
            "target_model": {"checkpoint": "target"},
            "objective": {"lm_loss_weight": 1.0},
        }
    )
    result = result_of(spec, [step_record(1)], Progress(), 1.0, None)
    first, second = Status("", 0.0), Status(r"failed: \1 </p> <b>", 1.8e9, 30.0)
    page = with_status(render_report(spec, result, first), second)
    assert page == render_report(spec, result, second)
    assert page.count(status_element(second)) == 1
    assert with_status(page, first) == render_report(spec, result, first)
