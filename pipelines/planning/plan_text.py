"""The plan as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from actors.sources.backends.step_size import PLANNED_GPU_BYTES
from engine.corpus.shards import LARGEST_SHARD
from engine.method.canonical import why_unknown
from engine.reporting.figures import MISSING, Rows
from engine.spec import FusionSpec, TrainingSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.comparison import Comparison
from pipelines.planning.costs import ModelCost
from pipelines.planning.scored_sample import TARGET, Scores
from pipelines.planning.survey import SourceSurvey
from pipelines.planning.survey_tokens import Traits
from pipelines.stream.sizes import FlowPlan


def cost_lines(costs: Sequence[ModelCost]) -> list[str]:
    """Memory and work of every model; the target's is over all workers and without activations."""
    table = cost_rows(costs)
    widths = (15, 12, 9, 9, 11, 11)
    return [
        *(
            f"{row[0]:<18}" + "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True))
            for row in (table.columns, *table.rows)
        ),
        f"step: tokens of a source's forward pass (batched_tokens), on GPUs of {PLANNED_GPU_BYTES // 10**9} GB",
        "work: per byte of text, in that of training the target; proposed: to keep step with the workers",
    ]


def table_lines(table: Rows) -> list[str]:
    """A table of text: its heading, then its columns, those after the first to the right."""
    rows = (table.columns, *table.rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        table.heading,
        *(
            f"  {row[0]:<{widths[0]}}"
            + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ),
    ]


def cost_rows(costs: Sequence[ModelCost]) -> Rows:
    """Memory and work of every model, a row each."""
    return Rows(
        "Costs of the models",
        ("model", "parameters", "memory", "step", "work", "replicas", "proposed"),
        tuple(
            (
                cost.name,
                f"{cost.parameters:,}",
                f"{cost.memory_bytes / 2**30:.2f} GiB",
                f"{cost.step_tokens:,}" if cost.step_tokens else MISSING,
                f"{cost.relative:.2f}",
                f"{cost.replicas}",
                f"{cost.proposed}",
            )
            for cost in costs
        ),
    )


def corpus_line(flow: FlowPlan, passes: int) -> str:
    """The shards of the corpus, and the largest one if its file cannot be split among readers."""
    is_mixture = bool(flow.domains[0].name)
    often = f"of {len(flow.domains)} domains" if is_mixture else f"x {passes} passes"
    line = f"{len(flow.corpus_units)} units in {len(flow.corpus_shards)} shards {often}"
    whole = [unit for unit in flow.corpus_units if not unit.can_be_split and unit.num_bytes > LARGEST_SHARD]
    if not whole:
        return line
    largest = max(whole, key=lambda unit: unit.num_bytes)
    kind = "row groups or compressed files are" if len(whole) > 1 else "row group or compressed file is"
    size = f"{largest.num_bytes / 1e6:,.0f} MB"
    return f"{line}; {len(whole)} {kind} large and cannot be split: one reader each ({largest.path}, {size})"


def attention_line(training: TrainingSpec) -> str:
    """How packed passages are kept apart in training; the package flash-attn is looked for on the workers alone."""
    mask = f"sdpa under a mask of {training.block_length} x {training.block_length}"
    if training.attention == "sdpa":
        return mask
    if training.attention != "auto":
        compiles = "; compiles at the first step" if training.attention == "flex_attention" else ""
        return f"{training.attention}, without what a mask would hide{compiles}"
    if not training.num_gpus_per_worker:
        return f"{mask}: flash_attention_2 needs a GPU"
    if training.precision != "bfloat16":
        return f"{mask}: flash_attention_2 needs training.precision bfloat16, not {training.precision}"
    return f"flash_attention_2 where the workers have the package flash-attn, else {mask}"


def length_line(spec: FusionSpec, step_tokens: int) -> str:
    """The limit of the run's length, and the conditions that end it earlier."""
    training, patience = spec.training, spec.evaluation.patience
    limits = ["with the corpus"]
    limits += [f"with {training.max_tokens:,} tokens"] if training.max_tokens else []
    limits += [f"after {training.max_hours:g} hours"] if training.max_hours else []
    limits += [f"after {patience} evaluations without improvement"] if patience else []
    most = f"at most {training.max_steps} steps = {training.max_steps * step_tokens:,} tokens"
    return f"{most}; earlier {' or '.join(limits)}"


