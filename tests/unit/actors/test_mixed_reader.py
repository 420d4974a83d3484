"""Readers of a mixture that are interrupted: shares are kept, and every passage is learned at most once."""

import json
import random
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.mixed_reader import MixedPassageReader
from actors.monitor import NoMeter
from engine.blocks import arrangement
from engine.blocks.arrangement import Arrangement
from engine.corpus import shards
from engine.corpus.cutting import Cutter
from engine.corpus.domains import DOMAIN_RANGE, Domain, domains_of
from engine.corpus.files import units_of
from engine.corpus.shards import shards_of
from engine.errors import RecordError
from engine.history.ledger import Ledger
from engine.model_files.checkpoint import Checkpoint
from engine.records.batches import of_row
from engine.spec import CorpusSpec
from pipelines.stream.fused_blocks import reading_lanes
from tests.support.tiny_tokenizers import tokenizer_folders

pytestmark = pytest.mark.timeout(120)

PASSES, BLOCK_BYTES = 2, 300
#: Name to weight and documents: b has fewer than its share.
MIXTURE = {"a": (3.0, 15), "b": (1.0, 3)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tokenizer, and two domains of several shards."""
    folder = tmp_path_factory.mktemp("corpus")
    checkpoint = Checkpoint(str(tokenizer_folders(folder)[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SMALLEST_SHARD", 200)
        patch.setattr(arrangement, "PACKED_BLOCKS", 4)
        found = []
        for name, (weight, documents) in MIXTURE.items():
            rows = [f'{{"text": "{name} {row} {"word é " * [40, 1, 3][row % 3]}"}}\n' for row in range(documents)]
            (folder / f"{name}.jsonl").write_text("".join(rows))
            found.append(Domain(name, weight, shards_of(units_of(str(folder / f"{name}.jsonl")))))
        assert all(len(domain.shards) > 1 for domain in found)
        yield checkpoint, tuple(found)


def spec_of(exhausted: str) -> CorpusSpec:
    domains = {name: {"paths": [f"{name}.jsonl"], "weight": weight} for name, (weight, _) in MIXTURE.items()}
    return CorpusSpec(domains=domains, exhausted=exhausted, passes=PASSES, on_error="skip")


class Learner:
    """Learns what readers yield, with a ledger and the bytes of each domain, as training does."""

    def __init__(self, corpus, exhausted: str):
        self._checkpoint, self._domains = corpus
        self._corpus = spec_of(exhausted)
        self.ledger = Ledger()
        self.learned: Counter[str] = Counter()
        self.num_bytes = [0] * len(self._domains)

    def streams(self, readers: int, batch_blocks: int) -> list:
        """What each reader yields: passages and blocks."""
        lanes = reading_lanes(self._corpus, self._domains, self.ledger, readers)
        tasks = [pa.Table.from_pylist([{"lane": lane, "lanes": lanes}]) for lane in range(lanes)]
        return [(of_row(row) for row in self._reader(batch_blocks)(task)) for task in tasks]

    def learn(self, passages: pa.Table, blocks, numbers) -> None:
        """Learn the blocks of a batch with these numbers."""
        self.ledger.learn(blocks.entries[numbers])
        domains = domains_of(blocks.entries[:, 0])
        for passage, number in zip(passages.to_pylist(), blocks.of_passages, strict=True):
            if number in numbers:
                self.learned[passage["passage_id"]] += 1
                self.num_bytes[domains[number]] += passage["num_bytes"] - passage["context_bytes"]

    def _reader(self, batch_blocks: int) -> MixedPassageReader:
        return MixedPassageReader(
            corpus=self._corpus,
            domains=self._domains,
            learned_bytes=tuple(self.num_bytes),
            target_checkpoint=self._checkpoint,
            cut=Cutter([self._checkpoint], [24], overlap_bytes=8),
            arrange=Arrangement(9, 0, 32, batch_blocks),
            learned=Ledger.of(self.ledger.state()),
            meter=NoMeter(),
        )

    def of_domain(self, name: str, passes: range) -> set[str]:
        """What was learned of a domain in some passes."""
        return {each for each in self.learned if int(each.split("/")[0]) in passes and f"/{name}.jsonl:" in each}


@pytest.fixture(scope="module")
def everything(corpus):
    """All passages of each domain in the passes that the spec asks for."""
    learner = Learner(corpus, "repeat")
    for passages, blocks in learner.streams(1, 1)[0]:
        learner.learn(passages, blocks, range(len(blocks.entries)))
    return {name: learner.of_domain(name, range(PASSES)) for name in MIXTURE}


@settings(deadline=None, max_examples=4)
@given(st.integers(0, 2**32), st.sampled_from(["stop", "repeat"]))
def test_every_passage_is_learned_once_whatever_was_learned_before_an_interruption(corpus, everything, seed, exhausted):
    draw, learner = random.Random(seed), Learner(corpus, exhausted)
    for _ in range(3):
        waiting = [list(stream) for stream in learner.streams(draw.randint(1, 2), draw.randint(1, 6))]
        for _ in range(draw.randint(0, 8)):
            of_lane = draw.choice(waiting)
            if of_lane:
                passages, blocks = of_lane.pop(draw.randrange(min(2, len(of_lane))))  # batches overtake each other
                numbers = [number for number in range(len(blocks.entries)) if draw.random() < 0.7]
                learner.learn(passages, blocks, numbers)  # the others were on their way at the interruption
    for passages, blocks in learner.streams(1, 3)[0]:
        learner.learn(passages, blocks, list(range(len(blocks.entries))))
    assert set(learner.learned.values()) == {1}
    whole = [learner.of_domain(name, range(PASSES)) == everything[name] for name in MIXTURE]
    assert all(whole) if exhausted == "repeat" else any(whole)
    assert abs(learner.num_bytes[0] - 0.75 * sum(learner.num_bytes)) <= BLOCK_BYTES


@pytest.mark.parametrize("exhausted", ["stop", "repeat"])
def test_one_order_goes_on_wherever_a_checkpoint_cuts_it_between_batches(corpus, exhausted):
    undisturbed = list(Learner(corpus, exhausted).streams(1, 4)[0])
    names = [passages["passage_id"].to_pylist() for passages, _ in undisturbed]
    for cut in range(1, len(names), len(names) // 3):
        learner = Learner(corpus, exhausted)
        for passages, blocks in undisturbed[:cut]:
            learner.learn(passages, blocks, list(range(len(blocks.entries))))
        rest = learner.streams(1, 4)[0]
        assert [passages["passage_id"].to_pylist() for passages, _ in rest] == names[cut:]


def test_blocks_of_all_domains_are_in_a_batch_and_each_block_is_of_one(corpus):
    passages, blocks = next(Learner(corpus, "stop").streams(1, 8)[0])
    assert set(domains_of(blocks.entries[:, 0])) == {0, 1}
    for name, number in zip(passages["passage_id"].to_pylist(), blocks.of_passages, strict=True):
        assert f"/{'ab'[blocks.entries[number, 0] // DOMAIN_RANGE]}.jsonl:" in name


def test_each_reader_keeps_the_shares_and_none_reads_what_another_does(corpus):
    learner = Learner(corpus, "stop")
    streams = learner.streams(2, 1)
    assert len(streams) == 2
    for stream in streams:
        before = list(learner.num_bytes)
        for passages, blocks in stream:
            learner.learn(passages, blocks, list(range(len(blocks.entries))))
        own = [after - earlier for after, earlier in zip(learner.num_bytes, before, strict=True)]
        assert sum(own) > 0
        assert abs(own[0] - 0.75 * sum(own)) <= BLOCK_BYTES
    assert set(learner.learned.values()) == {1}


def test_a_domain_without_a_passage_is_not_read_for_ever(corpus, tmp_path):
    checkpoint, (first, _) = corpus
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n' * 9)
    empty = Domain("b", 1.0, shards_of(units_of(str(tmp_path / "b.jsonl"))))
    learner = Learner((checkpoint, (first, empty)), "repeat")
    with pytest.raises(RecordError, match=r"corpus\.domains\.b gives no passage"):
        list(learner.streams(1, 4)[0])


@pytest.fixture
def half_empty(corpus, tmp_path):
    """The corpus, but one shard of two of its second domain holds no row."""
    checkpoint, (first, _) = corpus
    (tmp_path / "b.jsonl").write_text("\n" * 208 + json.dumps({"text": "word " * 60}) + "\n")
    second = Domain("b", 1.0, shards_of(units_of(str(tmp_path / "b.jsonl"))))
    assert len(second.shards) == 2
    return checkpoint, (first, second)


def test_each_reader_gets_passages_of_a_domain_of_which_a_shard_is_empty(half_empty):
    learner = Learner(half_empty, "repeat")
    for stream in learner.streams(2, 1):
        before = learner.num_bytes[1]
        for passages, blocks in stream:
            learner.learn(passages, blocks, range(len(blocks.entries)))
        assert learner.num_bytes[1] > before
    assert set(learner.learned.values()) == {1}


def test_empty_shards_of_earlier_passes_refuse_no_domain_after_an_interruption(half_empty):
    undisturbed = list(Learner(half_empty, "repeat").streams(1, 1)[0])
    cut = len(undisturbed) * 3 // 4
    learner = Learner(half_empty, "repeat")
    for passages, blocks in undisturbed[:cut]:
        learner.learn(passages, blocks, range(len(blocks.entries)))
    assert any(name.startswith("2/") for name in learner.learned), "a third pass has begun"
    rest = [passages["passage_id"].to_pylist() for passages, _ in learner.streams(1, 1)[0]]
    assert rest == [passages["passage_id"].to_pylist() for passages, _ in undisturbed[cut:]]
