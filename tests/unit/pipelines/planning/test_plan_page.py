"""The page of a plan says what a run would refuse, and the command line says it too."""

from types import SimpleNamespace

import pytest

import engine
from engine.__main__ import main
from engine.errors import Fault
from pipelines.planning.plan import Plan
from pipelines.planning.plan_page import render_plan
from tests.unit.engine.reporting.test_page import SPEC, Page

pytestmark = pytest.mark.timeout(60)

REFUSALS = (
    Fault("target_model", "its rows are <no> distribution", "convert its weights again"),
    Fault("source_models.0", "it cannot be scored here"),
)


@pytest.fixture
def refused():
    """A plan of which nothing is known but what a run would refuse."""
    parts = {"spec": SPEC, "sizes": {}, "costs": (), "domains": (), "sources": (), "comparison": None, "scored": None}
    plan = SimpleNamespace(**parts, refusals=REFUSALS)
    plan.write_page = lambda url: Plan.write_page(plan, url)
    return plan


def test_the_page_has_each_refusal_with_its_remedy(refused):
    texts = [text for text in Page(render_plan(refused, 1.8e9)).texts if text]
    first = texts.index("A run would refuse")
    assert texts[first : first + 9] == [
        "A run would refuse", "where", "why", "what to do",
        "target_model", "its rows are <no> distribution", "convert its weights again",
        "source_models.0", "it cannot be scored here",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("plan.html", "the run cannot start (2 faults):\n  - target_model: its rows are <no> distribution; convert"),
        ("file/plan.html", "file/plan.html: the page cannot be written: FileExistsError: "),
        ("foo://x/plan.html", "foo://x/plan.html cannot be reached: ValueError: Protocol not known: foo; give a path"),
    ],
)
def test_the_command_line_ends_in_a_sentence(refused, monkeypatch, tmp_path, capsys, page, words):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(engine, "plan", lambda *_, **__: refused, raising=False)
    monkeypatch.setattr(engine, "check", lambda *_, **__: None, raising=False)
    url = page if "://" in page else str(tmp_path / page)
    assert main(["plan", "pipelines/specs/quickstart.yaml", "--html", url]) == 1
    assert words in capsys.readouterr().err
    assert (tmp_path / "plan.html").exists() == (page == "plan.html")
