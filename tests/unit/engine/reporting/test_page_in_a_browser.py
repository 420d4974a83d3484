"""The page in a real browser: tokens answer to clicks and keys, and it reloads without losing its place."""

import time

import pytest
from playwright.sync_api import expect

from engine.reporting.page import Status, render_report, write_page
from engine.reporting.token_view import token_data
from tests.support.browser import visit
from tests.unit.engine.reporting.test_page import SPEC, result, step  # noqa: F401
from tests.unit.engine.reporting.test_token_view import look

pytestmark = pytest.mark.timeout(120)

TOKENS = [b" cat", b" sat", b"\n<on>"]


def two_sources(number):
    """A passage of which each token has a row of both sources; the second one has won."""
    found = look(number)
    second = {"how": [2, 4, 0], "cost": [0.25, 1.5, None], "rows": [*found["fused"][:2], None]}
    return found | {"sources": [*found["sources"], second], "weights": [[0.0, 1.0]] * 3, "cross_entropy": [0.4, 0.3]}


def page_file(folder, result, seconds_between=0.0, written=None):  # noqa: F811
    data = token_data(SPEC, [two_sources(1), two_sources(16)], TOKENS)
    status = Status("running, step 12 of 40", time.time() if written is None else written, seconds_between)
    write_page(render_report(SPEC, result, status, data), str(folder / "report.html"))
    return folder / "report.html"


@pytest.mark.parametrize("width", [1280, 400])
def test_a_token_shows_its_rows(tmp_path, result, width):  # noqa: F811
    with visit(page_file(tmp_path, result), width) as seen:
        tokens, details = seen.page.locator(".token"), seen.page.locator("#token-details")
        assert tokens.all_inner_texts()[0] == " sat"
        assert "Choose a token." in details.inner_text()
        tokens.nth(1).click()
        rows = details.locator("tbody tr")
        assert [row.locator("th").inner_text().split("\n")[0] for row in rows.all()] == [
            "llama-docs", "★ gpt2-code", "fused", "target",
        ]  # fmt: skip
        assert "same token · label 0.500 nats" in rows.nth(0).inner_text()
        assert "inside a token of the source · label 1.500 nats" in rows.nth(1).inner_text()
        assert rows.nth(2).locator("td").all_inner_texts()[:2] == ["␣sat50.0 %", "↵<on>25.0 %"]
        assert rows.nth(2).locator("td").last.inner_text() == "25.0 %"
        assert "label 0.700 nats · gain 0.100" in rows.nth(3).inner_text()
        assert "gpt2-code 100.0 % (0.300 nats per byte in the passage)" in details.inner_text()
        seen.page.keyboard.press("ArrowRight")
        assert "no row · label - nats" in rows.nth(1).inner_text()
        assert seen.page.evaluate("document.activeElement.dataset.row") == "2"
        assert not seen.is_wider_than_the_window


def test_a_running_page_reloads_itself_and_keeps_its_place(tmp_path, result):  # noqa: F811
    file = page_file(tmp_path, result, seconds_between=1.0)
    with visit(file) as seen:
        seen.page.locator(".token").nth(2).click()
        seen.page.locator("#token-passage").select_option("1")
        seen.page.locator(".token").nth(1).click()
        seen.page.locator("#spec summary").click()
        seen.page.evaluate("scrollTo(0, 200)")
        text = file.read_text(encoding="utf8").replace("running, step 12", "running, step 13")
        write_page(text, str(file))
        expect(seen.page.locator("#status")).to_contain_text("step 13", timeout=20_000)
        assert seen.page.locator("#spec").get_attribute("open") is None
        assert seen.page.locator('.token[aria-pressed="true"]').get_attribute("data-row") == "1"
        assert seen.page.locator("#token-passage").input_value() == "1"
        assert seen.page.evaluate("scrollY") == 200


def test_the_page_of_a_run_that_was_killed_says_so(tmp_path, result):  # noqa: F811
    file = page_file(tmp_path, result, seconds_between=30.0, written=time.time() - 600)
    with visit(file) as seen:
        assert "last written 10 min ago" in seen.status
        assert "the run was killed, or this is a copy of its page" in seen.status
