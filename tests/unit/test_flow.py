"""The numbers that follow from a spec."""

import json

import pytest

from engine import load_spec
from engine.tokenization import PassageTokenizer
from pipelines.flow import FEWEST_PASSAGES, MOST_PASSAGES, derive_flow

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(("words", "rows"), [(4, 50), (120, 50), (3000, 3)])
def test_a_batch_is_a_budget_of_tokens_whatever_the_passages_length(tmp_path, words, rows):
    text = "the number of items " * (words // 4)
    (tmp_path / "corpus.jsonl").write_text("\n".join([json.dumps({"text": text})] * rows))
    spec = load_spec("pipelines/specs/quickstart.yaml", [f"corpus.paths=[{tmp_path / 'corpus.jsonl'}]"])
    flow = derive_flow(spec)
    tokens = len(PassageTokenizer.load(spec.target_model.checkpoint).encode(text)[0])
    passages = -(-tokens // min(flow.windows))
    expected = min(MOST_PASSAGES, 8 * 2048 / (tokens / passages))
    assert flow.batch_passages == pytest.approx(expected, rel=0.05, abs=1)


def test_a_corpus_without_a_readable_text_has_a_batch_size_too(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("torn")
    spec = load_spec("pipelines/specs/quickstart.yaml", [f"corpus.paths=[{tmp_path / 'corpus.jsonl'}]"])
    assert FEWEST_PASSAGES <= derive_flow(spec).batch_passages <= MOST_PASSAGES


def test_what_ray_must_reserve_is_counted():
    overrides = ["source_models.0.replicas=2", "source_models.0.most_replicas=4", "source_models.1.num_cpus=2"]
    flow = derive_flow(load_spec("pipelines/specs/quickstart.yaml", overrides))
    sources, workers, readers, aligners = 2 + 2 + 1, 2, 1 * 0.5, 2 * 1.0
    assert flow.logical_cpus == workers + sources + readers + aligners + 0.5 + 2 * 1.0
    assert flow.gpus == 0
