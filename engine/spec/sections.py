"""The spec of a run: decisions only. What can be derived from them, ``engine.plan`` derives and shows.

Sections are frozen and refuse unknown keys. A fault is reported with its dotted path, the value seen and the values
allowed, all faults at once (``engine.spec.loading``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Names become column prefixes, folder names and labels of metrics.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen part of the spec that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class RunSpec(Section):
    name: Name
    """Name of the run in logs, on the dashboard and in metrics."""
    output_dir: Text
    """Folder or fsspec URL for checkpoints, export, merges, evaluation, report and the resolved spec; nothing else is
    written there."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random: the order of passages, and dropout where the target has it."""
    deterministic: bool = False
    """Keep one order of passages through all stages: two runs learn the same blocks in the same order and, on one kind
    of CPU, have the same losses bit for bit, however often they were interrupted and however many replicas the
    sources have. One process reads the corpus then, and a slow replica holds up the others."""
    tensorboard: bool = False
    """Write every step's metrics as TensorBoard event files too, below output_dir/logs/tensorboard."""
    wandb_project: str = ""
    """Weights & Biases project that every step's metrics go to as well; empty: none. Needs the package wandb."""


class CorpusSpec(Section):
    paths: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Files, globs or fsspec URLs of .parquet, .jsonl or .txt files, the last two plain, .gz or .zst; no file twice."""
    text_column: Text = "text"
    """Column (Parquet) or key (JSONL) that holds a document. A .txt file is one document."""
    messages_column: str = ""
    """Column or key that holds a conversation, a list of {role, content}; empty: the corpus is of documents. Every
    model reads its own chat template's rendering, and only what the assistant says is learned."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do about a file or row that cannot be read: stop with a sentence, or leave it out and count it."""
    passes: Annotated[int, Field(ge=1)] = 1
    """How many times the corpus is read, all within one execution."""
    overlap_bytes: Annotated[int, Field(ge=0)] = 0
    """Text of the passage before that a passage begins with, where a document is cut: read as context by every model,
    but learned once. At most training.block_length."""
    shuffle_passages: Annotated[int, Field(ge=0)] = 256
    """Passages that a reader holds to draw the next one from, so that a step is not one document; 0 keeps the order."""


class LoraSpec(Section):
    rank: Annotated[int, Field(ge=0)] = 0
    """Columns of the low-rank matrices that are trained beside each frozen one; 0 trains the whole model."""
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """The product of the two matrices counts alpha / rank times."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the inputs of the low-rank matrices that a training step leaves out."""
    target_modules: tuple[Text, ...] = ()
    """Ends of the names of the modules that get them, not the lm_head or its weight; empty: all other linear layers."""


class TargetModelSpec(Section):
    checkpoint: Text
    """The model to train, any causal language model that transformers loads: Hugging Face folder or hub name, fsspec
    URL of such a folder (copied once to each node), or path or URL of a .gguf file (converted once on each node)."""
    chat_template: str = ""
    """Path or fsspec URL of a Jinja chat template to take for the tokenizer's own; empty: its own. Only conversations
    need one. The target's is written into the export."""
    lora: LoraSpec = LoraSpec()
    """Low-rank adapters (peft) to train instead of the whole model; the export has them merged in."""


class SourceModelSpec(Section):
    name: Name
    """Prefix of this source's columns and its name in every table."""
    checkpoint: Text
    """As target_model.checkpoint."""
    adapter: str = ""
    """Folder or fsspec URL of a LoRA adapter, as peft saves it, to merge into the checkpoint; empty: none."""
    chat_template: str = ""
    """As target_model.chat_template."""
    backend: Literal["vllm", "transformers"] = "vllm"
    """What runs the model: vLLM, or transformers where vLLM does not know the architecture."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Number of processes that hold this model."""
    most_replicas: Annotated[int, Field(ge=0)] = 0
    """How far Ray Data may grow the pool while this source is behind and the cluster has room; 0 keeps it fixed."""
    num_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    """Logical CPUs that Ray reserves for each replica."""
    num_gpus: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """GPU that Ray reserves for each replica; a fraction shares one GPU between pools, 0 runs on the CPU."""
    required: bool = True
    """Whether the run stops when this source fails for good; if not, fusion goes on with the others, and the report
    lists the passages."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How many times in all replicas of this source may die and be replaced before the source has failed for good."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs of one node that hold one replica together; each is reserved whole. Needs backend vllm and num_gpus 1."""
    quantization: str = ""
    """How vLLM quantises the weights, in its own words (fp8, mxfp8, ...); empty: as the checkpoint has them."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights and activations; auto takes the checkpoint's."""
    bos: Literal["tokenizer", "always", "never"] = "tokenizer"
    """Whether BOS precedes every passage: as the model's own tokenizer does it, or by decision."""
    probe: Literal["refuse", "correct", "off"] = "refuse"
    """What is done, when a replica starts, about a model that predicts a plain text no better than chance, or several
    nats worse than it would with (or without) BOS: refuse it; correct BOS and refuse the rest; or do not look."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Flattens (above 1) or sharpens the kept entries of this source's rows among themselves, before fusion; its rest
    mass and its cross-entropy stay as they are."""
    max_context_tokens: Annotated[int, Field(ge=8)] = 2048
    """Passages are cut to this many of the source's tokens, or to the model's own limit if that is lower."""
    kv_cache_bytes: Annotated[int, Field(ge=2**20)] = 2**28
    """Memory for vLLM's key-value cache. Scoring needs about two batches of it, far less than serving."""


