"""The specs that ship: their settings, and the GPUs that they need."""

import pytest
import yaml
from transformers import LlamaConfig, MptConfig

from engine import load_spec
from engine.errors import SpecError
from pipelines.planning.costs import model_costs
from tests.benchmarks.passages import QUICKSTART, documents
from tests.support import real_tokenizers
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(60)

SPECS = ROOT / "pipelines" / "specs"
SEVEN_BILLION = ("fusellm_7b", "clm_7b", "distillation_7b")

#: The shape of each model by a word in its checkpoint's name.
SHAPES = {
    "13b": LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
    "mpt": MptConfig(d_model=4096, n_heads=32, n_layers=32, vocab_size=50432),
    "llama": LlamaConfig(),
}


def spec_named(name, *overrides):
    return load_spec(SPECS / f"{name}.yaml", overrides)


def gpus(spec):
    training = spec.training
    return training.num_workers * training.num_gpus_per_worker + sum(
        source.replicas * source.num_gpus * source.tensor_parallel_size for source in spec.source_models
    )


def test_fusellm_is_the_papers():
    spec = spec_named("fusellm_7b")
    assert [source.name for source in spec.source_models] == ["llama-2-7b", "open-llama-7b", "mpt-7b"]
    assert (spec.alignment.tokens, spec.alignment.vocabulary) == ("min_edit", "min_edit")
    assert (spec.fusion.rule, spec.fusion.granularity, spec.fusion.top_k) == ("min_ce", "passage", 10)
    assert spec.fusion.arithmetic == "fusellm"
    assert spec.objective.lm_loss_weight == 0.9
    assert spec.training.block_length * spec.training.global_batch_blocks == 262_144
    optimizer = spec.training.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (1e-5, (0.9, 0.95), 0.1)
    assert optimizer.max_grad_norm == 1.0
    assert optimizer.warmup_steps == round(0.008 * spec.training.max_steps)


def test_the_baselines_differ_from_fusion_in_sources_and_loss_alone():
    fusion, *baselines = map(spec_named, SEVEN_BILLION)
    for baseline in baselines:
        for section in ("corpus", "target_model", "training", "evaluation", "cluster"):
            assert getattr(baseline, section) == getattr(fusion, section), section
        assert baseline.run.seed == fusion.run.seed
    continued, distilled = baselines
    assert not continued.source_models and continued.objective.lm_loss_weight == 1.0
    assert distilled.fusion.single_source == distilled.source_models[0].name
    assert distilled.objective == fusion.objective
    assert len({spec.run.output_dir for spec in (fusion, *baselines)}) == len(SEVEN_BILLION)


@pytest.fixture(scope="module")
def without_weights(tmp_path_factory):
    """For each of ``SHAPES`` a folder with its configuration, and a tokenizer of Llama 2's kind and size.

    MPT's own takes a tenth or two fewer tokens, which needs the same whole replicas.
    """
    tokenizer = real_tokenizers.mistral_sentencepiece()
    folders = {word: tmp_path_factory.mktemp(word) for word in SHAPES}
    for word, folder in folders.items():
        SHAPES[word].save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@pytest.mark.parametrize("name", ["fusellm_7b", "distillation_7b"])
def test_replicas_are_those_that_plan_proposes(name, without_weights):
    spec = spec_named(name)
    models = {"target_model": spec.target_model}
    models |= {f"source_models.{index}": source for index, source in enumerate(spec.source_models)}
    local = [
        f"{where}.checkpoint={next(folder for word, folder in without_weights.items() if word in model.checkpoint)}"
        for where, model in models.items()
    ]
    target, *sources = model_costs(spec_named(name, *local), documents(QUICKSTART)[:50])
    assert 6.7e9 < target.parameters < 6.8e9
    assert [cost.replicas for cost in sources] == [cost.proposed for cost in sources]


def test_instruction_tuning_has_the_replicas_of_models_of_the_same_shapes():
    sources, tuned = (spec_named(name).source_models for name in ("fusellm_7b", "fusellm_instruction_7b"))
    assert [source.replicas for source in tuned] == [source.replicas for source in sources]
    assert [source.backend for source in tuned] == [source.backend for source in sources]


def test_only_what_vllm_cannot_load_runs_in_transformers():
    path = real_tokenizers.package("vllm") / "model_executor/models/registry.py"
    _, supported_before = path.read_text(encoding="utf8").split("_PREVIOUSLY_SUPPORTED_MODELS = {")
    for source in spec_named("fusellm_7b").source_models:
        assert (source.backend == "transformers") == ("mpt" in source.name)
    assert '"MPTForCausalLM"' in supported_before
    assert '"LlamaForCausalLM"' not in supported_before


def test_the_gpus_that_the_comments_name():
    assert [gpus(spec_named(name)) for name in SEVEN_BILLION] == [17, 8, 20]
    assert gpus(spec_named("single_gpu_80gb")) == pytest.approx(1.0)


def test_the_cluster_that_ships_has_the_labels_and_gpus_of_the_specs():
    nodes = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["available_node_types"].values()
    room = {node["labels"]["pool"]: node["resources"].get("GPU", 0) * node.get("min_workers", 0) for node in nodes}
    for name in (*SEVEN_BILLION, "fusellm_instruction_7b"):
        spec = spec_named(name)
        workers = spec.training.num_workers * spec.training.num_gpus_per_worker
        assert room[spec.cluster.training_labels["pool"]] == workers
        assert room[spec.cluster.source_model_labels["pool"]] >= gpus(spec) - workers
        assert spec.run.output_dir.startswith("s3://")


def test_one_gpu_is_shared_with_one_worker_alone():
    with pytest.raises(SpecError, match=r"training\.num_gpus_per_worker: 0\.55 cannot go with 2 workers"):
        spec_named("single_gpu_80gb", "training.num_workers=2")


def test_the_single_gpus_baseline_is_two_overrides():
    spec = spec_named("single_gpu_80gb", "source_models=[]", "objective.lm_loss_weight=1.0")
    assert not spec.source_models
