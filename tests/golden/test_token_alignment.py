"""Seventeen worked cases: what the authors' dynamic programming finds, what they accept, and what is right."""

import numpy as np
import pytest

from engine.method.alignment import NEXT_TOKEN, NO_ROW, TokenRun, match_by_edits, match_end_bytes
from engine.method.edit_distance import align_by_edits

N = NEXT_TOKEN

#: Target tokens | source tokens | cost | source tokens on the path for each target token | accepted as the same string
#: (``N``: not, the next token is taught) | the source token that ends at the same byte (``None``: there is none).
#: ``▁`` and ``Ġ`` are spaces; the target's first space is a dummy prefix and not in the text.
CASES = {
    "O1": ("▁The ▁cat ▁sat .", "The Ġcat Ġsat .", 0, [[0], [1], [2], [3]], [0, 1, 2, 3], [0, 1, 2, 3]),
    "O2": ("▁get ▁the ▁tokenizer", "get Ġthe Ġtoken izer", 8, [[0], [1, 2], [3]], [0, N, N], [0, 1, 3]),
    "O3": ("▁get ▁the ▁token izer", "get Ġthe Ġtokenizer", 8, [[0], [1], [1], [2]], [0, 1, N, N], [0, 1, None, 2]),
    "O4": ("▁in ▁ 2 0 2 4 .", "in Ġ2024 .", 8, [[0], [0], [1], [2], [2], [2], [2]],
           [0, N, N, N, N, N, 2], [0, None, None, None, None, 1, 2]),
    "O5": ("▁a <0x0A> b", "a Ċ b", 6, [[0], [1], [2]], [0, N, 2], [0, 1, 2]),
    "O6": ("▁c af é ▁x", "c af Ã© Ġx", 2, [[0], [1], [2], [3]], [0, 1, N, 3], [0, 1, 2, 3]),
    "O7": ("▁ <0xF0> <0x9F> <0x98> <0x80> ▁done", "ðŁ ĺ Ģ Ġdone", 26, [[0], [0], [0], [1], [2], [3]],
           [N, N, N, N, N, 3], [None, None, 0, 1, 2, 3]),
    "O8": ("▁end </s>", "end <|endoftext|>", 11, [[0], [1]], [0, N], [0, 1]),
    "O9": ("▁a ▁▁ ▁x", "a Ġ Ġ Ġx", 0, [[0], [1, 2], [3]], [0, N, 3], [0, 2, 3]),
    "O10": ("▁can ' t ▁go", "can 't Ġgo", 2, [[0], [1], [1], [2]], [0, N, N, 2], [0, None, 1, 2]),
    "O11": ("▁ab cd ef", "abc de f", 4, [[0], [1], [2]], [N, N, N], [None, None, 2]),
    "O12": ("▁un believ ably ▁good", "unbelievably Ġgood", 20, [[0], [0], [1], [1]],
            [N, N, N, 1], [None, None, 0, 1]),
    "O13": ("▁tokenization ▁matters", "token ization Ġmatters", 12, [[0, 1], [2]], [N, 2], [1, 2]),
    "O14": ("▁New ▁York ▁City", "New ĠYork ĠCity", 0, [[0], [1], [2]], [0, 1, 2], [0, 1, 2]),
    "O15": ("▁the ▁the ▁cat", "the Ġcat", 0, [[0], [0], [1]], [0, N, 1], None),  # two texts: nothing is right
    "O16": ("▁a ▁b ▁c ▁d ▁e", "a Ġb", 3, [[0], [1], [1], [1], [1]], [0, 1, N, N, N], [0, 1, None, None, None]),
    "O17": ("a", "", 0, [[]], [N], [None]),
}  # fmt: skip

#: What stands for other bytes than its own characters.
BYTES = {
    "Ċ": b"\n",
    "Ã©": b"\xc3\xa9",
    "ðŁ": b"\xf0\x9f",
    "ĺ": b"\x98",
    "Ģ": b"\x80",
    "</s>": b"",
    "<|endoftext|>": b"",
}


