"""Rows conditioned on bytes: against enumeration of all texts of toy models, and against the slow twins."""

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from engine.method import continuations, kernels
from engine.method.alignment import match_bytes
from engine.method.byte_fusion import fuse_byte_rows
from engine.method.canonical import NO_PAIRS, CanonicalPairs
from engine.method.token_trie import NO_NODE, NO_TRIE, trie_of
from engine.method.vocabulary import build_cuts
from engine.spec import FusionRuleSpec
from engine.text.tokenization import PassageTokenizer
from tests import oracles

ALPHABET, LONGEST = "abc", 5
STRINGS = ["".join(letters) for size in range(1, LONGEST + 1) for letters in itertools.product(ALPHABET, repeat=size)]
MODELS = 200


def random_target(random: np.random.Generator) -> PassageTokenizer:
    """A byte-pair tokenizer of up to six merges, all of whose tokens it writes."""
    merges: list[tuple[str, str]] = []
    for _ in range(random.integers(0, 7)):
        pieces = [*ALPHABET, *("".join(merge) for merge in merges)]
        candidate = tuple(random.choice(pieces, 2))
        if "".join(candidate) not in pieces and len("".join(candidate)) <= 4:
            trial = byte_pairs([*merges, candidate])
            texts = [*("".join(merge) for merge in merges), "".join(candidate)]
            if all(len(trial.encode(text).ids) == 1 for text in texts):
                merges.append(candidate)
    tokenizer = byte_pairs(merges)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PassageTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"), "toy"
    )


def byte_pairs(merges: list[tuple[str, str]]) -> Tokenizer:
    pieces = dict.fromkeys([*ALPHABET, *("".join(merge) for merge in merges)])
    return Tokenizer(models.BPE({piece: token for token, piece in enumerate(pieces)}, merges))


