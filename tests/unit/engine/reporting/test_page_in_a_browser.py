"""The page in a real browser: tokens answer to clicks and keys, show what the slow path says, and stay on a reload."""

import json
import math
import re
import time

import pytest
import torch
from playwright.sync_api import expect

from actors.training.looks import Look, with_own_rows
from engine.method.losses import PLAIN, Targets
from engine.method.own_rows import own_rows
from engine.model_files.checkpoint import Checkpoint
from engine.records import rows_of
from engine.reporting.page import Status, render_report, write_page
from engine.reporting.token_view import text_of, token_data
from engine.spec.loading import parse
from engine.text.tokenization import PassageTokenizer
from tests.oracles import label_gain
from tests.support.browser import visit
from tests.unit.actors.test_aligner import TOP_K, aligner, asked, folders, passages, scored, slow_look, slow_row  # noqa: F401
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
        assert "rest mass 20.0 %" in rows.nth(2).inner_text()
        assert "label 0.700 nats · gain 0.100" in rows.nth(3).inner_text()
        assert "gpt2-code 100.0 % (0.300 nats per byte in the passage)" in details.inner_text()
        seen.page.keyboard.press("ArrowRight")
        assert "no row · label - nats" in rows.nth(1).inner_text()
        assert seen.page.evaluate("document.activeElement.dataset.row") == "2"
        assert not seen.is_wider_than_the_window


@pytest.mark.timeout(240)
def test_three_tokens_show_what_the_slow_path_says(folders, tmp_path, result):  # noqa: F811
    batch, names, target = passages(), list(folders), "byte-level-with-bos"
    for name in names:
        batch = scored(batch, name, folders[name])
    align = aligner(folders, target, names, tmp_path)
    table = align(batch)
    row, look = next(
        (row, look)
        for row, look in enumerate(map(described, table["inspection"].to_pylist()))
        if sum(map(bool, look.get("fused", ()))) >= 3
    )
    tokenizers = {name: PassageTokenizer.load(Checkpoint(str(folders[name]))) for name in names}
    teachers = slow_look(batch, row, names, tokenizers, tokenizers[target], asked(align))
    look, p = with_target(look, table, row, tokenizers[target].vocab_size)

    sections = SPEC.model_dump() | {"source_models": [{"name": name, "checkpoint": "models/a"} for name in names]}
    data = token_data(parse(sections), [look], tokenizers[target].token_bytes)
    file = tmp_path / "report.html"
    write_page(render_report(SPEC, result, Status("done", time.time()), data), str(file))
    with visit(file) as seen:
        for place in [place for place, fused in enumerate(look["fused"]) if fused][:3]:
            seen.page.locator(".token").nth(place).click()
            lines = seen.page.locator("#token-details tbody tr").all()
            at, label = look["first"] + place, look["tokens"][place]
            fused = slow_row(teachers[0], at)
            expected = [*(slow_row(teacher, at) for teacher in teachers[1:]), fused, dict(enumerate(p[place].tolist()))]
            for line, distribution in zip(lines, expected, strict=True):
                check_line(line, distribution, tokenizers[target].token_bytes)
            gain = label_gain(p[place].tolist(), {token: q for token, q in fused.items() if q > 0}, label)
            numbers = re.search(r"label (\S+) nats · gain (\S+)", lines[-1].inner_text()).groups()
            # The aligner's probabilities are float16, the page's numbers have three decimals.
            assert [*map(float, numbers)] == pytest.approx([-math.log(p[place][label]), gain], abs=1.5e-3)


def described(text):
    """The look in a column's value, without any an empty one."""
    return json.loads(text) if text else {}


def with_target(look, table, row, vocabulary):
    """A look with the rows of a target of random weights, and that target's distributions, float64 [rows, V]."""
    rows = slice(look["first"], look["first"] + len(look["tokens"]))
    random = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(size, 8, generator=random) for size in (len(look["tokens"]), vocabulary))
    targets = Targets(
        labels=torch.tensor(look["tokens"]),
        fused_ids=torch.tensor(rows_of(table["fused_ids"])[row].reshape(-1, TOP_K)[rows]).long(),
        fused_probs=torch.tensor(rows_of(table["fused_probs"])[row].reshape(-1, TOP_K)[rows]).float(),
        fusion_mask=torch.tensor(rows_of(table["is_fused"])[row][rows]),
        fusion_weights=torch.ones(len(look["tokens"])),
        lm_weights=torch.ones(len(look["tokens"])),
    )
    own = own_rows(hidden, head, None, targets, PLAIN)
    (found,) = with_own_rows([Look(look, 0, 0, len(look["tokens"]))], own, step=1, sample=1)
    return found, (hidden.double() @ head.double().T).softmax(-1).numpy()


