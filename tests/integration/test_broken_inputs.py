"""Broken checkpoints, specs and paths end in one sentence for each fault: no traceback, no hang; odd ones are read."""

import pytest

from tests.support.broken_inputs import BrokenInput, broken_inputs
from tests.support.forked_commands import Result, run_commands
from tests.support.odd_inputs import odd_inputs

pytestmark = pytest.mark.timeout(600)

LIMIT_SECONDS = 30.0
ODD_LIMIT_SECONDS = 10.0


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


def complaints(inputs: list[BrokenInput], limit_seconds: float, *options: str) -> str:
    """All complaints, a paragraph each.

    Args:
        options: of ``plan``.
    """
    commands = [[*verb, str(broken.spec)] for broken in inputs for verb in (("plan", *options), ("check",))]
    results = run_commands(commands, limit_seconds)
    found = [
        f"{broken.kind}, {broken.name}: {reason}\n{plan.output[-600:]}"
        for broken, check, plan in zip(inputs, results[1::2], results[::2], strict=True)
        if (reason := complaint(broken, check, plan))
    ]
    return "\n".join([f"{len(found)} of {len(inputs)}:", *found]) if found else ""


def test_broken_inputs_end_in_a_sentence(tmp_path):
    inputs = broken_inputs(tmp_path)
    assert len(inputs) >= 100
    assert not complaints(inputs, LIMIT_SECONDS)


def test_odd_inputs_are_read_or_end_in_a_sentence(tmp_path):
    assert not complaints(odd_inputs(tmp_path), ODD_LIMIT_SECONDS, "--without-scoring")
