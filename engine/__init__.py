"""Streaming knowledge fusion: one language model from several of different architectures and tokenizers.

    from engine import load_spec, plan, run

    spec = load_spec("pipelines/specs/quickstart.yaml", overrides=["fusion.top_k=32"])
    print(plan(spec))
    result = run(spec)

Importing this package imports none of ray, torch, vllm and numba: names are resolved on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.errors import FusionError
    from engine.history.result import RunResult
    from engine.spec import FusionSpec
    from engine.spec.loading import load_spec
    from pipelines.planning.check import check
    from pipelines.planning.plan import Plan, plan
    from pipelines.run.report import report
    from pipelines.run.runner import evaluate
    from pipelines.run.start import run

__all__ = ["FusionError", "FusionSpec", "Plan", "RunResult", "check", "evaluate", "load_spec", "plan", "report", "run"]

_HOME = {
    "FusionError": "engine.errors",
    "FusionSpec": "engine.spec",
    "Plan": "pipelines.planning.plan",
    "RunResult": "engine.history.result",
    "check": "pipelines.planning.check",
    "evaluate": "pipelines.run.runner",
    "load_spec": "engine.spec.loading",
    "plan": "pipelines.planning.plan",
    "report": "pipelines.run.report",
    "run": "pipelines.run.start",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'engine' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
