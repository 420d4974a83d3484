"""Records of a run: the numbers that travel from the workers to the display, the report and the caller.

They are plain data: frozen, picklable, and readable without ray or torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

#: Why a run has ended: with the corpus (``corpus.passes``, ``corpus.exhausted``), at ``training.max_steps``,
#: ``max_tokens`` or ``max_hours``, or because the held-out loss has not fallen for ``evaluation.patience`` evaluations.
StopReason = Literal["corpus", "steps", "tokens", "time", "no improvement"]

#: Name of training as a stage; its totals are those of the optimizer steps.
TRAIN = "train"


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, over all workers.

    Attributes:
        step: 1 for the first.
        loss: the objective, nats per row. lm_loss: the mean causal LM loss, unweighted. fusion_loss: without lambda,
            but each row with the weight of its passage; NaN in a step without fused rows.
        grad_norm: global norm before clipping.
        learning_rate: of this step.
        tokens: target tokens learned, padding excluded; ``passages`` and ``bytes`` likewise. repeated_bytes: those of
            them that the target has read in an earlier pass over the corpus.
        seconds: wall time of the step, waiting included.
        wait_seconds: the exposed wait, time that the slowest worker waited for data.
        padding: share of the blocks' places without a token to learn: padding, and context.
        source_nats, source_bytes, source_wins, source_covered_rows, source_left_out: for each source model in the
            spec's order; sums over the passages of the step (nats: cross-entropy in nats per byte times bytes, of the
            passages scored; wins: shares of passages; left out: passages that the source has not scored).
        domain_tokens, domain_passages, domain_bytes, domain_repeated_bytes: as ``tokens``, for each domain of the
            corpus in the order of ``CorpusSpec.domain_names``; empty without domains.
        domain_lm_nats: the causal LM loss summed over the rows of each domain, in nats.
        domain_source_nats, domain_source_bytes, domain_source_wins, domain_source_covered_rows: as ``source_nats``,
            domain by domain for each source model.
        fused_rows: target rows with a fused distribution.
        fusion_gain: mean nats by which the fused distributions beat the target on the labels (``engine.method.gain``);
            NaN without fused rows of text that is read for the first time, and where ``objective.full_gain`` is 0.
        fusion_weight: mean weight of the fused rows in the fusion loss, in [0, 1]; NaN without fused rows.
        elapsed_seconds: wall time in the training loop up to the end of this step, over all starts of the run. Time
            between a restart and the checkpoint before it does not count.
        held_out: domain to bits per byte of the target after this step; empty where it was not evaluated, NaN in a
            domain without a byte to score.
        held_out_seconds: time of that evaluation, which ``seconds`` does not include.
        retired: source models that the run goes on without after this step (``engine.history.retirement``).
    """

    step: int
    loss: float
    lm_loss: float
    fusion_loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    passages: int
    bytes: int
    seconds: float
    wait_seconds: float
    padding: float
    fused_rows: int
    repeated_bytes: int = 0
    source_nats: tuple[float, ...] = ()
    source_bytes: tuple[int, ...] = ()
    source_wins: tuple[float, ...] = ()
    source_covered_rows: tuple[int, ...] = ()
    source_left_out: tuple[int, ...] = ()
    domain_tokens: tuple[int, ...] = ()
    domain_passages: tuple[int, ...] = ()
    domain_bytes: tuple[int, ...] = ()
    domain_repeated_bytes: tuple[int, ...] = ()
    domain_lm_nats: tuple[float, ...] = ()
    domain_source_nats: tuple[float, ...] = ()
    domain_source_bytes: tuple[int, ...] = ()
    domain_source_wins: tuple[float, ...] = ()
    domain_source_covered_rows: tuple[int, ...] = ()
    fusion_gain: float = math.nan
    fusion_weight: float = math.nan
    elapsed_seconds: float = 0.0
    held_out: dict[str, float] = field(default_factory=dict)
    held_out_seconds: float = 0.0
    retired: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageTotals:
    """The work of one stage of the stream so far, over all its replicas.

    Attributes:
        name: ``corpus``, a source model's name, ``align and fuse`` or ``train``.
        passages, tokens: done; tokens are the stage's own (a source counts its own tokens).
        busy_seconds: inside the stage's own work.
        wait_seconds: between two calls, for input or for room in the next stage.
        replicas: processes that have reported.
        starts: how often a replica has started; more than ``replicas`` means that some were replaced. Training counts
            as one replica, which starts again with its workers.
    """

    name: str
    passages: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0
    wait_seconds: float = 0.0
    replicas: int = 0
    starts: int = 0


@dataclass(frozen=True)
class SkippedRow:
    """A file or row of the corpus that was left out, and the reason."""

    path: str
    row: int
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """A passage that was fused without one of its sources, and the reason."""

    source: str
    passage_id: str
    reason: str


@dataclass(frozen=True)
class Committed:
    """A complete checkpoint: its step, and the time when it was complete, seconds since 1970."""

    step: int
    time: float


