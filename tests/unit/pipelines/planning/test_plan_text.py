"""The plan says in words what reading and training will do."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine import load_spec
from engine.corpus.domains import Domain
from engine.corpus.files import CorpusUnit
from engine.spec import TrainingSpec
from pipelines.planning.plan_text import attention_line, corpus_line, pairs_line
from pipelines.stream.sizes import derive_flow

pytestmark = pytest.mark.timeout(60)

GPU = {"num_gpus_per_worker": 1.0, "precision": "bfloat16"}
MASK = "sdpa under a mask of 512 x 512"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, f"{MASK}: flash_attention_2 needs a GPU"),
        (GPU | {"precision": "float32"}, f"{MASK}: flash_attention_2 needs training.precision bfloat16, not float32"),
        (GPU, f"flash_attention_2 where the workers have the package flash-attn, else {MASK}"),
        (GPU | {"attention": "sdpa"}, MASK),
        (GPU | {"attention": "flash_attention_2"}, "flash_attention_2, without what a mask would hide"),
        (
            GPU | {"attention": "flex_attention"},
            "flex_attention, without what a mask would hide; compiles at the first step",
        ),
    ],
)
def test_the_plan_says_which_attention_is_used(fields, line):
    assert attention_line(TrainingSpec(block_length=512, **fields)) == line


def test_files_that_only_one_reader_can_read_are_named():
    flow = derive_flow(load_spec("pipelines/specs/quickstart.yaml"))
    assert corpus_line(flow, passes=2) == "1 units in 1 shards x 2 passes"
    sizes = {"s3://a/1.jsonl.gz": 3 * 10**8, "s3://a/2.jsonl.gz": 2 * 10**8, "s3://a/3.jsonl": 5 * 10**8}
    shards = tuple((CorpusUnit(path, num_bytes=size),) for path, size in sizes.items())
    assert corpus_line(replace(flow, domains=(Domain("", 1.0, shards),)), passes=1) == (
        "3 units in 3 shards x 1 passes; 2 row groups or compressed files are large and cannot be split: one reader "
        "each (s3://a/1.jsonl.gz, 300 MB)"
    )


def test_a_target_whose_pairs_of_tokens_are_not_known_is_named():
    spec = load_spec("pipelines/specs/quickstart.yaml")
    assert pairs_line(spec, of_type("BPE")) == pairs_line(spec, of_type("Unigram")) == ""
    assert pairs_line(spec, of_type("WordPiece", continuing_subword_prefix="##")) == ""
    line = "the fused rows keep pairs of tokens that the target's tokenizer never writes: its model is WordLevel"
    assert pairs_line(spec, of_type("WordLevel")).startswith(line)
    by_offset = load_spec("pipelines/specs/quickstart.yaml", ["alignment.tokens=byte_offset"])
    assert pairs_line(by_offset, of_type("WordLevel")) == ""


def of_type(model_type, **model):
    """What a tokenizer of a type says of itself."""
    layout = json.dumps({"model": {"type": model_type, **model}, "pre_tokenizer": None})
    return SimpleNamespace(backend=SimpleNamespace(to_str=lambda: layout))
