"""The mixture: each domain has its share of the bytes at any time, and the order follows from the bytes alone."""

from collections.abc import Iterator
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks.mixture import MixedBlock, mixed
from engine.corpus.passages import Passage
from engine.history.ledger import SHARD_START, Entry
from tests.oracles import mixture_order

DOMAINS = st.lists(
    st.tuples(st.floats(0.01, 100.0), st.lists(st.integers(1, 2000), max_size=60), st.integers(0, 5000)),
    min_size=1,
    max_size=5,
)


def block(domain: int, number: int, num_bytes: int, is_surplus: bool = False) -> MixedBlock:
    """A block whose passage has ten bytes of context besides."""
    passage = Passage(f"{domain} {number}", "", num_bytes + 10, 10, True)
    return MixedBlock(Entry(domain, number, number + 1, SHARD_START), [passage], is_surplus)


def blocks(domain: int, sizes: list[int], first: int = 0) -> Iterator[MixedBlock]:
    return iter([block(domain, number, size) for number, size in enumerate(sizes) if number >= first])


@settings(deadline=None)
@given(DOMAINS, st.data())
def test_the_order_is_that_of_the_slow_twin_and_goes_on_wherever_it_is_cut(domains, data):
    weights, sizes, dealt = (list(values) for values in zip(*domains, strict=True))
    found = list(mixed([blocks(*pair) for pair in enumerate(sizes)], weights, dealt))
    order = [each.entry.shard for each in found]
    assert order == mixture_order(sizes, weights, dealt)
    cut = data.draw(st.integers(0, len(found)))
    taken = [order[:cut].count(domain) for domain in range(len(sizes))]
    learned = [dealt[domain] + sum(sizes[domain][: taken[domain]]) for domain in range(len(sizes))]
    rest = [blocks(domain, of_domain, taken[domain]) for domain, of_domain in enumerate(sizes)]
    assert list(mixed(rest, weights, learned)) == found[cut:]


@settings(deadline=None)
@given(DOMAINS)
def test_no_domain_is_ever_more_than_a_block_ahead_of_its_share(domains):
    weights, sizes, _ = (list(values) for values in zip(*domains, strict=True))
    dealt = [0] * len(sizes)
    for each in mixed([blocks(*pair) for pair in enumerate(sizes)], weights, dealt):
        dealt[each.entry.shard] += each.num_bytes
        for own, weight in zip(dealt, weights, strict=True):
            assert own - weight / sum(weights) * sum(dealt) <= 2000


def test_three_to_one_is_within_one_percent_after_a_hundred_blocks():
    first, second = ([900 + number * factor % 200 for number in range(1000)] for factor in (37, 41))
    dealt = [0, 0]
    for total, each in enumerate(mixed([blocks(0, first), blocks(1, second)], [1.0, 3.0], dealt)):
        dealt[each.entry.shard] += each.num_bytes
        assert total < 100 or abs(dealt[1] / sum(dealt) - 0.75) < 0.01
    assert total > 1000


def test_a_mixture_ends_where_every_domain_would_only_repeat_itself():
    long = (block(0, number, 10, is_surplus=number >= 9) for number in count())
    short = (block(1, number, 10, is_surplus=number >= 2) for number in count())
    order = [each.entry.shard for each in mixed([long, short], [1.0, 1.0], [0, 0])]
    assert (order.count(0), order.count(1)) == (9, 8), "until the longer one is through"
