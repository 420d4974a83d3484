"""The sections of a spec: every decision of a run. ``engine.plan`` derives and shows the rest.

Sections are frozen and refuse unknown keys. ``engine.spec.loading`` reports all faults at once, each with its dotted
path, the value seen and the values allowed.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

#: The beginning of a URL without its two slashes; all else with a colon may be the name of a file.
_HALF_URL = re.compile(r"(file|s3|s3a|gs|gcs|abfs|abfss|az|hdfs|hf|https?):(?!//|:)|[A-Za-z][A-Za-z0-9+.-]*:/(?!/)")


def _check_place(place: str) -> str:
    """Refuse what is neither a path nor a URL, and would be a folder with an odd name in the working directory."""
    if place and not place.strip():
        raise ValueError("it has nothing but white space")
    if half := _HALF_URL.match(place):
        raise ValueError(f"a URL begins with {half[0].partition(':')[0]}://, and a path needs no protocol")
    if os.path.expanduser(place).startswith("~"):
        raise ValueError(f"there is no user {place.partition('/')[0][1:]!r} on this machine, whose folder ~ would be")
    if place.endswith("://") or place.startswith("://"):
        raise ValueError("a URL is a protocol, :// and a path")
    return place


#: Names become column prefixes, folder names and labels of metrics.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(min_length=1)]
#: A path or an fsspec URL; a checkpoint may be a name of the hub, too.
Place = Annotated[str, AfterValidator(_check_place)]
NamedPlace = Annotated[Place, Field(min_length=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Bos = Literal["tokenizer", "always", "never"]


class Section(BaseModel):
    """A frozen part of the spec that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse YAML's true and false, and so yes and no, where a number is meant; its ``off`` may be a value."""
        kind = cls.model_fields[info.field_name].annotation
        if value is False and "off" in get_args(kind):
            return "off"
        if isinstance(value, bool) and kind is not bool:
            raise ValueError(f"{str(value).lower()} is true or false, no value of this field")
        return value


class RunSpec(Section):
    name: Name
    """Name of the run in logs, on the dashboard and in metrics."""
    output_dir: NamedPlace
    """Folder or fsspec URL for checkpoints, export, merges, evaluation, report and the resolved spec; a run writes no
    other file there."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all randomness: the order of passages, and dropout if the target has it."""
    deterministic: bool = False
    """Keep one order of passages through all stages: two runs learn the same blocks in the same order and, on one kind
    of CPU, have the same losses bit for bit, with any number of interruptions and source replicas. The price: one
    process reads the corpus, and a slow replica delays the others."""
    tensorboard: bool = False
    """Also write every step's metrics as TensorBoard event files, below output_dir/logs/tensorboard."""
    wandb_project: str = ""
    """Weights & Biases project that also gets every step's metrics; empty: none. Needs the package wandb."""


class DomainSpec(Section):
    paths: Annotated[tuple[NamedPlace, ...], Field(min_length=1)]
    """As corpus.paths."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """The domain's share of the learned bytes is its weight over the sum of all weights."""


