"""The stream as a whole: does it keep the machine busy, does training wait, does memory grow? The quickstart's shapes.

    python -m tests.benchmarks.stream [--passes 12]
    python -m tests.benchmarks.stream --corpus-copies 100

Figures of the first: ``stream_efficiency``: CPU seconds that the stages need when each runs alone (``stream_stages``;
measured before and after, since machines become slower and faster), over the cores' seconds of the streamed run of the
same passages, while all of its stages work: start-up and the last batches are left out. ``stream_useful_cpu``: the same
over the CPU seconds that the run has used, which holds on a shared machine too. ``stream_bytes_per_token``: what the
stages hand on. ``stream_object_store``: the most that lay in shared memory. ``exposed_wait_fast_sources``: how long
training waits for data where the sources are tiny.

Of the second: ``stream_memory_growth``, over that many copies of the corpus with tiny models: memory and spilling.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from engine import load_spec
from engine.history.result import RunResult
from engine.model_files.checkpoint import Checkpoint
from engine.spec import FusionSpec
from engine.spec.loading import as_located_spec
from engine.text.tokenization import PassageTokenizer
from pipelines.stream.sizes import derive_flow
from tests.benchmarks.figures import say
from tests.benchmarks.stream_stages import StageCost, costs_alone
from tests.benchmarks.stream_watch import Look, watched_run, window
from tests.support.paths import ROOT
from tests.support.tiny_models import single_layer_checkpoint

QUICKSTART = ROOT / "pipelines/specs/quickstart.yaml"

#: The share of the steps that is left out at the beginning and at the end, where not all stages work.
EDGE = 0.2

#: So little that no stage can run far ahead of the others, as in a run that is longer than any store.
OBJECT_STORE_BYTES = 2**28

MOST_WAIT = 0.05


def main() -> None:
    """All figures of one kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=12, help="over the quickstart's corpus, 92,545 tokens each")
    parser.add_argument("--corpus-copies", type=int, default=0, help="run this many with tiny models, for memory alone")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        if chosen.corpus_copies:
            memory(quickstart(Path(folder), chosen.corpus_copies, tiny_sources=True, tiny_target=True))
            return
        efficiency(quickstart(Path(folder) / "a", chosen.passes))
        fast_sources(quickstart(Path(folder) / "b", chosen.passes, tiny_sources=True))


def quickstart(folder: Path, passes: int, tiny_sources: bool = False, tiny_target: bool = False) -> FusionSpec:
    """The quickstart's spec over so many passes, without evaluation, its models replaced by tiny ones where wanted."""
    overrides = [
        f"run.output_dir={folder / 'output'}",
        f"alignment.cache_dir={folder / 'tables'}",
        f"corpus.passes={passes}",
        "evaluation.corpora={}",
        f"cluster.object_store_bytes={OBJECT_STORE_BYTES}",
        "training.max_steps=1000000",
        "training.checkpoint_every_steps=1000000",
    ]
    spec = as_located_spec(load_spec(QUICKSTART))
    places = [f"source_models.{index}" for index in range(len(spec.source_models))] if tiny_sources else []
    models = [source.checkpoint for source in spec.source_models] if tiny_sources else []
    if tiny_target:
        places, models = [*places, "target_model"], [*models, spec.target_model.checkpoint]
    for place, model in zip(places, models, strict=True):
        overrides.append(f"{place}.checkpoint={single_layer_checkpoint(folder / place, Path(model))}")
    overrides += [f"source_models.{index}.probe='off'" for index in range(len(spec.source_models)) if tiny_sources]
    return as_located_spec(load_spec(QUICKSTART, overrides))


def efficiency(spec: FusionSpec) -> None:
    """The machine's time, the bytes between the stages, and shared memory."""
    before, by_one_worker = costs_alone(spec, derive_flow(spec))
    result, looks = watched_run(spec)
    after, _ = costs_alone(spec, derive_flow(spec))
    costs = [once + again for once, again in zip(before, after, strict=True)]
    first, last = window(looks, spec)
    seconds, cores = last.now - first.now, os.cpu_count() or 1
    useful = sum(cost.cpu_seconds_per_passage * _passages(looks, first, last, cost.name) for cost in costs)
    used = Counter(last.cpu_seconds)
    used.subtract(first.cpu_seconds)
    on = {
        "window_seconds": round(seconds, 1),
        "tokens_per_second": round(_tokens(last) / seconds - _tokens(first) / seconds, 1),
        "passes": spec.corpus.passes,
        "milliseconds_alone": _milliseconds(costs),
        "training_by_one_worker": round(1000 * by_one_worker.cpu_seconds_per_passage, 3),
        "cpu_seconds": {kind: round(spent, 1) for kind, spent in used.most_common() if spent > 0.5},
        "exposed_wait": round(_exposed_wait(result), 3),
    }
    share = useful / (cores * seconds)
    say("stream_efficiency", share, "of the cores' time", "the stages alone, one after the other", share, **on)
    share = useful / used.total()
    say("stream_useful_cpu", share, "of the run's CPU time", "the stages alone, one after the other", share, **on)
    data_moved(spec, costs, result, looks)


