"""The numbers that follow from a spec."""

import io
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import load_spec
from engine.corpus.files import CorpusUnit
from engine.errors import PreflightError
from pipelines.stream import sizes
from pipelines.stream.sizes import derive_flow
from tests.support.failing_store import failing_store

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(("block_length", "blocks"), [(256, 64), (2048, 8), (32768, 1)])
def test_a_batch_is_a_budget_of_tokens(block_length, blocks):
    spec = load_spec("pipelines/specs/quickstart.yaml", [f"training.block_length={block_length}"])
    assert derive_flow(spec).batch_blocks == blocks


@pytest.mark.parametrize(("workers", "blocks"), [(2, 16), (8, 16), (64, 16), (5, 15)])
def test_a_batch_does_not_grow_with_the_number_of_workers(workers, blocks):
    overrides = [f"training.num_workers={workers}", "training.global_batch_blocks=320", "training.block_length=2048"]
    overrides += [f"source_models.{index}.num_gpus=1" for index in range(3)]
    assert derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides)).batch_blocks == blocks


def test_a_batch_is_bounded_in_bytes():
    overrides = ["training.block_length=256", "fusion.top_k=1024"]
    blocks = derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides)).batch_blocks
    size = blocks * 256 * 3 * 1024 * sizes.BYTES_PER_ENTRY
    assert sizes.MOST_BATCH_BYTES / 2 < size <= sizes.MOST_BATCH_BYTES


@pytest.mark.parametrize(
    ("deterministic", "wanted", "readers"), [("true", 0, 1), ("true", 1, 1), ("false", 0, 3), ("false", 2, 2)]
)
def test_one_order_of_passages_has_one_reader(tmp_path, deterministic, wanted, readers):
    paths = [tmp_path / f"{name}.txt" for name in "abc"]
    for path in paths:
        path.write_text("text" * 2**20)  # a shard
    overrides = [
        f"corpus.paths=[{tmp_path}/*.txt]",
        f"run.deterministic={deterministic}",
        f"corpus.readers={wanted}",
        "source_models.0.replicas=20",
    ]
    assert derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides)).reader_replicas == readers


def test_a_mixture_has_as_many_readers_as_its_smallest_domain_has_shards(tmp_path):
    for name in ("a1", "a2", "a3", "b1", "b2"):
        (tmp_path / f"{name}.txt").write_text("text" * 2**20)  # a shard
    domains = f"{{b: {{paths: [{tmp_path}/b*.txt]}}, a: {{paths: [{tmp_path}/a*.txt], weight: 3}}}}"
    overrides = [f"corpus={{domains: {domains}, readers: 9}}", "run.deterministic=false"]
    flow = derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides))
    assert [(domain.name, domain.weight, len(domain.shards)) for domain in flow.domains] == [("a", 3, 3), ("b", 1, 2)]
    assert flow.reader_replicas == 2


@pytest.mark.parametrize(
    ("step", "workers", "blocks"), [(16, 2, 16), (128, 2, 64), (96, 2, 48), (194, 2, 2), (9, 3, 9)]
)
def test_a_checkpoint_cuts_no_batch_of_a_deterministic_mixture(tmp_path, step, workers, blocks):
    (tmp_path / "a.txt").write_text("text")
    overrides = [
        f"corpus={{domains: {{a: {{paths: [{tmp_path}/a.txt]}}}}}}",
        "run.deterministic=true",
        "training.block_length=256",
        f"training.global_batch_blocks={step}",
        f"training.num_workers={workers}",
    ]
    assert derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides)).batch_blocks == blocks


def test_what_ray_must_reserve_is_counted():
    overrides = ["source_models.0.replicas=2", "source_models.0.most_replicas=4", "source_models.1.num_cpus=2"]
    flow = derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides))
    sources, workers, readers, aligners = 2 + 2 + 1, 2, 1 * 0.5, 2 * 1.0
    assert flow.logical_cpus == workers + sources + readers + aligners
    assert flow.gpus == 0


def test_files_are_listed_many_at_a_time_and_in_order(tmp_path, monkeypatch):
    def slowly(path: str) -> list[CorpusUnit]:
        time.sleep(0.1)
        return [CorpusUnit(path)]

    for number in range(64):
        (tmp_path / f"{number:02}.txt").write_text("text")
    spec = load_spec("pipelines/specs/quickstart.yaml", [f"corpus.paths=[{tmp_path}/*.txt]"])
    derive_flow(spec)  # loads what the models need
    monkeypatch.setattr(sizes, "units_of", slowly)
    started = time.monotonic()
    units = derive_flow(spec).corpus_units
    assert [unit.path for unit in units] == [str(tmp_path / f"{number:02}.txt") for number in range(64)]
    assert time.monotonic() - started < 64 * 0.1 / 2


def test_parts_of_a_gpu_that_fill_it_are_one():
    parts = [0.1, 0.2, 0.3]
    overrides = [f"source_models.{index}.num_gpus={part}" for index, part in enumerate(parts)]
    overrides += ["training.num_gpus_per_worker=0.4", "training.num_workers=1"]
    flow = derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides))
    assert flow.gpus == 1.0


def test_a_key_value_cache_that_cannot_hold_one_passage_is_refused():
    overrides = ["source_models.0.kv_cache_bytes=300000"]
    sentence = r"source_models\.0\.kv_cache_bytes: 300,000 bytes cannot hold one passage of \d+ tokens, which takes "
    with pytest.raises(PreflightError, match=sentence):
        derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides))


def test_a_key_value_cache_that_cannot_hold_the_step_of_the_spec_is_refused():
    overrides = ["source_models.0.kv_cache_bytes=67108864", "source_models.0.batched_tokens=1000000"]
    sentence = r"source_models\.0\.kv_cache_bytes: 67,108,864 bytes cannot hold one step of 1000000 tokens"
    with pytest.raises(PreflightError, match=sentence):
        derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides))


def test_gpus_that_cannot_share_a_model_are_refused_before_anything_starts():
    """The quickstart's first source has 4 attention heads."""
    parallel = ["source_models.0.num_gpus=1", "source_models.0.replicas=2", "source_models.0.tensor_parallel_size={}"]

    def flow_of(size: int):
        return derive_flow(load_spec("pipelines/specs/quickstart.yaml", [text.format(size) for text in parallel]))

    assert flow_of(2).gpus == 4
    sentence = r"source_models\.0\.tensor_parallel_size: 3 GPUs cannot share the 4 attention .*; choose one of 1, 2, 4"
    with pytest.raises(PreflightError, match=sentence):
        flow_of(3)


def test_a_footer_that_a_store_gives_late_changes_no_unit_and_one_that_it_never_gives_is_a_fault():
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["text"] * 9}), file, row_group_size=3)
    with failing_store() as store:
        url = store.write("a.parquet", file.getvalue())
        spec = load_spec("pipelines/specs/quickstart.yaml", [f"corpus.paths=[{url}]"])
        store.fail(open={1, 2}, read={1, 3})
        assert [unit.row_group for unit in derive_flow(spec).corpus_units] == [0, 1, 2]
        store.fail(read=range(10**9))
        with pytest.raises(PreflightError, match=r"corpus\.paths: failing://a\.parquet: the file cannot be read"):
            derive_flow(spec)
