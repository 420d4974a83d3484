"""The pinned sets hold what the project and its packages require, in versions that fit; no index is asked.

What a package requires is read from the packages installed here: nearly all of both sets, but for CUDA's own.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from requirements.lock import ALWAYS_LEFT_OUT, LEFT_OUT
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]

#: Packages whose requirements must have been read, at the least: a check that reads none finds no conflict.
READ_AT_LEAST = 100


def pinned(device: str) -> dict[str, str]:
    """Package to version of a set; every line pins one package, and none is there twice."""
    lines = (ROOT / "requirements" / f"{device}.txt").read_text(encoding="utf8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pair) == 2 and pair[0] == canonicalize_name(pair[0]) for pair in pairs)
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def of_the_project(device: str) -> list[Requirement]:
    """What ``make lock`` asks for: the project, its development tools and one vLLM."""
    extras = PROJECT["optional-dependencies"]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *extras["dev"], *extras[device]]]


def required_by(wanted: Requirement, pins: dict[str, str]) -> list[Requirement]:
    """What a package requires, if the pinned version of it is installed here."""
    try:
        package = distribution(wanted.name)
    except PackageNotFoundError:
        return []
    if package.version != pins.get(canonicalize_name(wanted.name)):
        return []
    every = [Requirement(text) for text in package.requires or []]
    environments = [{**default_environment(), "extra": extra} for extra in ("", *wanted.extras)]
    return [one for one in every if not one.marker or any(one.marker.evaluate(there) for there in environments)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_requirement_is_pinned_in_a_version_that_fits(device):
    pins, left_out = pinned(device), {*LEFT_OUT[device], *ALWAYS_LEFT_OUT}
    waiting = [("the project", requirement) for requirement in of_the_project(device)]
    waiting += [("the set", Requirement(f"{name}=={version}")) for name, version in pins.items()]
    seen, read, faults = set(), set(), []
    while waiting:
        by, wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in left_out or (name, frozenset(wanted.extras), str(wanted.specifier)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras), str(wanted.specifier)))
        if name not in pins or not wanted.specifier.contains(pins[name], prereleases=True):
            faults.append(f"{by} requires {wanted}, {device}.txt has {name} {pins.get(name)}")
        more = required_by(wanted, pins)
        read |= {name} if more else set()
        waiting += [(name, requirement) for requirement in more]
    assert not faults
    assert len(read) >= READ_AT_LEAST