def data_moved(spec: FusionSpec, costs: Sequence[StageCost], result: RunResult, looks: Sequence[Look]) -> None:
    """Bytes that the stages hand on, and the most that lay in shared memory at once."""
    tokens_a_pass = result.tokens / spec.corpus.passes
    moved = {cost.name: round(cost.bytes_out / tokens_a_pass, 1) for cost in costs if cost.bytes_out}
    vocabulary = PassageTokenizer.load(Checkpoint(spec.target_model.checkpoint)).vocab_size
    dense = 4 * vocabulary * len(spec.source_models)
    against = "one float32 number for each source and target token of the vocabulary"
    total = sum(moved.values())
    say("stream_bytes_per_token", total, "bytes handed on by all stages", against, dense / total, by_stage=moved)
    peak, store = max(look.object_store_bytes for look in looks), spec.cluster.object_store_bytes
    on = {"spilled_bytes": result.spilled_bytes, "top_k": spec.fusion.top_k}
    say("stream_object_store", peak / 2**20, "MiB at most", "cluster.object_store_bytes", store / max(peak, 1), **on)


def fast_sources(spec: FusionSpec) -> None:
    """How long training waits when the sources are no obstacle."""
    costs, _ = costs_alone(spec, derive_flow(spec))
    result, _ = watched_run(spec)
    wait = _exposed_wait(result)
    on = {"passes": spec.corpus.passes, "milliseconds_alone": _milliseconds(costs), "steps": result.steps}
    say("exposed_wait_fast_sources", wait, "of the step time", f"{MOST_WAIT:.0%}", MOST_WAIT / max(wait, 1e-9), **on)


def memory(spec: FusionSpec) -> None:
    """The most memory in each quarter of a long run."""
    result, looks = watched_run(spec)
    first, last = window(looks, spec)
    steady = [look for look in looks if first.now <= look.now <= last.now]
    quarters = [steady[part * len(steady) // 4 : (part + 1) * len(steady) // 4] for part in range(4)]
    private = [max(sum(look.private_bytes.values()) for look in quarter) / 2**20 for quarter in quarters]
    kinds = sorted({kind for look in steady for kind in look.private_bytes})
    by_kind = {kind: [_peak(quarter, kind) for quarter in quarters] for kind in kinds}
    # A stage that is done sooner must not hide that another grows.
    to_the_end = [peaks for kind, peaks in by_kind.items() if kind in steady[-1].private_bytes]
    second, fourth = (sum(peaks[quarter] for peaks in to_the_end) for quarter in (1, 3))
    say(
        "stream_memory_growth",
        fourth - second,
        "MiB, private memory of the processes that are there to the end, last quarter less second",
        "peaks of the second quarter",
        second / fourth,
        corpus_copies=spec.corpus.passes,
        tokens=result.tokens,
        wall_seconds=round(result.wall_seconds),
        private_mib_by_quarter=[round(peak) for peak in private],
        object_store_mib_by_quarter=[
            round(max(look.object_store_bytes for look in quarter) / 2**20, 1) for quarter in quarters
        ],
        spilled_bytes=result.spilled_bytes,
        private_mib_by_process={kind: peaks for kind, peaks in by_kind.items() if max(peaks) > 50},
    )


def _milliseconds(costs: Sequence[StageCost]) -> dict[str, float]:
    """CPU time that a passage needs in each stage."""
    return {cost.name: round(1000 * cost.cpu_seconds_per_passage, 3) for cost in costs}


def _peak(quarter: Sequence[Look], kind: str) -> int:
    return round(max(look.private_bytes.get(kind, 0) for look in quarter) / 2**20)


def _passages(looks: Sequence[Look], first: Look, last: Look, stage: str) -> float:
    """Done between two looks; the packer, which a run does not count, takes what the aligner hands on.

    A stage says what it has done when a batch is done, hundreds of passages at once: between two such times it is taken
    to have worked evenly, since its CPU time is counted as it is used.
    """
    counted = "align and fuse" if stage == "pack" else stage
    said = [look for before, look in pairwise(looks) if look.passages(counted) > before.passages(counted)]
    times, done = [look.now for look in said], [look.passages(counted) for look in said]
    begin, end = np.interp([first.now, last.now], times, done)
    return float(end - begin)


def _tokens(look: Look) -> int:
    return look.stages["train"].tokens


def _exposed_wait(result: RunResult) -> float:
    """Share of the step time, the edges of the run left out."""
    edge = int(EDGE * len(result.history))
    steps = result.history[edge : len(result.history) - edge]
    return sum(step.wait_seconds for step in steps) / sum(step.seconds for step in steps)


if __name__ == "__main__":
    main()
