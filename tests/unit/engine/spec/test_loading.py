"""Specs: which ones are refused, and that all faults are reported at once with path, value seen and remedy."""

import json
import resource
import subprocess
import sys

import pytest
import yaml

from engine.errors import SpecError
from engine.spec import AlignmentSpec
from engine.spec.loading import as_located_spec, dump_spec, load_spec
from engine.spec.presets import PRESETS
from tests.support.paths import ROOT

GOOD = """
run: {name: small, output_dir: out}
corpus: {paths: [a.jsonl]}
target_model: {checkpoint: target}
source_models: [{name: one, checkpoint: a}, {name: two, checkpoint: b}]
training: {num_workers: 2, global_batch_blocks: 4}
"""

# Name: (overrides of the good spec as YAML, the words in the error).
BROKEN = {
    "unknown section": ("traning: {}", ["traning", "did you mean training?"]),
    "unknown field": ("corpus: {paths: [a], text_colum: t}", ["corpus.text_colum", "did you mean text_column?"]),
    "missing section": ("corpus: null", ["corpus", "None"]),
    "missing field": ("run: {name: x}", ["run.output_dir", "is missing"]),
    "value not allowed": (
        "fusion: {rule: max_ce}",
        ["fusion.rule", "'max_ce'", "'min_ce', 'avg_ce', 'uniform' or 'single'"],
    ),
    "out of range": (
        "objective: {lm_loss_weight: 1.5}",
        ["objective.lm_loss_weight", "1.5", "less than or equal to 1"],
    ),
    "wrong type": ("training: {max_steps: many}", ["training.max_steps", "'many'", "integer"]),
    "name with a slash": ("source_models: [{name: a/b, checkpoint: c}]", ["source_models.0.name", "'a/b'"]),
    "repeated name": (
        "source_models: [{name: a, checkpoint: c}, {name: a, checkpoint: d}]",
        ["source_models.1.name", "'a' is taken by source_models.0.name"],
    ),
    "idle loss": ("source_models: []", ["objective.lm_loss_weight", "0.2", "set it to 1.0"]),
    "uneven batch": ("training: {num_workers: 3, global_batch_blocks: 8}", ["training.global_batch_blocks", "8", "3"]),
    "section of another kind": ("fusion: [min_ce]", ["fusion", "['min_ce']"]),
    "several at once": (
        "fusion: {rule: x, top_k: 0}\nalignment: {tokens: y}\nrun: {name: '', output_dir: o}",
        ["fusion.rule", "'x'", "fusion.top_k", "0", "alignment.tokens", "'y'", "run.name"],
    ),
}


def broken_spec(name: str) -> dict:
    return {**yaml.safe_load(GOOD), **yaml.safe_load(BROKEN[name][0])}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_spec_reports_every_fault(name):
    with pytest.raises(SpecError) as caught:
        load_spec(broken_spec(name))
    assert all(words in str(caught.value) for words in BROKEN[name][1]), str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_the_command_line_checks_in_under_two_cpu_seconds(name, tmp_path):
    """CPU seconds, since other processes of a busy machine do not count."""
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(broken_spec(name)))
    before = cpu_seconds_of_children()
    done = subprocess.run(
        [sys.executable, "-m", "engine", "check", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    seconds = cpu_seconds_of_children() - before
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(words in done.stderr for words in BROKEN[name][1])
    assert seconds < 2.0


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_spec_survives_writing_and_reading():
    spec = load_spec(yaml.safe_load(GOOD), ["fusion.top_k=10", "source_models.1.replicas=3"])
    assert spec.fusion.top_k == 10
    assert [source.replicas for source in spec.source_models] == [1, 3]
    assert load_spec(yaml.safe_load(dump_spec(spec))) == spec


def test_a_preset_fills_the_gaps_of_the_spec():
    spec = load_spec(yaml.safe_load(GOOD) | {"preset": "fusellm_soft", "fusion": {"rule": "avg_ce"}})
    assert (spec.alignment.tokens, spec.alignment.vocabulary) == ("min_edit", "min_edit")
    assert (spec.fusion.rule, spec.fusion.top_k, spec.fusion.arithmetic) == ("avg_ce", 10, "fusellm")
    assert load_spec(yaml.safe_load(dump_spec(spec))) == spec, "the resolved spec has the preset's values"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_spec(name):
    spec = load_spec(yaml.safe_load(GOOD), [f"preset={name}"])
    assert spec.fusion.arithmetic == "fusellm"
    assert spec.objective.lm_loss_weight == 0.9


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["preset=fusellm"], ["preset", "'fusellm' is no preset", "fusellm_soft, fusellm_hard, fusechat_ms"]),
        (["source_models.0.replicas=3", "source_models.0.most_replicas=2"], ["most_replicas", "fewer than replicas"]),
        (["source_models.0.tensor_parallel_size=2"], ["tensor_parallel_size", "num_gpus 1"]),
        (["source_models.0.quantization=fp8", "source_models.0.backend=transformers"], ["quantization", "vLLM's"]),
        (["corpus.readers=2", "run.deterministic=true"], ["corpus.readers", "no fixed order", "set it to 1 or 0"]),
        (["corpus.paths=[]"], ["corpus.paths", "is missing", "domains"]),
        (["corpus.domains.a.paths=[a.jsonl]"], ["corpus.domains", "corpus.paths too", "give one of them"]),
        (["corpus.domains.a.weight=2"], ["corpus.domains.a.paths", "is missing"]),
        (["corpus={domains: {a: {paths: [x], weight: 0}}}"], ["corpus.domains.a.weight", "greater than 0", "share of"]),
        (["corpus.exhausted=repeat"], ["corpus.exhausted", "only domains", "set it to stop"]),
        (["training.max_steps=true"], ["training.max_steps", "true is true or false, no value of this field"]),
        (["run.seed=yes"], ["run.seed", "true is true or false, no value of this field"]),
        (["fusion.rule=single"], ["fusion.single_source", "is no source model", "choose one of"]),
        (["fusion.single_source=a"], ["fusion.single_source", "fusion.rule is avg_ce"]),
        (["preset=fusellm_hard", "fusion.granularity=token"], ["fusion.granularity", "compares whole passages"]),
    ],
)
def test_methods_that_exclude_each_other_are_faults(overrides, words):
    with pytest.raises(SpecError) as caught:
        load_spec(yaml.safe_load(GOOD), overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("field", ["run.output_dir", "target_model.checkpoint", "alignment.cache_dir", "corpus.paths"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        (" ", "white space"),
        ("s3:/bucket/x", "a URL begins with s3://"),
        ("S3:/x", "a URL begins with S3://"),
        ("file:x", "a URL begins with file://"),
        ("file:", "a URL begins with file://"),
        ("s3://", "a URL is a protocol, :// and a path"),
        ("://x", "a URL is a protocol, :// and a path"),
        ("~no-such-user/x", "there is no user 'no-such-user' on this machine"),
    ],
)
def test_a_place_that_is_neither_a_path_nor_a_url_is_a_fault(field, place, words):
    with pytest.raises(SpecError) as caught:
        load_spec(yaml.safe_load(GOOD), [f"{field}={json.dumps([place] if field == 'corpus.paths' else place)}"])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "path", ["10:30.jsonl", "log-10:30.jsonl", "a b.txt", "simplecache::s3://b/x.jsonl", "./s3:/x.txt"]
)
def test_a_colon_may_be_in_a_file_name(path):
    assert load_spec(yaml.safe_load(GOOD), [f"corpus.paths={json.dumps([path])}"]).corpus.paths == (path,)


