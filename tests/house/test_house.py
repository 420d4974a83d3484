"""The house keeps its own rules: the order of imports, cheap imports, no drawer of odds and ends."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("engine", "actors", "pipelines")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports_go_one_way():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_importing_the_engine_pulls_in_nothing_heavy():
    heavy = "[m for m in ('ray', 'torch', 'vllm', 'numba', 'transformers', 'pyarrow') if m in sys.modules]"
    assert run_python(f"import sys, engine; print({heavy})") == "[]"
    assert run_python(f"import sys, engine; engine.load_spec, engine.FusionSpec; print({heavy})") == "[]"


def test_every_public_name_is_there():
    assert run_python("import engine; print(all(getattr(engine, name) for name in engine.__all__))") == "True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for(path):
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)


def test_no_drawer_of_odds_and_ends():
    assert not {path.stem for path in SOURCES} & {"utils", "common", "helpers", "misc"}


def test_no_module_hides_a_public_function():
    import engine

    assert not {path.stem for path in (ROOT / "engine").glob("*.py")} & set(engine.__all__)


def test_every_shipped_spec_loads():
    from engine import load_spec

    specs = sorted((ROOT / "pipelines" / "specs").glob("*.yaml"))
    assert specs
    assert all(load_spec(path).run.name for path in specs)


def test_help_is_quick_to_come():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "engine", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in ("check", "plan", "run", "evaluate"))
    assert "torch" not in done.stderr