class CorpusSpec(Section):
    paths: tuple[NamedPlace, ...] = ()
    """Files, globs or fsspec URLs of .parquet, .jsonl or .txt files, the last two plain, .gz or .zst; no file twice.
    A corpus has either paths or domains."""
    domains: Annotated[dict[Name, DomainSpec], Field(max_length=16)] = {}
    """Name to paths and weight of each domain of a mixture, at most 16. Each training block is of one domain, and at
    any time the next one is of the domain that lacks the most bytes; tables and metrics have figures by domain."""
    exhausted: Literal["stop", "repeat"] = "stop"
    """Handling of a domain of which all passes are read: the run ends (stop), or the domain is read again until all
    passes of every domain are read (repeat)."""
    text_column: Text = "text"
    """Column (Parquet) or key (JSONL) that holds a document. A .txt file is one document."""
    messages_column: str = ""
    """Column or key that holds a conversation, a list of {role, content}; empty: the corpus holds documents. Every
    model reads its own chat template's rendering, and only the assistant's answers are learned. An answer with weight
    0, tool calls and reasoning_content are context; a template that leaves out calls or reasoning is refused."""
    on_error: Literal["fail", "skip"] = "fail"
    """Handling of a row or file whose content cannot be read: stop with an error (fail), or leave it out and count it
    (skip). A file that its store does not give is never left out: it is asked for again, and then the run fails."""
    most_skipped: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Largest share of its rows that a reader may skip; with more the run fails. A damaged file counts as one
    row."""
    passes: Annotated[int, Field(ge=1)] = 1
    """How many times the corpus is read, all within one execution; with domains see exhausted. What a passage gains
    from the sources is measured in the first pass, see objective.full_gain: so with several passes batches keep their
    order through all stages, and a slow replica delays the others."""
    overlap_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes of the previous passage that a passage begins with where a document is cut: every model reads them as
    context, but they are learned once. At most training.block_length."""
    readers: Annotated[int, Field(ge=0)] = 0
    """Processes that read the corpus and cut it, at most one for each shard of it (4 to 64 MiB), or of its smallest
    domain; 0: one for every four source replicas. A deterministic run has one."""
    shuffle_passages: Annotated[int, Field(ge=0)] = 256
    """Size of the pool from which a reader draws the next passage, so that a step is not one document; 0 keeps the
    order. It is emptied after at least so many passages and 128 training blocks, where reading can begin again."""

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The names of the domains in the order in which records and tables have them; none without domains."""
        return tuple(sorted(self.domains))

    @property
    def all_paths(self) -> tuple[str, ...]:
        """The paths of the corpus or of all its domains."""
        return self.paths or tuple(path for name in self.domain_names for path in self.domains[name].paths)


class LoraSpec(Section):
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the low-rank matrices that are trained beside each frozen one; 0 trains the whole model."""
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """The product of the two matrices is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the inputs of the low-rank matrices."""
    target_modules: tuple[Text, ...] = ()
    """Ends of the names of the adapted modules, without the lm_head and its weight; empty: all other linear layers."""


class TargetModelSpec(Section):
    checkpoint: NamedPlace
    """The model to train, any causal language model that transformers loads: Hugging Face folder or hub name, fsspec
    URL of such a folder (copied once to each node), or path or URL of a .gguf file (converted once on each node)."""
    chat_template: Place = ""
    """Path or fsspec URL of a Jinja chat template that replaces the tokenizer's own; empty: its own. Only conversations
    need one. The target's is written into the export."""
    bos: Bos = "tokenizer"
    """Whether BOS precedes every passage: as the model's own tokenizer does, always, or never. The export's tokenizer
    does as the model was trained. A conversation begins with BOS if the chat template has it."""
    lora: LoraSpec = LoraSpec()
    """Low-rank adapters (peft) to train instead of the whole model; they are merged into the export."""