class AlignmentSpec(Section):
    tokens: Literal["byte_offset", "min_edit", "exact", "suffix"] = "byte_offset"
    """How target rows find source rows: byte_offset, where both have consumed the same bytes of the passage, and no
    teacher elsewhere; or for comparison the paper's dynamic programming over token strings, kept where the vocabulary
    mapping (min_edit), the same string (exact) or a common suffix (FuseChat's rule) confirms it, the next token taught
    elsewhere."""
    vocabulary: Literal["prefix", "exact", "min_edit", "statistical"] = "prefix"
    """How a source token becomes a target token: the same bytes, else nothing (exact), the first target token of its
    bytes (prefix), the nearest string (the paper's min_edit), or the token that begins most often where this one does
    in a sample of the corpus (statistical, FuseChat's idea)."""
    split_tokens: Literal["first_piece", "product"] = "first_piece"
    """What a target token that the source splits gets where the text goes on with it: nothing of its own, its first
    piece stands for it; or the product of its pieces' probabilities, taken from the first piece. Needs byte_offset."""
    sample_bytes: Annotated[int, Field(ge=2**10)] = 2**20
    """Text of the corpus that the statistical mapping is counted on."""
    cache_dir: Text = "~/.cache/knowledge-fusion-engine"
    """Folder or fsspec URL for the vocabulary mapping tables, shared by runs."""


class FusionRuleSpec(Section):
    rule: Literal["min_ce", "avg_ce", "uniform", "single"] = "min_ce"
    """min_ce takes the distribution of the source with the lowest cross-entropy, avg_ce averages them by cross-entropy,
    uniform averages them alike, single takes one source: plain distillation."""
    single_source: str = ""
    """Name of the source that rule single takes; empty under every other rule."""
    granularity: Literal["passage", "token"] = "passage"
    """Whether rule compares the cross-entropies of whole passages, or of the bytes of each target token."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Under avg_ce: how many nats per byte make a factor of e between two weights; low is like min_ce."""
    top_k: Annotated[int, Field(ge=1, le=1024)] = 64
    """Entries kept of every row, from the sources to the loss. The paper's 10 fits large models only."""
    arithmetic: Literal["exact", "fusellm"] = "exact"
    """exact adds masses that meet on one target token, keeps the rest mass, and compares nats per byte. fusellm does as
    the authors' code, for comparison: of masses that meet the largest stays, what is kept is scaled to 1, and nats per
    own token are compared, in bfloat16."""


#: See ``engine.method.divergences``.
Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


