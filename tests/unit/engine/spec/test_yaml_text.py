"""A YAML text is read as it is written, or refused with a sentence: no key vanishes."""

import time

import pytest
import yaml

from engine.errors import SpecError
from engine.spec.loading import load_spec
from engine.spec.yaml_text import read_yaml

TWICE = """
run: {name: x, output_dir: out}
corpus: {paths: [corpus.jsonl]}
target_model: {checkpoint: model}
objective: {lm_loss_weight: 1.0}
training:
  block_length: 128
  optimizer: {learning_rate: 1.0e-3}
  block_length: 512
training:
  max_steps: 5
"""


def test_every_key_that_is_given_twice_is_named_with_its_path_and_lines(tmp_path):
    (tmp_path / "spec.yaml").write_text(TWICE)
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "spec.yaml")
    assert [str(fault) for fault in caught.value.faults] == [
        "training.block_length: is given twice, in lines 7 and 9; keep one of them",
        "training: is given twice, in lines 6 and 10; keep one of them",
    ]


def test_an_override_with_a_key_twice_is_refused():
    with pytest.raises(SpecError, match="rule: is given twice, in line 1"):
        load_spec(yaml.safe_load(TWICE.replace("  block_length: 512\ntraining:\n", "")), ["fusion={rule: a, rule: b}"])


def test_aliases_and_merged_keys_are_read():
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\nagain: *base"
    assert read_yaml(text, "x") == yaml.safe_load(text)


@pytest.mark.parametrize(("number", "read"), [("010", 8), ("-0_17", -15), ("1:30", 90), ("1:30.5", 90.5)])
def test_a_number_that_yaml_reads_by_another_base_is_refused(number, read):
    for text, place in ((f"a: {{b: [1, {number}]}}", "a.b.1"), (number, "x")):
        with pytest.raises(SpecError, match=f"{place}: is {number}, which YAML reads as {read}; write the number"):
            read_yaml(text, "x")
    text = f"a: '{number}'\n{number}: [0, 0.5, 10, 1_000, 0x1F, 1.0e-3]"
    assert read_yaml(text, "x") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("a:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 2000)), "nested too deep"),
        ("a: " + "9" * 5000, "value has 5000 digits"),
        ("a: 2025-99-99", "month must be in 1..12"),
        ("{a: b}: 5", "unhashable key"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_a_value_that_python_cannot_read_is_a_sentence(text, words):
    started = time.monotonic()
    with pytest.raises(SpecError, match=words):
        read_yaml(text, "spec.yaml")
    assert time.monotonic() - started < 20


def test_a_fault_shows_the_beginning_of_a_value_that_aliases_make_endless():
    lists = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    document = yaml.safe_load(f"a0: &a0 [x]\n{lists}")
    started = time.monotonic()
    with pytest.raises(SpecError, match=r"run: \[\[\[\["):
        load_spec({"run": document["a11"]})
    assert time.monotonic() - started < 20
