"""The rules of the house: one direction of imports, a cheap door, no drawer of odds and ends."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import engine
from engine import load_spec
from tests.support.paths import ROOT

PACKAGES = ("engine", "actors", "pipelines")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = ("ray", "torch", "vllm", "numba", "transformers", "pyarrow")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root; it must end well."""
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_python(code: str) -> str:
    return run(sys.executable, "-c", code).stdout.strip()


def test_imports_go_one_way():
    run(Path(sys.executable).with_name("lint-imports"), "--no-cache")


def test_every_folder_has_its_floor():
    """The contract covers every folder with code; only the door lies above the floors of its own package."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["tool"]["importlinter"]
    (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    floors = {folder for layer in layers for folder in layer.split(" | ")}
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES} - {"engine.__main__"}
    modules = {name.removesuffix(".__init__") for name in modules} - {"engine", "pipelines"}
    assert {name for name in modules if not any(f"{name}.".startswith(f"{floor}.") for floor in floors)} == set()


def test_importing_the_engine_loads_nothing_heavy():
    loaded = f"[name for name in {HEAVY} if name in sys.modules]"
    assert run_python(f"import sys, engine; print({loaded})") == "[]"
    assert run_python(f"import sys, engine; engine.load_spec, engine.FusionSpec; print({loaded})") == "[]"


def test_help_loads_nothing_heavy():
    done = run(sys.executable, "-X", "importtime", "-m", "engine", "--help")
    assert all(verb in done.stdout for verb in ("check", "plan", "run", "evaluate"))
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "engine" in imported, "the list of imports is read correctly"
    assert not imported & set(HEAVY)


def test_every_benchmark_loads():
    """Most of them are run by hand, so nothing else would say that a name has moved."""
    names = sorted(path.stem for path in (ROOT / "tests" / "benchmarks").glob("*.py"))
    assert "stream" in names
    run_python(f"import importlib; [importlib.import_module(f'tests.benchmarks.{{name}}') for name in {names}]")


def test_every_public_name_is_there():
    assert run_python("import engine; print(all(getattr(engine, name) for name in engine.__all__))") == "True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for(path):
    tree = ast.parse(path.read_text(encoding="utf8"))
    assert not tree.body or ast.get_docstring(tree)


def test_no_drawer_of_odds_and_ends():
    assert not {path.stem for path in SOURCES} & {"utils", "common", "helpers", "misc"}


def test_no_module_shadows_a_public_name():
    modules = {path.stem for path in (ROOT / "engine").glob("*.py")}
    folders = {path.parent.name for path in (ROOT / "engine").glob("*/__init__.py")}
    assert not (modules | folders) & set(engine.__all__)


def test_every_shipped_spec_loads():
    specs = sorted((ROOT / "pipelines" / "specs").glob("*.yaml"))
    assert specs
    assert all(load_spec(path).run.name for path in specs)