@pytest.mark.parametrize("name", CASES)
def test_the_authors_path_and_cost(name):
    targets, sources, cost, ranges, *_ = CASES[name]
    unmarked = [[token.strip("▁Ġ") for token in side.split()] for side in (targets, sources)]
    found, first, last = align_by_edits(*unmarked)
    assert found == cost
    expected = [(path[0], path[-1]) if path else (-1, -1) for path in ranges]
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == expected


@pytest.mark.parametrize("name", CASES)
def test_what_the_authors_accept_as_an_exact_match(name):
    targets, sources, _, _, accepted, _ = CASES[name]
    target, source = run(targets), run(sources)
    same = [target.pieces.index(piece) if piece in target.pieces else -1 for piece in source.pieces]
    numbers = [target.pieces.index(piece) for piece in target.pieces]  # a token that stands twice is one token
    target = TokenRun(np.array(numbers, np.int32), target.pieces, target.decoded)
    assert match_by_edits(target, source, "mapped", np.array([*same, -1], np.int32)).tolist() == accepted


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][5] is not None])
def test_what_is_right(name):
    targets, sources, *_, right = CASES[name]
    target_ends, source_ends = ends_of(targets), ends_of(sources)
    labelled = np.array([*target_ends, target_ends[-1]], np.int32)  # one more row, so that the last one has a label
    if "</s>" in targets:  # EOS covers no byte: the row before it and the source's row before EOS are the ones to match
        assert match(np.array(target_ends, np.int32), source_ends[:-1]) == [0, NO_ROW]
        return
    expected = [NO_ROW if row is None else row for row in right]
    assert match(labelled, source_ends) == [*expected, NO_ROW]


def test_min_edit_accepts_what_the_vocabulary_mapping_confirms():
    target, source = run("▁c af é ▁x"), run("c af Ã© Ġx")
    assert match_by_edits(target, source, "mapped", np.array([0, 1, 2, 3], np.int32)).tolist() == [0, 1, 2, 3]
    assert match_by_edits(target, source, "mapped", np.array([0, 1, 3, 3], np.int32)).tolist() == [0, 1, N, 3]


@pytest.mark.parametrize(
    ("targets", "sources", "expected"),
    [
        (["un", "believ", "ably"], ["un", "believably"], [0, N, 1]),  # "ably" ends "believably", "believ" does not
        (["the", "cat"], [" the", " cat"], [0, 1]),  # SentencePiece's decoding strips a space
        (["tokenizer"], ["token", "izer"], [1]),  # of several the first that ends it
        (["abcd"], ["ab", "cx"], [N]),
        (["", "x"], ["y", "x"], [0, 1]),  # an empty string ends every other, as the authors have it
    ],
)
def test_fusechats_suffix_rule(targets, sources, expected):
    target, source = (TokenRun(np.arange(len(side), dtype=np.int32), side, side) for side in (targets, sources))
    assert match_by_edits(target, source, "suffix", np.empty(0, np.int32)).tolist() == expected


def run(tokens: str) -> TokenRun:
    pieces = [token.replace("Ġ", "▁") for token in tokens.split()]
    return TokenRun(np.arange(len(pieces), dtype=np.int32), pieces, pieces)


def ends_of(tokens: str) -> list[int]:
    consumed = np.cumsum([len(bytes_of(token)) for token in tokens.split()], dtype=np.int32)
    return (consumed - int(tokens.startswith("▁"))).tolist()  # the dummy prefix


def bytes_of(token: str) -> bytes:
    if token in BYTES:
        return BYTES[token]
    if token.startswith("<0x"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").replace("Ġ", " ").encode("utf8")


def match(target_ends: np.ndarray, source_ends: list[int]) -> list[int]:
    offsets = [np.array([0, len(ends)]) for ends in (target_ends, source_ends)]
    return match_end_bytes(
        target_ends, offsets[0], np.array(source_ends, np.int32), offsets[1], np.array([False])
    ).tolist()
