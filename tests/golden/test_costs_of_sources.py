"""What a text costs a source, by worked figures: four tokens of one emoji, a beginning without BOS, an EOS too many."""

import numpy as np
import pytest

from engine.method.fusion import cross_entropies, fuse, label_nats, own_token_cross_entropies
from engine.method.rows import FusedRows, SourceRows, TargetRows
from engine.spec import FusionRuleSpec


def source(ends: list[int], nats: list[float], match: list[int], says: int = 0) -> SourceRows:
    """A source whose every row gives all mass to one target token."""
    rows = len(ends)
    return SourceRows(
        offsets=np.array([0, rows]),
        token_ids=np.zeros(rows, np.int32),
        end_bytes=np.array(ends, np.int32),
        topk_ids=np.full((rows, 1), says, np.int32),
        topk_logprobs=np.zeros((rows, 1), np.float16),
        token_logprobs=-np.array(nats, np.float32),
        mapping=np.arange(4, dtype=np.int32),
        match=np.array(match, np.int32),
    )


def target(ends: list[int], ends_document: bool = True) -> TargetRows:
    return TargetRows(
        token_ids=np.arange(len(ends), dtype=np.int32),
        end_bytes=np.array(ends, np.int32),
        offsets=np.array([0, len(ends)]),
        num_bytes=np.array([ends[-1]], np.int32),
        first_bytes=np.zeros(1, np.int32),
        ends_document=np.array([ends_document]),
    )


def test_the_four_tokens_of_an_emoji_cost_what_they_cost():
    """BOS, four tokens of one emoji that end at its last byte, then one letter and EOS."""
    emoji = source([0, 0, 0, 0, 4, 5], [3.0, 2.0, 1.5, 0.5, 0.25, 9.0], [-1, -1, -1, -1])
    whole, letter, eos, _ = label_nats(target([0, 4, 5, 5]), emoji)
    assert whole == 3.0 + 2.0 + 1.5 + 0.5
    assert letter == 0.25
    assert np.isnan(eos)
    halves = label_nats(target([0, 2, 5, 5]), emoji)
    assert halves[:2].tolist() == [3.5, 3.5 + 0.25], "a label gets its share of the emoji's bytes"
    assert cross_entropies(target([0, 5, 5]), [emoji]).tolist() == [[7.25 / 5]]


#: "Hi, there": the first source has no BOS and reads "Hi" "," " there"; the second has BOS and reads "Hi," " there".
WITHOUT_BOS = source([2, 3, 9], [1.0, 5.0, 0.1], [-1, 1, -1, -1], says=1)
WITH_BOS = source([0, 3, 9], [30.0, 4.4, 0.1], [0, 1, -1, -1], says=2)


def fused(granularity: str = "passage") -> FusedRows:
    fusion = FusionRuleSpec(rule="min_ce", top_k=1, granularity=granularity)
    return fuse(target([0, 3, 9, 9]), [WITHOUT_BOS, WITH_BOS], fusion, vocabulary=4)


def test_min_ce_compares_a_source_without_bos_over_the_same_bytes():
    """Both are charged for "," and " there", seven bytes.

    The source with BOS reads the comma as a third of a token of 30 nats, so it has spent 14.4 nats there, and the other
    one 6. Each counted from its own first row at or after byte 2, they would be 6 nats over seven bytes and 4.4 nats
    over six: 0.857 and 0.733, and the wrong one would win.
    """
    found = fused()
    assert found.cross_entropy[0].tolist() == pytest.approx([6.0 / 7, (30.0 / 3 + 4.4) / 7])
    assert found.win_share.tolist() == [[0.5, 0.5]], "at byte 0 only the source with BOS has a row"
    assert found.ids[1].tolist() == [1]


@pytest.mark.parametrize(("ends_document", "expected"), [(True, [2.0, 3.0]), (False, [2.5, 2.0])])
def test_the_authors_mean_counts_eos_only_where_the_document_ends(ends_document, expected):
    """Three and two tokens, the last one EOS, which every source scores and which does not follow inside a document."""
    fine = source([0, 1, 3], [2.0, 3.0, 1.0], [-1, -1, -1])
    coarse = source([0, 3], [2.0, 4.0], [-1, -1, -1])
    rows = target([0, 3, 3] if ends_document else [0, 3], ends_document)
    assert own_token_cross_entropies(rows, [fine, coarse]).tolist() == [expected]
    authors = FusionRuleSpec(rule="min_ce", top_k=1, arithmetic="fusellm")
    assert fuse(rows, [fine, coarse], authors, vocabulary=4).win_share[0].argmax() == np.argmin(expected)
