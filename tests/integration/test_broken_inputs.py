"""Broken checkpoints, specs and paths end in one sentence for each fault: no traceback, no hang."""

import pytest

from tests.support.broken_inputs import BrokenInput, broken_inputs
from tests.support.forked_commands import Result, run_commands

pytestmark = pytest.mark.timeout(600)

LIMIT_SECONDS = 30.0


def complaint(broken: BrokenInput, check: Result, plan: Result) -> str:
    """What is wrong with the way in which ``check`` and ``plan`` took a broken input; empty if nothing is."""
    for verb, result in (("check", check), ("plan", plan)):
        if result.timed_out:
            return f"{verb} hung"
        if result.code not in (0, 1, 2):
            return f"{verb} ended with {result.code}"
        if "Traceback (most recent call last)" in result.output:
            return f"{verb} printed a traceback"
        if result.code and not any(word in result.output for word in broken.words):
            return f"{verb} named none of {broken.words}"
    if broken.refused is not None and broken.refused != bool(plan.code):
        return f"plan ended with {plan.code}"
    return ""


def test_broken_inputs_end_in_a_sentence(tmp_path):
    inputs = broken_inputs(tmp_path)
    assert len(inputs) >= 100
    commands = [[verb, str(broken.spec)] for broken in inputs for verb in ("plan", "check")]
    results = run_commands(commands, LIMIT_SECONDS)
    complaints = [
        f"{broken.kind}, {broken.name}: {found}\n{plan.output[-600:]}"
        for broken, check, plan in zip(inputs, results[1::2], results[::2], strict=True)
        if (found := complaint(broken, check, plan))
    ]
    assert not complaints, f"{len(complaints)} of {len(inputs)}:\n" + "\n".join(complaints)
