"""The arms of the experiment: their overrides of ``pipelines/specs/experiment.yaml``.

Setting A (the paper's main setting): three sources of different architectures and tokenizers, each strong in its own
domain, and a weaker target. Setting B (the paper's Table 7): three experts, each the same base continued on one domain,
and the base as target. Real settings: published models on small corpora.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engine.spec.presets import PRESETS
from pipelines.experiment.models import base_folder, equal_folder, expert_folder, larger_folder, target_folder
from pipelines.experiment.real_models import gemma_file, smollm2_file
from pipelines.experiment.real_texts import REAL_CORPORA

SPEC, REAL_SPEC = "pipelines/specs/experiment.yaml", "pipelines/specs/experiment_real.yaml"

#: Peak learning rates. An arm tries the middle three, and further ones while the best lies at their edge.
RATES = (1.2e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1.2e-2, 2e-2)

#: Weights of the causal LM loss. An arm with sources tries the middle one, at its best rate the next lower and higher
#: ones, and further ones as with the rates; where the weight has changed, the rates beside the best one again.
WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95)

#: The weight of an arm without sources.
LM_LOSS_ALONE = 1.0


@dataclass(frozen=True)
class Setting:
    """What all arms of a setting have in common.

    Attributes:
        spec: that their overrides change.
        beginning: the model that they train, by the experiment's folder and the seed.
        max_steps: of training, about as many as ``passes`` over the corpus give.
        window_tokens: of a held-out text that are scored at once; every token has at least half a window of context.
        passes: over the corpus.
    """

    spec: str
    beginning: Callable[[Path, int], Path]
    max_steps: int
    window_tokens: int
    passes: int = 1


#: Blocks and windows are of one length.
SETTINGS = {"a": Setting(SPEC, target_folder, 84, 256), "b": Setting(SPEC, base_folder, 84, 256)}
SETTINGS |= {
    name: Setting(REAL_SPEC, smollm2_file, corpus.steps, 512, corpus.passes) for name, corpus in REAL_CORPORA.items()
}

_CONTINUED = ("source_models=[]",)
_QUICKSTART = "pipelines/quickstart/models"


@dataclass(frozen=True)
class Arm:
    """One way to train a target.

    Attributes:
        setting: one of ``SETTINGS``.
        name: on the results page.
        overrides: of the spec, for one folder of the experiment and one seed.
        rate_of: the arm whose learning rate and weight it takes; empty: it chooses its own on the validation text.
        weights: of the causal LM loss, ascending, among which it chooses.
        export: folder of the exported model below the run's output folder.
    """

    setting: str
    name: str
    overrides: Callable[[Path, int], tuple[str, ...]]
    rate_of: str = ""
    weights: tuple[float, ...] = WEIGHTS
    export: str = "export"

    @property
    def has_sources(self) -> bool:
        """Whether it learns from sources too."""
        return self.weights != (LM_LOSS_ALONE,)


@dataclass(frozen=True)
class Run:
    """One arm with one learning rate, weight of the causal LM loss, and seed."""

    arm: Arm
    rate: float
    seed: int
    weight: float

    def folder(self, experiment: Path) -> Path:
        """The output folder of the run."""
        name = self.arm.name.replace(" ", "-").replace("/", "-")
        settings = f"rate-{self.rate:g}-weight-{self.weight:g}" if self.arm.has_sources else f"rate-{self.rate:g}"
        return experiment / "runs" / self.arm.setting / name / settings / f"seed-{self.seed}"

    def overrides(self, experiment: Path) -> list[str]:
        """The overrides of its setting's spec for the command line."""
        return [
            f"run.output_dir={self.folder(experiment)}",
            f"run.seed={self.seed}",
            f"training.optimizer.learning_rate={self.rate:g}",
            f"objective.lm_loss_weight={self.weight:g}",
            f"target_model.checkpoint={SETTINGS[self.arm.setting].beginning(experiment, self.seed)}",
            f"corpus.paths=[{experiment}/texts/{self.arm.setting}/corpus.jsonl]",
            f"training.max_steps={SETTINGS[self.arm.setting].max_steps}",
            f"corpus.passes={SETTINGS[self.arm.setting].passes}",
            *self.arm.overrides(experiment, self.seed),
        ]


def _fixed(*overrides: str) -> Callable[[Path, int], tuple[str, ...]]:
    return lambda experiment, seed: overrides


def _source(name: str, checkpoint: Path | str) -> str:
    return f"{{name: {name}, checkpoint: {checkpoint}, backend: transformers, dtype: float32}}"


def _quickstart_sources(*names: str) -> str:
    return "source_models=[" + ", ".join(_source(name, f"{_QUICKSTART}/{name}") for name in names) + "]"


def _larger(experiment: Path, seed: int) -> tuple[str, ...]:
    return (f"source_models=[{_source('larger', larger_folder(experiment))}]",)


def _equal(experiment: Path, seed: int) -> tuple[str, ...]:
    return (f"source_models=[{_source('equal', equal_folder(experiment))}]",)


CONTINUED = Arm("a", "continued training", _fixed(*_CONTINUED), weights=(LM_LOSS_ALONE,))
DISTILLED = Arm("a", "distillation from a larger source", _larger)
EQUAL = Arm("a", "distillation from an equal source", _equal)
FUSED = Arm("a", "fusion", _fixed())

