"""YAML text to values, with one sentence for each way in which it can be wrong; every key counts once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from engine.errors import Fault, SpecError

#: Brackets open at once; the reader's time grows with their square.
MOST_OPEN_BRACKETS = 100


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML document of plain types.

    Args:
        where: the file or override that it stands in, for the faults.

    Raises:
        SpecError: it is not YAML, has a value that Python cannot read, or lists every key that is given twice.
    """
    too_deep = SpecError([Fault(where, "is nested too deep", "a spec has four levels")])
    if _open_brackets(text) > MOST_OPEN_BRACKETS:
        raise too_deep
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        faults = list(_repeated_keys(node, (), set()))
        if not faults:
            return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError([Fault(place, f"is not YAML: {reason}")]) from None
    except RecursionError:
        raise too_deep from None
    except (ValueError, TypeError) as error:  # a date of month 99, a number of 5,000 digits, a key that is a mapping
        reason = str(error).partition(";")[0]
        raise SpecError([Fault(where, f"has a value that cannot be read: {reason}", "put it in quotes")]) from None
    raise SpecError(faults)


def _open_brackets(text: str) -> int:
    """The most brackets that are open at once; those in quotes count, which a spec has few of."""
    most = now = 0
    for character in text:
        now += (character in "[{") - (character in "]}")
        most = max(most, now)
    return most


def _repeated_keys(node: yaml.Node | None, path: tuple[str, ...], seen: set[int]) -> Iterator[Fault]:
    """A fault for every key that a mapping inside ``node`` has twice; YAML itself would keep the last without a word.

    Args:
        path: keys and positions that lead to ``node``.
        seen: nodes that were looked at: an alias leads to one again, even to one around it.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, (*path, str(index)), seen)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        inside, line = (*path, str(key.value)), key.start_mark.line + 1
        if key.value in first and key.value != "<<":
            lines = f"in lines {first[key.value]} and {line}" if first[key.value] != line else f"in line {line}"
            yield Fault(".".join(inside), f"is given twice, {lines}", "keep one of them")
        first.setdefault(key.value, line)
        yield from _repeated_keys(value, inside, seen)
