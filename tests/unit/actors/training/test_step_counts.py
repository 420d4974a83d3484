"""The counts of a step by domain: each passage counts in the domain of its block's shard."""

import numpy as np
import pyarrow as pa
import pytest

from actors.training.step_counts import count, over_workers, step_record
from actors.training.target_model import StepLosses
from engine.records import flat_values
from tests.support.training_blocks import of_domain, repeated, training_blocks

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("process_group")]


def test_the_counts_of_domains_add_up_to_those_of_the_step():
    first, second = of_domain(training_blocks(seed=2), 0), of_domain(training_blocks(seed=3, lengths=(9, 20)), 2)
    counts, _ = over_workers(count(pa.concat_tables([second, first]), 2, num_domains=3), 0.0, "cpu")
    alone = [count(first, 2), count(training_blocks(seed=4), 2), count(second, 2)]
    assert counts.domains.bytes.tolist() == [alone[0].bytes, 0, alone[2].bytes]
    assert counts.domains.tokens.tolist() == [alone[0].tokens, 0, alone[2].tokens]
    assert counts.domains.passages.tolist() == [6, 0, 2]
    for name in counts.sources._fields:
        by_domain = getattr(counts.sources_by_domain, name)
        for domain in (0, 2):
            np.testing.assert_allclose(by_domain[domain], getattr(alone[domain].sources, name))
        np.testing.assert_allclose(by_domain.sum(0), getattr(counts.sources, name))


def test_a_record_has_the_figures_domain_by_domain():
    counts = count(of_domain(training_blocks(seed=2), 1), 2, num_domains=2)
    losses = StepLosses(*[1.0] * len(StepLosses._fields))._replace(domain_lm_nats=(0.0, 80.0))
    record = step_record(1, losses, counts, 1.0, 0.0, 1.0)
    covered = flat_values(training_blocks(seed=2)["covered_rows"])[0].reshape(-1, 2).sum(0)
    assert record.domain_source_covered_rows == (0, 0, *covered)
    assert record.domain_bytes == (0, record.bytes)
    assert record.domain_lm_nats == (0.0, 80.0)


def test_text_that_is_read_again_is_counted_as_such():
    new, old = of_domain(training_blocks(seed=2), 0), repeated(of_domain(training_blocks(seed=3, lengths=(9, 20)), 2))
    counts, _ = over_workers(count(pa.concat_tables([new, old]), 2, num_domains=3), 0.0, "cpu")
    assert counts.repeated_bytes == 3 * (9 + 20) and counts.bytes == 3 * (9 + 20) + count(new, 2).bytes
    assert counts.domains.repeated_bytes.tolist() == [0, 0, 3 * (9 + 20)]
    losses = StepLosses(*[1.0] * len(StepLosses._fields))._replace(domain_lm_nats=(1.0, 0.0, 1.0))
    record = step_record(1, losses, counts, 1.0, 0.0, 1.0)
    assert (record.repeated_bytes, record.domain_repeated_bytes) == (87, (0, 0, 87))


def test_a_corpus_without_domains_and_a_worker_without_blocks_count_none():
    assert count(training_blocks(seed=2), 2).domains.bytes.tolist() == []
    assert count(None, 2, 3).sources_by_domain.nats.tolist() == [[0.0, 0.0]] * 3
    assert over_workers(count(None, 0, 0), 0.5, "cpu")[0].places == 0