class ObjectiveSpec(Section):
    lm_loss_weight: Share = 0.9
    """The paper's lambda: weight of the causal LM loss; the fusion loss gets the rest."""
    divergence: Divergence = "forward_kl"
    """The fusion loss, over the kept entries and the rest mass: forward_kl, the paper's, asks for all that the sources
    hold likely; reverse_kl punishes what they hold unlikely; jensen_shannon lies between and is at most log 2."""


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
    activation_checkpointing: bool = False
    """Keep only the inputs of each transformer block for the backward pass and compute the rest again: less memory for
    a third more work."""
    compile: bool = False
    """Compile the transformer blocks by torch.compile: minutes at the start for faster steps."""
    block_length: Annotated[int, Field(ge=8)] = 2048
    """Tokens in a training block; passages are cut to fit."""
    global_batch_blocks: Annotated[int, Field(ge=1)] = 128
    """Training blocks in one optimizer step, over all workers."""
    micro_batch_blocks: Annotated[int, Field(ge=1)] = 1
    """Training blocks that one worker puts through the model at once; the rest of the step accumulates gradients, which
    are summed over the workers each time: more blocks at once cost memory and save traffic."""
    max_steps: Annotated[int, Field(ge=1)] = 1000
    """The run ends after this many optimizer steps at the latest. It is also the length of the learning rate's
    schedule: where something else ends the run, the rate stops on its way down."""
    max_tokens: Annotated[int, Field(ge=0)] = 0
    """The run ends with the step that brings the learned target tokens to this number; 0: no limit."""
    max_hours: Annotated[float, Field(ge=0.0)] = 0.0
    """The run ends with the step that passes this wall time, over all its starts; the export and the evaluation of all
    models come on top. 0: no limit."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints; the last step always makes one."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How many times training may be started anew from its last checkpoint because a worker has died; readers and
    aligners, too, may die and be replaced so many times each. Source models have a number of their own."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Older checkpoints are deleted."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """AdamW and its schedule."""


class MergeSpec(Section):
    method: Literal["linear", "sce"]
    """linear: the weighted mean of all parameters; sce: FuseChat's selection by how much the models vary."""
    models: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Labels of the evaluation (``target before``, ``source NAME``, ``fused target``, a key of evaluation.models) or
    checkpoints, all of one architecture, one size and one vocabulary."""
    weights: tuple[Annotated[float, Field(ge=0.0)], ...] = ()
    """linear: one for each model, divided by their sum; empty weighs all alike."""
    base: str = ""
    """sce: label or checkpoint of the model that the others come from."""
    select: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """sce: share of a parameter's elements, those that vary most between the models, that count."""
    arithmetic: Literal["paper", "published_code"] = "paper"
    """sce: paper adds the selected changes; published_code weighs by them and adds all changes, as the authors do."""


class EvaluationSpec(Section):
    corpora: dict[Name, Annotated[tuple[Text, ...], Field(min_length=1)]] = {}
    """Held-out domains: name to paths, read like corpus.paths. Each model scores each document whole, in windows of
    training.block_length tokens, or of as many as it takes; of a conversation, what the assistant says."""
    models: dict[Text, Text] = {}
    """Further models beside the target, the sources and the run's own export: label to checkpoint, as
    target_model.checkpoint."""
    merges: dict[Name, MergeSpec] = {}
    """Further models made by merging weights: label to recipe; each is written to output_dir/merges/LABEL."""
    ensembles: dict[Text, Annotated[tuple[Text, ...], Field(min_length=1)]] = {}
    """Mean probabilities of several models over the bytes between two places where all have a token end: label to
    labels (of merges too) or checkpoints. Bits per byte only."""
    stride_tokens: Annotated[int, Field(ge=0)] = 0
    """How far the window moves on in a document longer than one; the rest of it is context, scored before. Every token
    is scored once. 0: the whole window, no context."""
    batch_tokens: Annotated[int, Field(ge=1)] = 4096
    """Tokens in one forward pass."""
    tasks: tuple[Text, ...] = ()
    """Tasks and groups of the Language Model Evaluation Harness by name (bbh, arc_challenge, ...); run on every model
    but ensembles. Needs lm-eval, and the hub for tasks whose data is not local."""
    task_folders: tuple[Text, ...] = ()
    """Folders with task files of your own, looked through before the harness's own tasks."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; none given: as each task says."""
    task_limit: Annotated[int, Field(ge=0)] = 0
    """Questions of each task, the first ones; 0: all."""
    task_batch: Annotated[int, Field(ge=1)] = 8
    """Questions in one forward pass."""
    every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations of the target during training, by its own workers, in training.precision; the last step
    is evaluated too. 0: none."""
    patience: Annotated[int, Field(ge=0)] = 0
    """The run ends when so many evaluations during training in a row have not lowered the mean of the domains' bits per
    byte, and whatever ends it, the weights with the lowest mean are exported. 0: the last step's are."""


class ClusterSpec(Section):
    object_store_bytes: Annotated[int, Field(ge=80 * 2**20)] = 2**30
    """Shared memory of a Ray that the run starts by itself; a cluster that it joins has its own."""
    dashboard: bool = False
    """Whether a Ray that the run starts by itself has a dashboard."""
    source_model_labels: dict[Text, Text] = {}
    """Labels that the nodes of the source models must have; none: any node."""
    training_labels: dict[Text, Text] = {}
    """Labels that the nodes of the training workers must have; none: any node."""


class FusionSpec(Section):
    """Everything that a run decides. Load one with ``engine.load_spec``."""

    run: RunSpec
    corpus: CorpusSpec
    target_model: TargetModelSpec
    source_models: tuple[SourceModelSpec, ...] = ()
    """The models to fuse. Without any, the run is plain continued training, the CLM baseline."""
    alignment: AlignmentSpec = AlignmentSpec()
    fusion: FusionRuleSpec = FusionRuleSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    cluster: ClusterSpec = ClusterSpec()
