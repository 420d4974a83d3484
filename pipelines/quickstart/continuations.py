"""Make the quickstart's task, a multiple choice on held-out text: how does the document continue?

    python -m pipelines.quickstart.continuations

Each question is the beginning of a stretch of held-out text. The right choice is its continuation, the others are
continuations of other stretches: four beginnings, two of each domain, share their four choices. So a model that ignores
the beginning is right exactly once in four, whatever it prefers; a model that only sees the domain, once in two. All
choices have the same number of characters.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
DOMAINS = ("docs", "code")
CONTEXT, CONTINUATION = 160, 64
GROUPS, OF_EACH_DOMAIN = 20, 2


def main() -> None:
    """Write ``tasks/continuations.jsonl``, always with the same questions."""
    draw = random.Random(0)
    by_domain = {domain: _stretches_of(domain) for domain in DOMAINS}
    chosen = {domain: draw.sample(sorted(found), GROUPS * OF_EACH_DOMAIN) for domain, found in by_domain.items()}
    contexts = {right: context for found in by_domain.values() for right, context in found.items()}
    questions = []
    for start in range(0, GROUPS * OF_EACH_DOMAIN, OF_EACH_DOMAIN):
        choices = [right for domain in DOMAINS for right in chosen[domain][start : start + OF_EACH_DOMAIN]]
        draw.shuffle(choices)
        questions += [
            {"context": contexts[right], "choices": choices, "answer": answer} for answer, right in enumerate(choices)
        ]
    draw.shuffle(questions)
    lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in questions]
    (HERE / "tasks" / "continuations.jsonl").write_text("".join(lines), encoding="utf8")


def _stretches_of(domain: str) -> dict[str, str]:
    """Continuation to beginning, for all stretches of a domain."""
    lines = (HERE / "corpus" / f"heldout_{domain}.jsonl").read_text(encoding="utf8").splitlines()
    return {right: context for line in lines for context, right in stretches(json.loads(line)["text"])}


def stretches(text: str) -> list[tuple[str, str]]:
    """Consecutive stretches of a text as (beginning, continuation), each cut before a space."""
    found = []
    start = 0
    while (cut := text.find(" ", start + CONTEXT)) != -1 and cut + CONTINUATION <= len(text):
        found.append((text[start:cut], text[cut : cut + CONTINUATION]))
        start = cut + CONTINUATION
    return found


if __name__ == "__main__":
    main()