class ToySource:
    """A random distribution over all short texts, and a random set of tokens in which it is written.

    Its rows are exact: sums over the texts whose tokens begin in the same way.
    """

    def __init__(self, random: np.random.Generator):
        longer = [text for text in STRINGS if 2 <= len(text) <= 4]
        chosen = random.choice(longer, random.integers(0, 12), replace=False).tolist()
        self.pieces = [*ALPHABET, *chosen, "<s>", "</s>"]
        self.token_bytes = [piece.encode() if piece[0] != "<" else None for piece in self.pieces]
        self.bos, self.eos = len(self.pieces) - 2, len(self.pieces) - 1
        self._greedy = bool(random.random() < 0.5)
        self._priority = random.permutation(len(chosen) + 3)
        self.probability = dict(zip(STRINGS, random.dirichlet(np.full(len(STRINGS), 0.3)), strict=True))
        self.tokens = {text: [*self._tokenize(text), self.eos] for text in STRINGS}
        self._next: dict[tuple, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for text, tokens in self.tokens.items():
            for size, token in enumerate(tokens):
                self._next[tuple(tokens[:size])][token] += self.probability[text]

    def _tokenize(self, text: str) -> list[int]:
        """From left to right, the longest token or the one of the highest priority."""
        fitting = [token for token, piece in enumerate(self.pieces[:-2]) if text and text.startswith(piece)]
        if not fitting:
            return []
        key = (lambda token: len(self.pieces[token])) if self._greedy else self._priority.__getitem__
        token = max(fitting, key=key)
        return [token, *self._tokenize(text[len(self.pieces[token]) :])]

    def row(self, tokens: list[int]) -> np.ndarray:
        masses = np.zeros(len(self.pieces))
        for token, mass in self._next[tuple(tokens)].items():
            masses[token] = mass
        return masses / masses.sum()


class Scene:
    """One text as a toy source and a toy target read it."""

    def __init__(self, random: np.random.Generator, target: PassageTokenizer, source: ToySource):
        self.target, self.source = target, source
        self.text = str(random.choice(STRINGS, p=list(source.probability.values())))
        self.written = [*target.encode(self.text)[0].tolist(), target.eos_id]
        self.said = source.tokens[self.text]
        self.cuts = build_cuts(SimpleNamespace(token_bytes=source.token_bytes), target, "prefix")
        mapping = [self.first_token(data) if data else -1 for data in source.token_bytes]
        mapping[source.eos], mapping[source.bos] = target.eos_id, target.bos_id
        mapping = np.array(mapping, np.int32)
        self.tables = continuations.build_continuations(
            source.token_bytes, mapping, self.cuts, trie_of(target, source.token_bytes)
        )
        self.token_ids = np.array([target.bos_id, *self.written], np.int32)
        self.end_bytes = np.array([0, *target.encode(self.text)[1].tolist(), len(self.text)], np.int32)
        self.source_ids = np.array([source.bos, *self.said[:-1]], np.int32)
        self.source_ends = np.cumsum([0, *(len(source.pieces[token]) for token in self.said[:-1])]).astype(np.int32)
        rows = [source.row(self.said[:size]) for size in range(len(self.said))]
        self.probs = np.array(rows)
        self.logprobs = np.log([row[token] for row, token in zip(rows, self.said, strict=True)])

    def first_token(self, data: bytes) -> int:
        return self.target.tokens_within(data)[0]

    def fused(self, pairs, kept: np.ndarray, product: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The kernel's rows, dense [T, V]; ``kept``: int32 [S, K], the entries that the source keeps."""
        offsets, source_offsets = np.array([0, len(self.token_ids)]), np.array([0, len(self.source_ids)])
        target_rows = SimpleNamespace(end_bytes=self.end_bytes, offsets=offsets)
        source_rows = SimpleNamespace(token_ids=self.source_ids, end_bytes=self.source_ends, offsets=source_offsets)
        match, cut = match_bytes([self.text], target_rows, source_rows, np.array([True]), self.tables)
        # Probabilities are exact here: each has an index of its own in the table of exponentials.
        exponentials = np.take_along_axis(self.probs, kept, axis=1)
        bits = np.arange(exponentials.size, dtype=np.uint16).reshape(exponentials.shape)
        size, vocabulary = len(self.token_ids), self.target.vocab_size
        top_k = max(vocabulary, kept.shape[1])
        fused = kernels.Fused(
            np.full((size, top_k), -1, np.int32), np.zeros((size, top_k), np.float32), np.zeros(size, bool)
        )
        sources = kernels.Sources(
            (match,), (source_offsets,), (self.source_ends,), (self.source_ids,), (self.logprobs,),
            (kept,), (bits,), (self.tables.rank,),
        )  # fmt: skip
        labels = kernels.Labels(offsets, self.end_bytes, np.append(self.token_ids[1:], np.int32(-1)))
        fuse_byte_rows(
            np.ones((size, 1)), labels, self.token_ids, sources, (cut,),
            continuations.Continuations(*((table,) for table in self.tables)), pairs,
            kernels.Method(vocabulary, product, False), exponentials.ravel(), fused,
        )  # fmt: skip
        dense = np.zeros((size, vocabulary))
        for row, (ids, probs) in enumerate(zip(fused.ids, fused.probs, strict=True)):
            dense[row, ids[ids >= 0]] = probs[ids >= 0]
        return dense, match, cut

    def plain(self, kept: np.ndarray) -> dict:
        """The source's rows as ``oracles.continued_row`` takes them."""
        with np.errstate(divide="ignore"):
            logprobs = np.log(np.take_along_axis(self.probs, kept, axis=1))
        starts, tokens = self.tables.cut_starts, self.tables.cut_tokens
        return {
            "token_ids": self.source_ids.tolist(),
            "end_bytes": self.source_ends.tolist(),
            "token_bytes": self.source.token_bytes,
            "topk_ids": kept.tolist(),
            "topk_logprobs": logprobs.tolist(),
            "token_logprobs": self.logprobs.tolist(),
            "cuts": lambda token, cut: int(tokens[starts[token] + cut]),
            "longest": oracles.longest_token(self.target, self.source.token_bytes),
        }

    def through_kept(self, kept: np.ndarray, match: int, cut: int) -> np.ndarray:
        """What the covers say through the kept entries and the text's own token, of all that they say; dense [V]."""
        masses, total = np.zeros(self.target.vocab_size), 0.0
        for at in (match, match - 1) if match else (match,):
            residual = self.text[self.source_ends[at] : self.source_ends[match] + cut]
            weight = 1.0 if at < match or not match else math.exp(self.logprobs[match - 1])
            for token, prob in enumerate(self.probs[at]):
                piece = self.source.pieces[token] if token != self.source.eos else ""
                if residual and not (piece.startswith(residual) and len(piece) > len(residual)):
                    continue
                total += weight * prob
                is_own = bool(cut) and at == match and token == self.said[match]
                if token in kept[at] or is_own:
                    target = self.tables.cut_tokens[self.tables.cut_starts[token] + len(residual)]
                    masses[target] += weight * prob
        return masses / total

    def enumerated(self, row: int, match: int, cut: int, product: bool) -> tuple[np.ndarray, np.ndarray, float]:
        """Over all texts that begin like this one up to a target row: what follows, and what the covers say follows.

        Returns:
            The masses of the target's next tokens over the texts whose tokens begin as this text's do up to the row;
            the masses of the tokens that the covers name and that may stand here; the mass of texts on which the two
            disagree.
        """
        end, before = int(self.end_bytes[row]), int(self.token_ids[row])
        truth, covered = np.zeros(self.target.vocab_size), np.zeros(self.target.vocab_size)
        apart = 0.0
        for text, mass in self.source.probability.items():
            if text.startswith(self.text[:end]) and len(text) >= end:
                right, named = self._following(text, row), self._named(text, row, match, cut, product)
                named = named if named is None or self.may_follow(before, named) else None
                if right is not None:
                    truth[right] += mass
                if named is not None:
                    covered[named] += mass
                apart += mass * (right != named)
        return truth, covered, apart

    def _following(self, text: str, row: int) -> int | None:
        tokens = [self.target.bos_id, *self.target.encode(text)[0].tolist(), self.target.eos_id]
        return tokens[row + 1] if tokens[: row + 1] == self.token_ids[: row + 1].tolist() else None

    def _named(self, text: str, row: int, match: int, cut: int, product: bool) -> int | None:
        tokens = self.source.tokens[text]
        for at in (match, match - 1):
            if at < 0 or tokens[:at] != self.said[:at]:
                continue
            residual = int(self.end_bytes_of(match)) - int(self.end_bytes_of(at)) + cut
            if residual == 0:
                if tokens[at] == self.source.eos:
                    return self.target.eos_id
            elif tokens[at] == self.source.eos or len(self.source.pieces[tokens[at]]) <= residual:
                continue
            data = self.source.token_bytes[tokens[at]][residual:]
            if product and at == match and tokens[at] == self.said[at]:
                return self._named_by_two(tokens, row, at, data)
            return self.first_token(data)
        return None

    def _named_by_two(self, tokens: list[int], row: int, at: int, data: bytes) -> int:
        """The target token for a text that goes on with this text's own next source token, of which ``data`` is left.

        The label if the source goes on as here until the label ends, or with the same two tokens, within which it ends.
        """
        begin, stop = self.end_bytes[row], self.end_bytes[row + 1]
        last = int(np.searchsorted(self.source_ends, stop))
        is_split = last > at + 1 and last < len(self.source_ends) and self.source_ends[last] == stop
        is_within = at + 2 < len(self.source_ends) and self.source_ends[at + 2] >= stop
        if stop > begin and (
            (is_split and tokens[:last] == self.said[:last]) or (is_within and tokens[: at + 2] == self.said[: at + 2])
        ):
            return int(self.token_ids[row + 1])
        more = self.source.token_bytes[tokens[at + 1]] if tokens[at] != self.source.eos else None
        longest = oracles.longest_token(self.target, self.source.token_bytes)
        longer = longest(data, more, len(self.source.pieces[tokens[at]]) - len(data)) if more else -1
        return longer if longer >= 0 else self.first_token(data)

    def end_bytes_of(self, row: int) -> int:
        return int(self.source_ends[row])

    def may_follow(self, before: int, token: int) -> bool:
        data = [self.target.token_bytes[one] for one in (before, token)]
        return None in data or self.target.tokens_within(b"".join(data)) == [before, token]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("product", "farthest"), [(False, 0.15), (True, 0.12)])
def test_every_row_is_what_enumeration_of_all_texts_says(product, farthest):
    """Whatever the covers reach is exact; where they and the prefix rule reach all, the row is the true one."""
    random = np.random.default_rng(0)
    rows = exact = distances = 0
    for _ in range(MODELS):
        target = random_target(random)
        canonical = CanonicalPairs(target)
        scene = Scene(random, target, ToySource(random))
        everything = np.tile(np.arange(len(scene.source.pieces), dtype=np.int32), (len(scene.probs), 1))
        dense, match, cut = scene.fused(canonical.pairs, everything, product)
        assert not canonical.answer(), "without a pre-tokenizer there is nothing to ask"
        for row in range(len(match) - 1):
            assert match[row] >= 0, "every row but the last has a source row"
            truth, covered, apart = scene.enumerated(row, match[row], cut[row], product)
            if not covered.any():
                assert not dense[row].any(), "a row of which nothing is left is not taught"
                continue
            np.testing.assert_allclose(dense[row], covered / covered.sum(), atol=1e-6)
            distance = np.abs(dense[row] - truth / truth.sum()).sum() / 2
            assert distance <= apart / max(truth.sum(), covered.sum()) + 1e-6
            rows, exact, distances = rows + 1, exact + (apart == 0), distances + distance
    assert exact > rows / 3, f"{exact} of {rows} rows are exactly the true ones"
    assert distances < rows * farthest, "by two tokens rows are nearer to the truth"


@pytest.mark.timeout(300)
def test_mass_beyond_the_kept_entries_moves_a_row_no_further_than_the_bound():
    """The kept entries of a row are wrong by at most the share that the mass beyond them could have."""
    random = np.random.default_rng(1)
    rows = unsure = 0
    for _ in range(MODELS):
        scene = Scene(random, random_target(random), ToySource(random))
        kept = np.argsort(-scene.probs, axis=1)[:, : random.integers(1, 5)].astype(np.int32)
        dense, match, cut = scene.fused(NO_PAIRS, kept)
        for row in np.flatnonzero(match >= 0):
            _, share = oracles.continued_row(scene.plain(kept), match[row], cut[row])
            exact = scene.through_kept(kept, match[row], cut[row])
            assert np.abs(dense[row] - exact).sum() <= 1 - share + 1e-6
            rows, unsure = rows + 1, unsure + (share < 1)
    assert unsure > rows / 3


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_kernel_equals_its_twin(seed, product):
    random = np.random.default_rng(seed)
    target = random_target(random)
    scene, canonical = Scene(random, target, ToySource(random)), CanonicalPairs(target)
    kept = np.argsort(-scene.probs, axis=1)[:, : random.integers(1, 5)].astype(np.int32)
    dense, match, cut = scene.fused(canonical.pairs, kept, product)
    pairs = oracles.match_bytes(
        scene.end_bytes.tolist(), scene.source_ends.tolist(), scene.source_ids.tolist(), scene.source.token_bytes, True,
        scene.text.encode(),
    )  # fmt: skip
    assert list(zip(match.tolist(), cut.tolist(), strict=True)) == pairs
    rows, _ = oracles.fused_rows(
        scene.token_ids.tolist(),
        scene.end_bytes.tolist(),
        len(scene.text),
        [scene.plain(kept)],
        [match.tolist()],
        FusionRuleSpec(rule="uniform", top_k=64),
        product=product,
        cuts=[cut.tolist()],
        may_follow=scene.may_follow,
    )
    for row, entries in enumerate(rows):
        expected = np.zeros(target.vocab_size)
        for token, prob in entries:
            expected[token] += prob
        np.testing.assert_allclose(dense[row], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "source", "target_end", "expected"),
    [
        ("abcd", [("ab", 2), ("cd", 4)], 3, (1, 1)),
        ("dog THE", [("dog", 3), (" the", 7)], 6, (-1, 0)),  # in lower case: other bytes, as many
        ("a…b", [("a", 1), ("...", 4), ("b", 5)], 3, (-1, 0)),
        ("dog", [(" dog", 3)], 1, (0, 2)),  # a dummy prefix
        ("a dog", [("a", 1), ("  dog", 5)], 3, (1, 3)),  # a space that the text does not have
        ("a dog", [("a", 1), ("x dog", 5)], 3, (-1, 0)),
        ("a }", [("a", 1), (" }\n", 3)], 2, (1, 1)),  # a template's line break after an answer
        ("a }b", [("a", 1), (" }\n", 3), ("b", 4)], 2, (-1, 0)),
        ("Dog", [("dog", 3)], 1, (-1, 0)),
    ],
)
def test_a_row_inside_a_source_token_has_its_row_only_if_the_token_has_the_texts_bytes(
    text, source, target_end, expected
):
    pieces = [piece.encode() for piece, _ in source]
    ends = [0, *(end for _, end in source)]
    target_ends = [0, target_end, len(text.encode()), len(text.encode())]
    plain = oracles.match_bytes(target_ends, ends, [0, *range(len(pieces))], pieces, True, text.encode())
    data, starts, *_ = continuations.token_order(pieces)
    rows, others = (
        SimpleNamespace(end_bytes=np.array(found, np.int32), offsets=np.array([0, len(found)]))
        for found in (target_ends, ends)
    )
    others.token_ids = np.array([0, *range(len(pieces))], np.int32)
    tables = SimpleNamespace(data=data, starts=starts)
    match, cut = match_bytes([text], rows, others, np.array([True]), tables)
    assert plain[1] == (match[1], cut[1]) == expected