@dataclass(frozen=True)
class Progress:
    """A snapshot of one start of a run, which the driver takes about once a second.

    Attributes:
        stages: their totals. Those of training count the steps that stand, the others all work, also that for steps
            that are void.
        steps: that were taken since the snapshot before.
        void_after: the run has gone back to a checkpoint since the snapshot before: of the steps seen there, all after
            this one are void. Drop them first; ``steps`` follow it. None: it has not gone back.
        mark: ask for the next snapshot with it (``engine.history.step_log``).
        stream: how many streams have begun: the first, one after each restart of the training workers, and one after
            each retirement of a source model, which voids no step.
        began_at: step of the checkpoint at which the present stream began. The first step after it has waited for all
            models to load.
        skipped, left_out: the first ones, ``num_skipped`` and ``num_left_out`` in all. One that was met in a step that
            is void counts on: it is met again, and counts once.
        checkpoints: the latest ones of this start, oldest first.
        num_not_finite: steps that were not taken, since their loss or gradient was not finite.
        looks: passages that a page shows token by token, those new since the snapshot before
            (``engine.method.inspection``, ``actors.training.looks``).
        retired: source models that the stream does without.
    """

    stages: tuple[StageTotals, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    num_skipped: int = 0
    num_left_out: int = 0
    checkpoints: tuple[Committed, ...] = ()
    num_not_finite: int = 0
    looks: tuple[dict[str, Any], ...] = ()
    retired: tuple[str, ...] = ()
    void_after: int | None = None
    mark: int = 0
    stream: int = 0
    began_at: int = 0


@dataclass(frozen=True)
class SourceTotals:
    """One source model over all learned passages.

    Attributes:
        cross_entropy: nats per byte.
        win_rate: share of passages (of tokens, where the spec says so) that ``min_ce`` gave to this source, in [0, 1];
            NaN under other rules.
        coverage: share of target rows for which it has a row, in [0, 1].
        left_out: passages that it has not scored; they were fused without it.
        gains: nats per byte by which it predicts the text better than the target does before learning it, over the
            first and over the last tenth of the steps, up to the last one that has a gain; NaN where it has none there.
        retired_after: the step after which the run has gone on without it; 0: it has stayed.
    """

    name: str
    cross_entropy: float
    win_rate: float
    coverage: float
    left_out: int = 0
    gains: tuple[float, float] = (math.nan, math.nan)
    retired_after: int = 0


@dataclass(frozen=True)
class DomainTotals:
    """One domain of the corpus over all learned passages.

    Attributes:
        tokens, passages, bytes: learned.
        share: of all learned bytes, in [0, 1]; NaN before the first.
        weight: its share by the spec, in [0, 1].
        sources: cross-entropy, win rate, coverage and gains of each source model in this domain.
        held_out: latest bits per byte of the target during training in the held-out domain of the same name; NaN
            without one.
    """

    name: str
    tokens: int
    passages: int
    bytes: int
    share: float
    weight: float
    sources: tuple[SourceTotals, ...] = ()
    held_out: float = math.nan


@dataclass(frozen=True)
class EvaluationResult:
    """The numbers of an evaluation for all models that it compares.

    Attributes:
        checkpoints: label to checkpoint of every model; for an ensemble, its members' labels, joined by `` + ``.
        bits_per_byte: label to held-out domain to bits per byte; NaN where nothing could be scored.
        tasks: label to task to metric to the number. Metrics have the names of the evaluation harness (``acc,none``,
            its standard error ``acc_stderr,none``).
        higher_is_better: task to metric (``acc``) to its direction.
        subtasks: group of tasks, if it has its own numbers, to the tasks in it.
        failures: part that could not be made (``merges``, ``bits per byte`` or ``tasks``) to the reason.
    """

    checkpoints: dict[str, str] = field(default_factory=dict)
    bits_per_byte: dict[str, dict[str, float]] = field(default_factory=dict)
    tasks: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    higher_is_better: dict[str, dict[str, bool]] = field(default_factory=dict)
    subtasks: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """The result of a run, returned by ``engine.run``. Picklable.

    Attributes:
        export_dir: the target after ``exported_step``, in Hugging Face format.
        steps, passages, tokens, bytes: learned over all starts of the run.
        wall_seconds: over all starts; of earlier starts only the training up to their last checkpoint. NaN: not known.
        stopped_by: why the run has ended; None while it works, and of a run that has not come to its end.
        exported_step: the last step; with ``evaluation.patience`` the step with the lowest held-out loss.
        spilled_bytes, stages: of this start. The former is None where it is not known.
        skipped, left_out: all of them when the run has ended, else the first ones.
        num_skipped, num_left_out: how many there are; None where that is not known.
    """

    name: str
    output_dir: str
    export_dir: str
    report_path: str
    spec_path: str
    steps: int
    passages: int
    tokens: int
    bytes: int
    wall_seconds: float
    spilled_bytes: int | None
    stopped_by: StopReason | None = "corpus"
    exported_step: int = 0
    sources: tuple[SourceTotals, ...] = ()
    domains: tuple[DomainTotals, ...] = ()
    history: tuple[StepRecord, ...] = ()
    stages: tuple[StageTotals, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    num_skipped: int | None = None
    num_left_out: int | None = None
    evaluation: EvaluationResult = EvaluationResult()

    @property
    def bits_per_byte(self) -> dict[str, dict[str, float]]:
        """Label of a model to held-out domain to bits per byte."""
        return self.evaluation.bits_per_byte

    @property
    def metrics(self) -> StepRecord:
        """The last step's record."""
        return self.history[-1]

    @property
    def win_rates(self) -> dict[str, float]:
        """Source name to its share of the rows under ``min_ce``, averaged over passages; NaN under other rules."""
        return {source.name: source.win_rate for source in self.sources}