def check_line(line, distribution, token_bytes):
    """What a line shows are the top entries of a distribution (target token to probability) and all others' mass."""
    kept = sorted((token for token, p in distribution.items() if p > 0), key=lambda token: -distribution[token])
    texts, cells = line.locator("td code").all_inner_texts(), line.locator("td .p, td.p").all_inner_texts()
    assert len(texts) == min(5, len(kept)) == max(0, len(cells) - 1)
    shown = [float(cell.removesuffix(" %")) / 100 for cell in cells]
    expected = [distribution[token] for token in kept[:5]]
    assert shown == pytest.approx([*expected, 1.0 - sum(expected)] if kept else [], abs=6e-4)
    for text, probability in zip(texts, expected, strict=True):  # tokens of equal probability may change places
        alike = [token for token in kept if distribution[token] == pytest.approx(probability, rel=2e-3, abs=6e-6)]
        assert text in {visible(text_of(token_bytes[token])) for token in alike}


def visible(text):
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "∅"


def test_a_running_page_reloads_itself_and_keeps_its_place(tmp_path, result):  # noqa: F811
    file = page_file(tmp_path, result, seconds_between=1.0)
    with visit(file) as seen:
        seen.page.locator(".token").nth(2).click()
        seen.page.locator("#token-passage").select_option("step 16: 0/a:16:0, at random")
        seen.page.locator(".token").nth(1).click()
        seen.page.locator("#spec summary").click()
        seen.page.evaluate("scrollTo(0, 200)")
        text = file.read_text(encoding="utf8").replace("running, step 12", "running, step 13")
        write_page(text, str(file))
        expect(seen.page.locator("#status")).to_contain_text("step 13", timeout=20_000)
        assert seen.page.locator("#spec").get_attribute("open") is None
        assert seen.page.locator('.token[aria-pressed="true"]').get_attribute("data-row") == "1"
        assert seen.page.locator("#token-passage").input_value() == "step 16: 0/a:16:0, at random"
        assert seen.page.evaluate("scrollY") == 200


def active(seen):
    """The id of the element that has the keyboard."""
    return seen.page.evaluate("document.activeElement.id")


def test_the_controls_keep_the_keyboard(tmp_path, result):  # noqa: F811
    with visit(page_file(tmp_path, result)) as seen:
        passages, shades, press = (
            *map(seen.page.locator, ("#token-passage", "#token-shade")),
            seen.page.keyboard.press,
        )
        first, second = "step 1: 0/a:1:0, at random", "step 16: 0/a:16:0, at random"
        passages.focus()
        for key, name in (("ArrowDown", second), ("ArrowUp", first), ("ArrowDown", second)):
            press(key)
            assert (passages.input_value(), active(seen)) == (name, "token-passage")
        press("Tab")
        press("ArrowDown")
        assert (shades.input_value(), active(seen)) == ("gain", "token-shade")
        assert "gain of the teacher: 0.100 nats" in seen.page.locator(".token").first.get_attribute("title")
        press("Tab")
        press("ArrowRight")
        assert active(seen) == "token-1" and "label" in seen.page.locator("#token-details").inner_text()


@pytest.mark.parametrize(("place", "key"), [("token-passage", "ArrowDown"), ("token-1", "ArrowRight")])
def test_a_running_page_keeps_the_keyboard_where_it_was(tmp_path, result, place, key):  # noqa: F811
    file = page_file(tmp_path, result, seconds_between=1.0)
    with visit(file) as seen:
        seen.page.locator(f"#{place}").focus()
        last = file.read_text(encoding="utf8").replace("running, step 12", "running, step 13")
        write_page(last.replace('data-next="1"', 'data-next="0"'), str(file))
        expect(seen.page.locator("#status")).to_contain_text("step 13", timeout=20_000)
        seen.page.wait_for_load_state()
        assert active(seen) == place
        seen.page.keyboard.press(key)
        assert active(seen) == ("token-2" if place == "token-1" else place)
        chosen = "step 16: 0/a:16:0, at random" if place == "token-passage" else "step 1: 0/a:1:0, at random"
        assert seen.page.locator("#token-passage").input_value() == chosen


def test_the_page_of_a_run_that_was_killed_says_so(tmp_path, result):  # noqa: F811
    file = page_file(tmp_path, result, seconds_between=30.0, written=time.time() - 600)
    with visit(file) as seen:
        assert "last written 10 min ago" in seen.status
        assert "the run was killed, or this is a copy of its page" in seen.status