class SourceModelSpec(Section):
    name: Name
    """Prefix of this source's columns and its name in every table."""
    checkpoint: NamedPlace
    """As target_model.checkpoint."""
    adapter: Place = ""
    """Folder or fsspec URL of a LoRA adapter in peft's format to merge into the checkpoint; empty: none."""
    chat_template: Place = ""
    """As target_model.chat_template."""
    backend: Literal["vllm", "transformers"] = "vllm"
    """The library that runs the model: vLLM, or transformers for architectures that vLLM does not know."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Number of processes that hold this model."""
    most_replicas: Annotated[int, Field(ge=0)] = 0
    """Size to which Ray Data may grow the pool while this source is slow and the cluster has room; 0: fixed size."""
    num_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    """Logical CPUs that Ray reserves for each replica."""
    num_gpus: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of a GPU that Ray reserves for each replica; a fraction shares one GPU between pools, 0 runs on the CPU."""
    required: bool = True
    """Whether the run stops when this source fails for good; if not, fusion continues with the others, and the report
    lists the passages without it."""
    retire: bool = False
    """Whether the run goes on without this source once it no longer pays: at a checkpoint, if since the one before it
    has predicted the text of no domain of the corpus better than the target did before learning it, all of it text
    that was not read before. Its processes end; those of the others start again from the checkpoint, which takes as
    long as a restart."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Number of deaths of one replica between two checkpoints that are replaced; the next one is a failure for good.
    Deaths with a lost node do not count. Any error but the engine's own, such as a GPU out of memory, ends a replica's
    process."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs of one node that hold one replica together; each is reserved whole. Needs backend vllm and num_gpus 1."""
    quantization: str = ""
    """vLLM's name of a weight quantisation (fp8, mxfp8, ...); empty: the checkpoint's own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights and activations; auto takes the checkpoint's."""
    bos: Bos = "tokenizer"
    """As target_model.bos."""
    probe: Literal["refuse", "correct", "off"] = "refuse"
    """Check of each new replica on a plain text: refuse a model that predicts it no better than chance, or several nats
    worse than with (or without) BOS; correct its BOS and refuse the rest; or skip the check (off)."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Flattens (above 1) or sharpens (below 1) the kept entries of this source's rows before fusion; its rest mass, the
    probabilities of its tokens in the text and its cross-entropy do not change."""
    max_context_tokens: Annotated[int, Field(ge=8)] = 2048
    """Passages are cut to this many of the source's tokens, or to the model's own limit if that is lower."""
    batched_tokens: Annotated[int, Field(ge=0)] = 0
    """Prompt tokens in one step of vLLM's engine. 0: 2,048 on a CPU; on a GPU the most of 16,384, 8,192, 4,096 and
    2,048 for which weights, key-value cache and activations fit into num_gpus of it. On 80 GB a model of 1 to 3 billion
    weights gets 8,192 to 16,384, on 0.15 to 0.25 of it."""
    kv_cache_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory for vLLM's key-value cache on each GPU. 0: as much as two steps of the engine or two of the longest
    passages need, 256 MB at least; serving would need far more. A cache that cannot hold one passage is refused."""


class AlignmentSpec(Section):
    tokens: Literal["bytes", "byte_offset", "min_edit", "exact", "suffix"] = "bytes"
    """How target rows find source rows. bytes: every row gets what the source says about the bytes that follow, inside
    source tokens too, without the tokens that the target's tokenizer never writes there. For comparison: byte_offset,
    only rows where both have consumed the same bytes, as they are; and the paper's dynamic programming over token
    strings, which accepts a pair by the vocabulary mapping (min_edit), the same string (exact) or a common suffix
    (suffix, FuseChat's rule) and teaches other rows the next token."""
    vocabulary: Literal["prefix", "exact", "min_edit", "statistical"] = "prefix"
    """How a source token becomes a target token. exact: the token of the same bytes, else none; prefix: the same bytes,
    else the first target token of its bytes; min_edit: the nearest string (the paper's); statistical: the token that
    most often begins at the same byte in a sample of the corpus (FuseChat's idea)."""
    split_tokens: Literal["product", "first_piece"] = "product"
    """Probability of a target token that the source splits, under bytes and byte_offset. product: the text's next token
    gets the product of its pieces' probabilities, taken from its first piece. Under bytes (not with vocabulary exact)
    the mass of the source's own next token in the text goes to the longest target token that begins with it and with a
    token after it, unless the source has this token too. Other split tokens, and all under first_piece: none of their
    own, the first piece keeps all."""
    least_kept_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.001
    """Under bytes, the share that the kept entries of a row inside a source token must exceed, if all of the source's
    rest mass belonged there too. Rows with less have no teacher from this source. Low, as an estimate of the rest is
    better than no teacher until next to nothing is sure: 0.01 gained the quickstart's target 0.009 bits per byte more
    than higher shares, and 0.001 ends where 0.01 does and teaches 3 % more of SmolLM2's rows from Gemma on German."""
    sample_bytes: Annotated[int, Field(ge=2**10)] = 2**20
    """Size of the corpus sample for the statistical mapping."""
    cache_dir: NamedPlace = "~/.cache/knowledge-fusion-engine"
    """Folder or fsspec URL for the vocabulary mapping tables, shared by runs."""

    @property
    def multiplies_pieces(self) -> bool:
        """Whether ``split_tokens`` has an effect: only where rows know the bytes after them."""
        return self.split_tokens == "product" and self.tokens in ("bytes", "byte_offset")


class FusionRuleSpec(Section):
    rule: Literal["min_ce", "avg_ce", "uniform", "single"] = "avg_ce"
    """min_ce takes the distribution of the source with the lowest cross-entropy, in each row among those that have one
    (the paper's); avg_ce averages them weighted by cross-entropy, uniform averages them with equal weights, single
    takes one source: plain distillation. In the experiment (RESULTS.md, seed 0) three different sources end at 2.464
    bits per byte under avg_ce, 2.467 under uniform and 2.492 under min_ce; experts, each of its own domain, at 2.506,
    2.659 and 2.515."""
    single_source: str = ""
    """Name of the source that rule single takes; empty under every other rule."""
    granularity: Literal["passage", "token"] = "passage"
    """Unit of the comparison: the cross-entropies of whole passages, or of the bytes of each target token."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.3
    """Under avg_ce: a difference of this many nats per byte makes a factor of e between two weights; low is like
    min_ce, high like uniform."""
    top_k: Annotated[int, Field(ge=1, le=1024)] = 128
    """Entries kept of every row, from the sources to the loss. The paper has 10. On the experiment's small models 64 is
    0.064 bits per byte better, and 128 another 0.014 (seed 0). Memory and traffic grow in proportion."""
    arithmetic: Literal["exact", "fusellm"] = "exact"
    """exact adds the masses that map to one target token, keeps the rest mass, and compares nats per byte. fusellm does
    what the authors' code does, for comparison: it keeps the largest of these masses, scales the kept ones to 1, and
    compares nats per own token in bfloat16."""


#: See ``engine.method.divergences``.
Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


class ObjectiveSpec(Section):
    lm_loss_weight: Share = 0.2
    """The paper's lambda, there 0.9: weight of the causal LM loss; the fusion loss gets the rest. Rows given the bytes
    so far are right enough to lead: with three sources the experiment's target ends at 2.438 bits per byte of the
    validation text at 0.5, at 2.410 at 0.2 and at 2.416 at 0.1; experts of one base want it lower, and under full_gain
    the LM loss gets back what a passage's fusion loss does not."""
    full_gain: Annotated[float, Field(ge=0.0)] = 0.5
    """The fusion loss of a passage is weighted by what its teacher knows more: by the mean nats by which the fused
    distributions beat the target on the labels, over this number, from 0 to 1; its causal LM loss gets the rest of its
    weight, so that text of which the sources know no more is learned as without them. 0: every passage counts in full,
    as in the paper. In further passes over the corpus a passage has the mean weight of its domain in the first: the
    target knows its labels by heart by then. A teacher that knows no more than the target costs: in full it was 0.034
    bits per byte worse than continued training for a target near its sources, so weighted 0.003 better (LOG.md)."""
    divergence: Divergence = "forward_kl"
    """The fusion loss, over the kept entries and the rest mass. forward_kl, the paper's, covers all tokens that the
    sources find likely; reverse_kl avoids those that they find unlikely; jensen_shannon is between, at most log 2."""


class OptimizerSpec(Section):
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    """Peak learning rate of AdamW."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are clipped to this global norm."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay after the warm-up, to a tenth of the peak at max_steps."""


class TrainingSpec(Section):
    num_workers: Annotated[int, Field(ge=1)] = 1
    """Ray Train workers, each holding one FSDP2 shard of the target model."""
    num_cpus_per_worker: Annotated[float, Field(ge=0.0)] = 1.0
    """Logical CPUs that Ray reserves for each worker."""
    num_gpus_per_worker: Share = 0.0
    """0 trains on CPUs (gloo), 1 on GPUs (nccl); a fraction shares one GPU with the source models, for one worker."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and gathered parameters; the optimizer always keeps float32."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """How packed passages are kept apart: sdpa by a mask of L x L, which holds everywhere; flash_attention_2 (needs the
    package flash-attn, a GPU and bfloat16) and flex_attention (needs a GPU; compiles at the first step) leave out what
    the mask would hide. auto takes flash_attention_2 where it can run, else sdpa."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each transformer block for the backward pass and compute the rest again: less memory, a
    third more work."""
    compile: bool = False
    """Compile the transformer blocks with torch.compile: faster steps for minutes of start-up."""
    block_length: Annotated[int, Field(ge=8)] = 2048
    """Tokens in a training block; passages are cut to fit."""
    global_batch_blocks: Annotated[int, Field(ge=1)] = 128
    """Training blocks in one optimizer step, over all workers."""
    micro_batch_blocks: Annotated[int, Field(ge=1)] = 1
    """Training blocks in one forward pass of a worker. Gradients accumulate over the step: more blocks at once cost
    memory and save traffic."""
    shard_within: Literal["all", "node"] = "all"
    """Workers over which the weights are sharded. all: every worker holds the smallest part, and every pass gathers
    weights from all nodes. node: each node holds a whole model, and nodes exchange gradients alone."""
    sync_gradients: Literal["every_micro_batch", "once_a_step"] = "every_micro_batch"
    """When the workers sum their gradients. once_a_step saves traffic and keeps a whole model's gradients on each."""
    reduction: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients are summed over the workers: bfloat16 halves the traffic and rounds each sum."""
    collective_timeout_hours: Annotated[float, Field(gt=0.0)] = 6.0
    """Longest wait of the workers for one another. Training waits in a collective operation while a worker has no data,
    for example while a reader catches up; after this time the step fails."""
    max_steps: Annotated[int, Field(ge=1)] = 1000
    """The run ends after this many optimizer steps at the latest. This is also the length of the learning rate's
    schedule: a run that ends earlier for another reason does not reach the schedule's end."""
    max_tokens: Annotated[int, Field(ge=0)] = 0
    """The run ends with the step that brings the learned target tokens to this number; 0: no limit."""
    max_hours: Annotated[float, Field(ge=0.0)] = 0.0
    """The run ends with the step that exceeds this wall time, summed over all its starts; export and evaluation come on
    top. 0: no limit."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints; the last step always writes one. May change when a run goes on, unless a source has
    retire."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How many times, between two checkpoints, training may restart after the failure of a worker, and each reader and
    aligner may be replaced. Deaths with a lost node do not count. Source models have a limit of their own."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Older checkpoints are deleted."""
    export_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the exported weights, in files of up to 5 GB; auto takes the checkpoint's. Checkpoints of the run keep
    float32."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """AdamW and its schedule."""


class MergeMethodSpec(Section):
    method: Literal["linear", "slerp", "ties", "dare", "sce"]
    """linear: the weighted mean of all parameters; slerp: a point on the arc between two models; ties: the mean of the
    largest changes that agree with the majority's sign; dare: the mean of changes that a draw leaves over, enlarged for
    those it drops; sce: FuseChat's merge of the elements that vary most."""
    weights: tuple[Annotated[float, Field(ge=0.0)], ...] = ()
    """linear, ties, dare: one for each model, divided by their sum; empty: equal weights."""
    place: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """slerp: 0 is the first model, 1 the second."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """ties: share of a parameter's changes that are kept, the largest (the paper's 20 %); dare: each change's
    probability to stay."""
    seed: Annotated[int, Field(ge=0)] = 0
    """dare: of the draw."""
    select: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """sce: selected share of a parameter's elements, those that vary most between the models."""
    arithmetic: Literal["paper", "published_code"] = "paper"
    """sce: paper adds the selected changes; published_code takes weights from them and adds all changes, as the
    authors' code does."""

    @property
    def adds_changes(self) -> bool:
        """Whether it adds the models' changes to a base."""
        return self.method in ("ties", "dare", "sce")


