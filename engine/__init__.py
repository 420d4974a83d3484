"""Streaming knowledge fusion: one language model from several of different architectures and tokenizers.

    from engine import load_spec, plan, run

    spec = load_spec("pipelines/specs/quickstart.yaml", overrides=["fusion.top_k=32"])
    print(plan(spec))
    result = run(spec)

Importing this package pulls in none of ray, torch, vllm and numba: names are resolved on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.errors import FusionError
    from engine.planning import Plan, plan
    from engine.result import RunResult
    from engine.runner import evaluate, run
    from engine.spec import FusionSpec
    from engine.specfile import load_spec

__all__ = ["FusionError", "FusionSpec", "Plan", "RunResult", "evaluate", "load_spec", "plan", "run"]

_HOME = {
    "FusionError": "engine.errors",
    "FusionSpec": "engine.spec",
    "Plan": "engine.planning",
    "RunResult": "engine.result",
    "evaluate": "engine.runner",
    "load_spec": "engine.specfile",
    "plan": "engine.planning",
    "run": "engine.runner",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'engine' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