def fusion_line(spec: FusionSpec) -> str:
    """The rule, the sources, K and the objective in one line."""
    if not spec.source_models:
        return "none: continued training on the causal LM loss alone"
    fusion, weight = spec.fusion, spec.objective.lm_loss_weight
    return (
        f"{fusion.rule} per {fusion.granularity} of {len(spec.source_models)} source models, top {fusion.top_k}; "
        f"loss = {weight:g} x causal LM + {1 - weight:g} x fusion" + (", by gain" if spec.objective.full_gain else "")
    )


def pairs_line(spec: FusionSpec, target: PassageTokenizer) -> str:
    """That pairs of tokens which the target never writes are kept, and why; empty where they are left out."""
    if spec.alignment.tokens != "bytes" or not spec.source_models:
        return ""
    unknown = why_unknown(target)
    if not unknown:
        return ""
    return f"the fused rows keep pairs of tokens that the target's tokenizer never writes: {unknown}"


def survey_lines(source: SourceSurvey, spec: FusionSpec) -> list[str]:
    """The block of one source: coverage, mapping, distributions, tokenizer, examples."""
    return [
        f"source model {source.name}, on {source.passages} passages ({source.num_bytes:,} bytes) of the corpus",
        *_coverage_lines(source, spec.alignment.tokens),
        *_mapping_lines(source, spec.alignment.vocabulary),
        *_score_lines(source, spec.fusion.top_k),
        *_tokenizer_lines(source),
        *_example_lines(source),
    ]


GUIDE = (
    "a guide, not a judge: ways that cost nearly the same may train targets in the other order, as min_ce and uniform "
    "do in the quickstart"
)
OWN_IS_MISSING = "the spec's own way is not among them: its alignment or its mapping is not compared"


def comparison_lines(found: Comparison, spec: FusionSpec) -> list[str]:
    """A row for each way to fuse, the one that costs the labels least first."""
    notes = [f"  {note}" for note in comparison_notes(found, spec)]
    if not found.teachers:
        return ["ways to fuse: no source could be scored", *notes]
    table = comparison_rows(found, spec)
    return [
        table.heading,
        *(
            f"  {rule:<24}{tokens:<13}{vocabulary:<13}{taught:>12}{nats:>15}{mark}"
            for rule, tokens, vocabulary, taught, nats, mark in (table.columns, *table.rows)
        ),
        *notes,
    ]


def comparison_notes(found: Comparison, spec: FusionSpec) -> list[str]:
    """What a reader of the comparison must know."""
    notes = [f"left out, not scored: {', '.join(found.left_out)}"] if found.left_out else []
    if found.teachers:
        ways = {(teacher.rule, teacher.tokens, teacher.vocabulary) for teacher in found.teachers}
        notes += [] if _own_way(spec) in ways else [OWN_IS_MISSING]
        notes.append(GUIDE)
    return notes


def _own_way(spec: FusionSpec) -> tuple[str, str, str]:
    return spec.fusion.single_source or spec.fusion.rule, spec.alignment.tokens, spec.alignment.vocabulary


def comparison_rows(found: Comparison, spec: FusionSpec) -> Rows:
    """The ways to fuse, a row each, the spec's marked."""
    own = _own_way(spec)
    rows = tuple(
        (
            "the target itself" if teacher.rule == TARGET else teacher.rule,
            teacher.tokens,
            teacher.vocabulary,
            f"{100 * teacher.taught:.1f} %",
            f"{teacher.nats_per_byte:.4f}",
            "  <- the spec" if (teacher.rule, teacher.tokens, teacher.vocabulary) == own else "",
        )
        for teacher in found.teachers
    )
    heading = f"ways to fuse, on the {found.common_rows:,} of {found.rows:,} target rows that all of them teach "
    heading += f"({found.common_bytes:,} bytes)"
    return Rows(heading, ("rule or model", "alignment", "mapping", "rows taught", "nats per byte", ""), rows)


