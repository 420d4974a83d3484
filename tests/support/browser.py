"""A real browser that opens a page of this machine: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium")


@dataclass
class Visit:
    """An open page, what it has written to the console, errors included, and what it has asked for beside itself."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """What the page says of the run."""
        return self.page.locator("#status").inner_text()

    @property
    def is_wider_than_the_window(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")


@contextmanager
def visit(file: Path, width: int = 1280) -> Iterator[Visit]:
    """Open an HTML file in a window of this width; skips the test with a reason where no Chromium is installed."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium; as root on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visit = Visit(browser.new_page(viewport={"width": width, "height": 900}))
        visit.page.on("console", lambda message: visit.console.append(message.text))
        visit.page.on("pageerror", lambda error: visit.console.append(str(error)))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.goto(file.as_uri())
        yield visit
        browser.close()
    assert set(visit.requests) == {file.as_uri()}, "a page asks for nothing but itself"
    assert visit.console == []