class MergeSpec(MergeMethodSpec):
    models: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Labels of the evaluation (``target before``, ``source NAME``, ``fused target``, a key of evaluation.models) or
    checkpoints, all of one architecture, one size and one vocabulary."""
    base: str = ""
    """ties, dare, sce: label or checkpoint of the model from which the others were trained."""


class EvaluationSpec(Section):
    corpora: dict[Name, Annotated[tuple[NamedPlace, ...], Field(min_length=1)]] = {}
    """Held-out domains: name to paths, read like corpus.paths. Each model scores each whole document, in windows of
    training.block_length tokens, or of its own limit if that is lower; of a conversation, the assistant's answers."""
    models: dict[Text, NamedPlace] = {}
    """Further models besides the target, the sources and the run's own export: label to checkpoint, as
    target_model.checkpoint."""
    merges: dict[Name, MergeSpec] = {}
    """Further models, made by merging weights: label to recipe; each is written to output_dir/merges/LABEL."""
    ensembles: dict[Text, Annotated[tuple[Text, ...], Field(min_length=1)]] = {}
    """Averages of several models: label to labels (also of merges) or checkpoints. Probabilities are averaged over the
    bytes between two places where all members have a token end. Bits per byte only."""
    stride_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens by which the window advances in a document of several windows; the rest of the window is context, scored
    before. Every token is scored once. 0: the whole window, no context."""
    batch_tokens: Annotated[int, Field(ge=1)] = 4096
    """Tokens in one forward pass."""
    tasks: tuple[Text, ...] = ()
    """Tasks and groups of the Language Model Evaluation Harness by name (bbh, arc_challenge, ...); run on every model
    except ensembles. Needs lm-eval, and the hub for tasks whose data is not local."""
    task_folders: tuple[NamedPlace, ...] = ()
    """Folders with your own task files, searched before the harness's own tasks."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; null: the task's own number."""
    task_limit: Annotated[int, Field(ge=0)] = 0
    """Only the first questions of each task, this many; 0: all."""
    task_batch: Annotated[int, Field(ge=1)] = 8
    """Questions in one forward pass."""
    labels: dict[Text, Text] = {}
    """Labels that the nodes of the evaluation after training must have; empty: cluster.training_labels. It takes the
    GPU of a training worker for each model, and loads models in bfloat16 there, in float32 on CPUs."""
    every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations of the target during training, by its own workers, in training.precision; the last step
    is evaluated too. 0: none."""
    patience: Annotated[int, Field(ge=0)] = 0
    """The run ends when this many evaluations in a row during training have not lowered the mean bits per byte of the
    domains. The export gets the weights with the lowest mean, for any end of the run; with 0 those of the last step."""