#: Fusion from one source each.
SINGLE = tuple(
    Arm("a", f"one source ({name})", _fixed(_quickstart_sources(name)))
    for name in ("llama-docs", "gpt2-code", "neox-mixed")
)

_OTHER_RULES = {"equal weights": ("fusion.rule=uniform",), "MinCE": ("fusion.rule=min_ce",)}

#: The arm of each fusion rule, in both settings.
RULE_ARMS = {"avg_ce": FUSED.name, "uniform": "equal weights", "min_ce": "MinCE"}

_ABLATED = {
    **_OTHER_RULES,
    "AvgCE at temperature 1": ("fusion.temperature=1",),
    "split tokens with the first piece": ("alignment.split_tokens=first_piece",),
    "rows at shared byte offsets": ("alignment.tokens=byte_offset",),
    "tokens aligned by MinED": ("alignment.tokens=min_edit",),
    "vocabulary mapped exactly": ("alignment.vocabulary=exact",),
    "vocabulary mapped by MinED": ("alignment.vocabulary=min_edit",),
    "K 10": ("fusion.top_k=10",),
    "K 64": ("fusion.top_k=64",),
    "rows of at least 1 % kept share": ("alignment.least_kept_share=0.01",),
    "every passage in full": ("objective.full_gain=0",),
    "two sources (docs and code)": (_quickstart_sources("llama-docs", "gpt2-code"),),
}

#: Each changes one thing in ``FUSED``.
ABLATIONS = tuple(Arm("a", name, _fixed(*overrides), FUSED.name) for name, overrides in _ABLATED.items())

#: FuseChat's recipe: the target fused with each source alone, and the three targets merged.
PAIRWISE = Arm(
    "a",
    "each source alone, then merged (FuseChat's)",
    _fixed("pairwise={method: sce}"),
    FUSED.name,
    export="merges/pairwise",
)

#: The paper's method: its settings and its authors' arithmetic.
PAPERS = Arm(
    "a",
    "fusion as in the paper (preset fusellm_soft)",
    _fixed(
        *(
            f"{section}.{field}={value}"
            for section, fields in PRESETS["fusellm_soft"].items()
            for field, value in fields.items()
        )
    ),
    weights=(PRESETS["fusellm_soft"]["objective"]["lm_loss_weight"],),
)

MIXED = replace(CONTINUED, setting="b")


def fused_experts(rates: Mapping[str, float]) -> Arm:
    """The base fused from the three experts of its seed; ``rates``: domain to its expert's learning rate."""

    def overrides(experiment: Path, seed: int) -> tuple[str, ...]:
        experts = {domain: expert_folder(experiment, domain, rate, seed) for domain, rate in rates.items()}
        sources = ", ".join(_source(domain, folder) for domain, folder in experts.items())
        return (f"source_models=[{sources}]",)

    return Arm("b", "fusion", overrides)


def other_rules(fused: Arm) -> tuple[Arm, ...]:
    """An arm under other rules, at its own rate and weight."""

    def arm(name: str, overrides: tuple[str, ...]) -> Arm:
        return replace(
            fused,
            name=name,
            overrides=lambda experiment, seed: (*fused.overrides(experiment, seed), *overrides),
            rate_of=fused.name,
        )

    return tuple(arm(name, overrides) for name, overrides in _OTHER_RULES.items())


#: Of real models: they are trained already, and learn at lower rates.
REAL_RATES = (1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
REAL_WEIGHTS = (0.05, 0.2, 0.8, 0.95)


@dataclass(frozen=True)
class RealArms:
    """The arms of real models on one corpus.

    Attributes:
        continued: without sources. once: the same in one pass, with a rate of its own and two steps of warm-up; None
            where all arms have one pass.
        gemma: a source that is better in other languages. itself: the target as its own source. both: the two of them.
    """

    continued: Arm
    once: Arm | None
    gemma: Arm
    itself: Arm
    both: Arm

    @property
    def all(self) -> tuple[Arm, ...]:
        """The arms in the order of the page."""
        return tuple(filter(None, (self.continued, self.once, self.gemma, self.itself, self.both)))


def real_arms(corpus: str) -> RealArms:
    """The arms of one of ``REAL_CORPORA``."""

    def fused(words: str, *names: str) -> Arm:
        def overrides(experiment: Path, _seed: int) -> tuple[str, ...]:
            return (f"source_models=[{', '.join(_real_source(name, experiment) for name in names)}]",)

        return Arm(corpus, words, overrides, weights=REAL_WEIGHTS)

    _, _, passes, steps = REAL_CORPORA[corpus]
    continued = replace(CONTINUED, setting=corpus)
    short = ("corpus.passes=1", "training.optimizer.warmup_steps=2", f"training.max_steps={steps // passes}")
    return RealArms(
        continued=continued,
        once=replace(continued, name=f"{CONTINUED.name}, one pass", overrides=_fixed(*_CONTINUED, *short))
        if passes > 1
        else None,
        gemma=fused("fusion with Gemma", "gemma"),
        itself=fused("fusion with itself", "smollm2"),
        both=fused("fusion with both", "gemma", "smollm2"),
    )


def _real_source(name: str, experiment: Path) -> str:
    file = {"gemma": gemma_file, "smollm2": smollm2_file}[name](experiment)
    bos = "always" if name == "gemma" else "tokenizer"
    return f"{{name: {name}, checkpoint: {file}, backend: transformers, dtype: float32, bos: {bos}}}"
