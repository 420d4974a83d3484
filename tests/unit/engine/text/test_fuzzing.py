"""Random passages through the whole alignment; ``tests.benchmarks.fuzz`` runs a hundred thousand."""

import itertools

import pytest

from tests.support import real_tokenizers
from tests.support.fuzzing import Fuzzer, checkpoints, texts


@pytest.mark.timeout(240)
def test_no_passage_breaks_a_stage(tmp_path):
    (tmp_path / "models").mkdir()
    folders = checkpoints(tmp_path / "models")
    names = real_tokenizers.NAMES
    stream = texts(seed=1)
    taken = 0
    for index, target in enumerate(names):
        sources = [names[(index + 1) % len(names)], names[(index + 3) % len(names)]]
        fuzzer = Fuzzer(folders, target, sources, str(tmp_path / "tables"), seed=index)
        for _ in range(4):
            fuzzer.run(list(itertools.islice(stream, 64)))
        assert fuzzer.refused < 0.05 * 256, "what loses text is rare"
        taken += fuzzer.passages
    assert taken > 0.97 * 7 * 256