class ClusterSpec(Section):
    object_store_bytes: Annotated[int, Field(ge=80 * 2**20)] = 2**30
    """Shared memory of a local Ray, one that the run starts; a cluster that it joins has its own."""
    dashboard: bool = False
    """Whether a local Ray has a dashboard."""
    source_model_labels: dict[Text, Text] = {}
    """Labels that the nodes of the source models must have; empty: any node."""
    training_labels: dict[Text, Text] = {}
    """Labels that the nodes of the training workers must have; empty: any node."""
    wait_minutes: Annotated[float, Field(ge=0.0)] = 15.0
    """How long a run waits for nodes that are still starting, or for what other jobs hold, on a cluster that it joins.
    Every 30 seconds it says what is missing and who holds it; an autoscaler is asked for it until the first step."""
    stall_minutes: Annotated[float, Field(gt=0.0)] = 20.0
    """After so long without a passage or a step the run says so, with the state of every stage. An evaluation after
    training of which no process works for so long, or gets a node, is given up."""


class FusionSpec(Section):
    """All decisions of a run. Load one with ``engine.load_spec``."""

    run: RunSpec
    corpus: CorpusSpec
    target_model: TargetModelSpec
    source_models: tuple[SourceModelSpec, ...] = ()
    """The models to fuse. An empty list makes the run plain continued training, the CLM baseline."""
    pairwise: MergeMethodSpec | None = None
    """FuseChat's recipe: the target is fused with each source model alone, and these targets are merged so; null: it is
    fused with all of them at once."""
    alignment: AlignmentSpec = AlignmentSpec()
    fusion: FusionRuleSpec = FusionRuleSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    cluster: ClusterSpec = ClusterSpec()
