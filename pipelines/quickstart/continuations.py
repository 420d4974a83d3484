"""Makes the quickstart's task, a multiple choice on held-out text: how does the document go on?

    python -m pipelines.quickstart.continuations

Each question is the beginning of a stretch of held-out text. One choice is what follows; the others follow elsewhere in
the same domain. All choices have the same number of characters. Chance is 25 %.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
DOMAINS = ("docs", "code")
CONTEXT, CONTINUATION, CHOICES = 160, 48, 4
QUESTIONS_OF_DOMAIN = 40


def main() -> None:
    """Write ``tasks/continuations.jsonl``; the same questions every time."""
    draw = random.Random(0)
    questions = [question for domain in DOMAINS for question in _questions(domain, draw)]
    lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in questions]
    (HERE / "tasks" / "continuations.jsonl").write_text("".join(lines), encoding="utf8")


def _questions(domain: str, draw: random.Random) -> list[dict]:
    lines = (HERE / "corpus" / f"heldout_{domain}.jsonl").read_text(encoding="utf8").splitlines()
    stretches = [stretch for line in lines for stretch in _stretches(json.loads(line)["text"])]
    asked = draw.sample(range(len(stretches)), QUESTIONS_OF_DOMAIN)
    return [_question(domain, stretches, index, draw) for index in sorted(asked)]


def _stretches(text: str) -> list[tuple[str, str]]:
    """Beginnings and what follows them, one behind the other, each cut before a blank."""
    found = []
    start = 0
    while (cut := text.find(" ", start + CONTEXT)) != -1 and cut + CONTINUATION <= len(text):
        found.append((text[start:cut], text[cut : cut + CONTINUATION]))
        start = cut + CONTINUATION
    return found


def _question(domain: str, stretches: list[tuple[str, str]], index: int, draw: random.Random) -> dict:
    context, right = stretches[index]
    others = sorted({continuation for _, continuation in stretches} - {right})
    choices = [right, *draw.sample(others, CHOICES - 1)]
    draw.shuffle(choices)
    return {"domain": domain, "context": context, "choices": choices, "answer": choices.index(right)}


if __name__ == "__main__":
    main()