def test_a_text_where_a_list_is_meant_is_shown_as_one():
    with pytest.raises(SpecError, match=r"corpus.paths: 'a.jsonl' is a text, not a list; write \[a.jsonl\]"):
        load_spec(yaml.safe_load(GOOD), ["corpus.paths=a.jsonl"])


def test_off_is_a_value_though_yaml_takes_it_for_false():
    assert load_spec(yaml.safe_load(GOOD), ["source_models.0.probe=off"]).source_models[0].probe == "off"


def test_a_section_is_frozen():
    spec = load_spec(yaml.safe_load(GOOD))
    with pytest.raises(ValueError, match="frozen"):
        spec.fusion.top_k = 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("fusion.top_k", "write section.field=value"),
        ("fusion.top_k.deep=1", "fusion.top_k.deep"),
        ("source_models.7.name=x", "'7' is no position of a list of 2, which count from 0"),
        ("source_models.-1.name=x", "'-1' is no position of a list of 2"),
        ("source_models.a.name=x", "'a' is no position of a list of 2"),
        ("source_models.01.name=x", "'01' is no position of a list of 2"),
        ("source_models..name=x", "'' is no position of a list of 2"),
        ("fusion.rule=[", "not YAML"),
    ],
)
def test_an_override_that_fits_nowhere_is_named(override, words):
    with pytest.raises(SpecError) as caught:
        load_spec(yaml.safe_load(GOOD) | {"fusion": {"top_k": 3}}, [override])
    assert words in str(caught.value)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "torn.yaml").write_text("run: {name: [")
    (tmp_path / "latin.yaml").write_bytes("run: {name: é}".encode("latin1"))
    with open(tmp_path / "model.yaml", "wb") as file:
        file.truncate(2**40)  # a hole, which takes no room
    sentences = {
        "none": "cannot be read",
        "list": "mapping",
        "torn": "line 1",
        "latin": "UTF-8",
        "model": "longer than",
    }
    for name, words in sentences.items():
        with pytest.raises(SpecError) as caught:
            load_spec(tmp_path / f"{name}.yaml")
        assert f"{name}.yaml" in str(caught.value)
        assert words in str(caught.value)


def test_local_paths_become_absolute_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    spec = as_located_spec(load_spec(yaml.safe_load(GOOD), ["corpus.paths=[x/*.jsonl, 's3://bucket/y.parquet']"]))
    assert spec.corpus.paths == (str(tmp_path / "x/*.jsonl"), "s3://bucket/y.parquet")
    mixture = load_spec(yaml.safe_load(GOOD), ["corpus={domains: {b: {paths: [y]}, a: {paths: ['s3://x/z', x]}}}"])
    assert as_located_spec(mixture).corpus.all_paths == ("s3://x/z", str(tmp_path / "x"), str(tmp_path / "y"))
    assert spec.run.output_dir == str(tmp_path / "out")
    assert [source.checkpoint for source in spec.source_models] == [str(tmp_path / "a"), "b"]


@pytest.mark.parametrize("tokens", ["bytes", "byte_offset", "min_edit", "exact", "suffix"])
def test_pieces_are_multiplied_only_where_rows_know_the_bytes_behind_them(tokens):
    """The paper's dynamic programming pairs rows of different bytes."""
    assert AlignmentSpec(tokens=tokens).multiplies_pieces == (tokens in ("bytes", "byte_offset"))
    assert not AlignmentSpec(tokens=tokens, split_tokens="first_piece").multiplies_pieces
