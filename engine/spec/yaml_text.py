"""YAML text to values, with one sentence for each way in which it can be wrong; every key counts once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from engine.errors import Fault, SpecError

#: Brackets open at once; the reader's time grows with their square.
MOST_OPEN_BRACKETS = 100

#: Numbers with a leading zero or with colons.
_OTHER_BASE = re.compile(r"[-+]?0[0-7_]+|.*:.*")


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML document of plain types.

    Args:
        where: the file or override that it stands in, for the faults.

    Raises:
        SpecError: it is not YAML or has a value that Python cannot read; or it lists every key that is given twice and
            every number that YAML reads as another.
    """
    too_deep = SpecError([Fault(where, "is nested too deep", "a spec has four levels")])
    if _open_brackets(text) > MOST_OPEN_BRACKETS:
        raise too_deep
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        faults = [
            fault
            for path, inside in (_nodes(node, (), set()) if node else ())
            for fault in (*_repeated_keys(path, inside), *_misread_numbers(path, inside, where))
        ]
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


def _nodes(node: yaml.Node, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    """A node after all inside it, each once, with the keys and positions that lead to it.

    Args:
        seen: nodes that were looked at: an alias leads to one again, even to one around it.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _nodes(item, (*path, str(index)), seen)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield from _nodes(value, (*path, str(key.value)), seen)
    yield path, node


def _repeated_keys(path: tuple[str, ...], node: yaml.Node) -> Iterator[Fault]:
    """A fault for every key that a mapping has twice; YAML itself would keep the last without a word."""
    first: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in first and key.value != "<<":
            lines = f"in lines {first[key.value]} and {line}" if first[key.value] != line else f"in line {line}"
            yield Fault(".".join((*path, str(key.value))), f"is given twice, {lines}", "keep one of them")
        first.setdefault(key.value, line)


def _misread_numbers(path: tuple[str, ...], node: yaml.Node, where: str) -> Iterator[Fault]:
    """A fault for a number that YAML 1.1 reads by another base: ``010`` by 8, ``1:30`` by 60."""
    is_number = isinstance(node, yaml.ScalarNode) and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if is_number and _OTHER_BASE.fullmatch(node.value):
        reason = f"is {node.value}, which YAML reads as {yaml.safe_load(node.value)}"
        yield Fault(".".join(path) or where, reason, "write the number that you mean without zeros and colons")
