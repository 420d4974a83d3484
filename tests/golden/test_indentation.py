"""Indentation from Gemma to Qwen and back.

Four spaces before a word are one token of Gemma's; Qwen writes three of them and a word that begins with the fourth.
Once Gemma's token stood for four times U+2581, and a target learned a junk byte at every indentation.
"""

from dataclasses import replace

import numpy as np
import pytest

from engine.method.alignment import ByteMatcher
from engine.method.fusion import fuse
from engine.method.rows import SourceRows, TargetRows
from engine.method.vocabulary import build_mapping
from engine.spec import FusionRuleSpec
from engine.text.tokenization import PassageTokenizer
from tests.support import real_tokenizers

pytestmark = pytest.mark.timeout(240)

TEXT = "def f(x):\n    return x"
NEWLINE_END = len("def f(x):\n")

#: How each writes the text.
PIECES = {
    "Gemma": [b"def", b" f", b"(", b"x", b"):", b"\n", b"    ", b"return", b" x"],
    "Qwen": [b"def", b" f", b"(x", b"):\n", b"   ", b" return", b" x"],
}

#: The three top tokens of the source's row after the line break, with their probabilities; all else is rest mass.
SAYS = {
    "Gemma": {b"    ": 0.75, b"        ": 0.125, b"  ": 0.0625},
    "Qwen": {b"   ": 0.75, b"       ": 0.125, b"\t": 0.0625},
}


def rows_of(name: str) -> tuple[PassageTokenizer, np.ndarray, np.ndarray]:
    tokenizer = real_tokenizers.load(name)
    return tokenizer, *tokenizer.encode(TEXT)


@pytest.mark.parametrize("mapping", ["prefix", "exact"])
@pytest.mark.parametrize(("source_name", "target_name"), [("Gemma", "Qwen"), ("Qwen", "Gemma")])
def test_the_row_after_a_line_break_names_the_spaces(source_name, target_name, mapping):
    source, source_ids, source_ends = rows_of(source_name)
    target, target_ids, target_ends = rows_of(target_name)
    for tokenizer, ids, name in ((source, source_ids, source_name), (target, target_ids, target_name)):
        assert [tokenizer.token_bytes[token] for token in ids] == PIECES[name]
    rows = TargetRows(
        target_ids,
        target_ends,
        np.array([0, len(target_ids)]),
        num_bytes=np.array([len(TEXT)], np.int32),
        first_bytes=np.zeros(1, np.int32),
        ends_document=np.ones(1, bool),
    )
    says = SAYS[source_name]
    probs = np.tile(np.array(list(says.values())), (len(source_ids), 1))
    tokens = np.tile([source.id_of_bytes[data] for data in says], (len(source_ids), 1)).astype(np.int32)
    none = np.empty(0, np.int64)
    scored = SourceRows(
        offsets=np.array([0, len(source_ids)]),
        token_ids=source_ids,
        end_bytes=source_ends,
        topk_ids=tokens,
        topk_logprobs=np.log(probs).astype(np.float16),
        token_logprobs=np.full(len(source_ids), -0.25, np.float32),
        mapping=build_mapping(source, target, mapping),
        match=none,
    )
    match = ByteMatcher(source, target)([TEXT], rows, scored)
    fused = fuse(rows, [replace(scored, match=match)], FusionRuleSpec(top_k=3), target.vocab_size)
    (after_newline,) = np.flatnonzero(target_ends == NEWLINE_END)
    named = [target.token_bytes[token] for token in fused.ids[after_newline]]
    assert fused.is_fused[after_newline]
    found = dict(zip(named, fused.probs[after_newline].tolist(), strict=True))
    assert found == pytest.approx(dict(zip(says, [0.75, 0.125, 0.0625], strict=True)), rel=2e-3)