def _coverage_lines(source: SourceSurvey, tokens: str) -> list[str]:
    found = source.coverage
    if not found.rows:
        return ["  coverage: unknown, the sample has no target row"]
    by_bytes = tokens == "bytes"
    inside = "the row before, given the bytes since" if by_bytes else "no source row"
    return [
        f"  coverage of {found.rows:,} labelled target rows, by byte offsets"
        + (f" (the run aligns by {tokens})" if tokens not in ("bytes", "byte_offset") else ""),
        _share("1-1", found.exact, "exact: the same bytes in one token of each"),
        _share("1-n", found.one_to_many, "the target token is several source tokens"),
        _share("n-1, last", found.last_of_longer, "the target token ends a longer source token"),
        _share("n-1, interior", found.interior, f"ends inside a source token: {inside}"),
        _share("unaligned", found.unaligned, "no source row for another reason, such as BOS"),
        _share("used", found.used, "the first three: both end here"),
        *([_share("given bytes", found.given_bytes, "the first four at most: the run aligns by bytes")] * by_bytes),
    ]


def _mapping_lines(source: SourceSurvey, method: str) -> list[str]:
    found = source.mapping
    return [
        f"  vocabulary mapping ({method}) of {found.ids:,} source ids",
        _share("same bytes", found.same, "or the same role, such as EOS"),
        _share("otherwise", found.otherwise, "another target token stands for it"),
        _share("nowhere", found.nowhere, "its mass goes to the rest bucket"),
        _line("nonsense?", f"{found.nonsense:>7,} ids", "mapped to a token that does not begin their own bytes"),
    ]


def _score_lines(source: SourceSurvey, top_k: int) -> list[str]:
    if source.scores is None:
        return ["  distributions: not scored (--without-scoring): no nats per byte, no lost mass"]
    if source.scores.problem:
        return [f"  distributions: unknown, {source.scores.problem}"]
    scores = source.scores
    return [
        f"  distributions, {scores.rows:,} rows, {scores.num_bytes:,} bytes",
        _share("lost", scores.lost_mass, f"mean mass beyond the top {top_k}"),
        _share("unmapped", scores.unmapped_mass, "mean kept mass that maps nowhere"),
        _line("nats per byte", f"{scores.nats_per_byte:>9.4f}", _target_nats(source.target_scores)),
    ]


def _target_nats(scores: Scores | None) -> str:
    if scores is None:
        return ""
    if scores.problem:
        return f"target: unknown, {scores.problem}"
    return f"target: {scores.nats_per_byte:.4f}"


def _tokenizer_lines(source: SourceSurvey) -> list[str]:
    """The traits of the tokenizer, and those of the target's where they differ."""
    own, others = _trait_texts(source.traits), _trait_texts(source.target_traits)
    lines = [
        f"    {name:<15}{text:<36}  {'as the target' if text == others[name] else f'target: {others[name]}'}"
        for name, text in own.items()
        if text or others[name]
    ]
    return ["  tokenizer", *lines, f"    {'padding':<15}{_padding(source)}"]


def _trait_texts(found: Traits) -> dict[str, str]:
    bos = "precedes every passage" if found.adds_bos else "there is one, not added" if found.has_bos else "none"
    normalizer = ", ".join(found.normalizer) or "none"
    return {
        "BOS": bos,
        "EOS": "there is one" if found.has_eos else "none",
        "pad": "there is one" if found.has_pad else "none",
        "normaliser": f"{normalizer} ({', '.join(found.habits)})" if found.habits else normalizer,
        "dummy prefix": "a space before every passage" if found.dummy_prefix else "none",
        "system": f"{found.system} by the chat template" if found.system else "",
    }


def _padding(source: SourceSurvey) -> str:
    if source.padding_rows < 0:
        return f"the embedding has {-source.padding_rows:,} rows too few for the tokenizer's {source.vocab_size:,} ids"
    return f"{source.padding_rows:,} rows of the embedding beyond the tokenizer's {source.vocab_size:,} ids"


def _example_lines(source: SourceSurvey) -> list[str]:
    examples = source.mapping.examples
    width = max((len(str(example)) for example in examples), default=0)
    suspicion = {True: ", nonsense?", False: ""}
    return [
        "  examples of the mapping",
        *(f"    {item!s:<{width}}  {item.count:,} x in the sample{suspicion[item.is_nonsense]}" for item in examples),
    ]


def _share(name: str, share: float, meaning: str) -> str:
    return _line(name, f"{100 * share:>7.1f} %", meaning)


def _line(name: str, value: str, meaning: str) -> str:
    return f"    {name:<15}{value:<11}  {meaning}".rstrip()