def test_a_source_says_nothing_by_two_tokens_about_a_token_that_it_has_itself():
    target = random_target(np.random.default_rng(0))
    none = np.full(sum(max(len(data or b""), 1) for data in target.token_bytes), -1, np.int32)
    longer = [data for data in target.token_bytes if data and len(data) > 1]
    assert longer
    for lacking in (b"", longer[-1]):
        token_bytes = [None if data == lacking else data for data in target.token_bytes]
        trie = trie_of(target, token_bytes)
        tables = continuations.build_continuations(token_bytes, np.zeros(len(token_bytes), np.int32), none, trie)
        begins = [lacking.startswith(data) and data != lacking for data in token_bytes if data]
        wholes = tables.nodes[tables.cut_starts[:-1]]
        assert (wholes != NO_NODE).any() == any(begins)


@pytest.mark.parametrize("logprob", [-1.0, -104.5, -800.0, -np.inf])
def test_what_follows_an_unlikely_token_is_taught(logprob):
    random = np.random.default_rng(0)
    scene = Scene(random, random_target(random), ToySource(random))
    kept = np.argsort(-scene.probs, axis=1)[:, :4].astype(np.int32)
    likely, match, _ = scene.fused(NO_PAIRS, kept)
    scene.logprobs = np.full(len(scene.logprobs), logprob, np.float32)
    found, _, _ = scene.fused(NO_PAIRS, kept)
    taught = match >= 0
    assert taught.any()
    np.testing.assert_array_equal(found.sum(axis=1)[taught] > 0, likely.sum(axis=1)[taught] > 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=5), min_size=1, max_size=30))
def test_ranges_hold_the_tokens_that_begin_alike_and_go_on(pieces):
    """Some tokens have no bytes, and several may have the same."""
    token_bytes = [piece.encode() or None for piece in pieces]
    none = np.zeros(sum(max(len(piece), 1) for piece in pieces), np.int32)
    tables = continuations.build_continuations(token_bytes, np.zeros(len(pieces), np.int32), none, NO_TRIE)
    for token, data in enumerate(token_bytes):
        for size in range(1, len(data or b"") + 1):
            low, high = tables.longer[token] if size == len(data) else tables.begun[tables.cut_starts[token] + size]
            goes_on = {
                other
                for other, known in enumerate(token_bytes)
                if known and len(known) > size and known.startswith(data[:size])
            }
            assert set(tables.order[low:high].tolist()) == goes_on
