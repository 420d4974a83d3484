"""The stream's fused targets equal those of a slow, obvious path in pure Python, row by row."""

import numpy as np
import pyarrow as pa
import pytest
import ray

from actors.monitor import NoMeter, RunMonitor
from actors.sources.source_model import SourceModel
from engine.history.ledger import Ledger
from engine.model_files.checkpoint import Checkpoint
from engine.records import SHARE, rows_of
from engine.spec.loading import as_located_spec
from engine.text.tokenization import PassageTokenizer
from pipelines.cluster.needs import Need
from pipelines.cluster.session import ray_session
from pipelines.stream.fused_blocks import fused_blocks
from pipelines.stream.sizes import derive_flow, mapping_sample
from tests.oracles import by_id, fused_passage
from tests.support.source_passages import passages

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("shared_ray")]

TEXTS = [
    "Return the number of items in a container.",
    "def main():\n\tfor index in range(10):\r\n\t\tprint(index)\n",
    "Ein Satz mit Umlauten: äöüß, und ein Gedankenstrich \u2013 so.",
    "emoji 🙂👩‍👩‍👧‍👦 and flags 🇩🇪 in a row",
    "the string </s> is text here, and so are <s> and <|endoftext|> and <unk>",
    "   leading and trailing spaces   \n\n\n",
    "日本語のテキストと English と עברית mixed",
    "combining: e\u0301 a\u0308 n\u0303; precomposed: é ä ñ",
    "tabs\tand\tvertical\x0b and nul \x00 and bell \x07",
    "x",
    "1995, 2024, 3.14159, 1_000_000, 0xFF",
    "class Ledger(dict):\n    '''A set that knows where it stands.'''\n    def __len__(self): return 3\n",
]


MODELS = "pipelines/quickstart/models"

#: Sections ``fusion``, ``alignment`` and ``target_model``: a target that puts BOS before a text by itself, and one that
#: puts none there unless it is asked to.
METHODS = [
    (
        {"rule": "min_ce", "top_k": 16},
        {"tokens": "byte_offset", "vocabulary": "prefix", "split_tokens": "first_piece"},
        {"checkpoint": f"{MODELS}/mistral-target"},
    ),
    (
        {"rule": "avg_ce", "granularity": "token", "temperature": 0.5, "top_k": 16},
        {"tokens": "byte_offset", "vocabulary": "exact"},
        {"checkpoint": f"{MODELS}/gpt2-code", "bos": "always"},
    ),
]


def spec(tmp_path, fusion: dict, alignment: dict, target: dict) -> dict:
    sources = ("llama-docs", "gpt2-code", "neox-mixed")
    pa.parquet.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet")
    return {
        "run": {"name": "targets", "output_dir": str(tmp_path / "out"), "deterministic": True},
        "corpus": {"paths": [str(tmp_path / "texts.parquet")]},
        "target_model": target,
        "source_models": [
            {"name": name, "checkpoint": f"{MODELS}/{name}", "dtype": "float32", "kv_cache_bytes": 2**26}
            for name in sources
        ],
        "alignment": alignment | {"cache_dir": str(tmp_path / "tables")},
        "fusion": fusion,
        "training": {"block_length": 256, "global_batch_blocks": 1},
        "cluster": {"object_store_bytes": 2**27},
    }


@pytest.fixture(scope="module")
def distributions(tmp_path_factory, shared_ray) -> pa.Table:
    """The passages with all sources' columns, each source called directly in a process of its own."""
    located = as_located_spec(spec(tmp_path_factory.mktemp("distributions"), *METHODS[0]))
    batch = passages(TEXTS)

    @ray.remote(num_cpus=1)
    def score(source, batch):
        return SourceModel(source, located.fusion.top_k, NoMeter())(batch)

    with ray_session(located, [Need("test", "task", 1.0, count=len(located.source_models))]):
        for source in located.source_models:
            batch = ray.get(score.remote(source, batch))
    return batch


@pytest.mark.parametrize(("fusion", "alignment", "target_model"), METHODS)
def test_the_stream_equals_the_slow_path(tmp_path, distributions, fusion, alignment, target_model):
    located = as_located_spec(spec(tmp_path, fusion, alignment, target_model))
    flow = derive_flow(located)
    with ray_session(located, flow.needs):
        monitor = ray.remote(num_cpus=0)(RunMonitor).remote()
        rows = fused_blocks(located, flow, mapping_sample(located, flow), Ledger(), (), monitor).take_all()
    target = PassageTokenizer.load(Checkpoint.of(located.target_model))
    sources = [PassageTokenizer.load(Checkpoint(source.checkpoint)) for source in located.source_models]
    streamed = passages_inside([block for row in rows for block in row[SHARE]], located.fusion.top_k)
    assert set(streamed) == {f"0/{located.corpus.paths[0]}:{row + 1}:0" for row in range(len(TEXTS))}
    for row, text in enumerate(TEXTS):
        expected = fused_passage(
            text,
            True,
            target,
            sources,
            [distribution(distributions, source.name, row) for source in located.source_models],
            located.fusion,
            located.alignment,
        )
        seen = streamed[f"0/{located.corpus.paths[0]}:{row + 1}:0"]
        assert seen["token_ids"][0] == target.bos_id
        assert seen["is_learned"].tolist() == [True] * (len(seen["token_ids"]) - 1) + [False]
        assert np.array_equal(seen["token_ids"], expected["token_ids"]), text
        assert np.array_equal(seen["is_fused"], expected["is_fused"]), text
        if fusion["rule"] == "min_ce":
            assert seen["win_share"].sum() == pytest.approx(float(seen["is_fused"].any())), "shares of fused rows"
        np.testing.assert_allclose(seen["win_share"], expected["win_share"], err_msg=text)
        ids, probs = by_id(seen["fused_ids"], seen["fused_probs"])
        expected_ids, expected_probs = by_id(expected["fused_ids"], expected["fused_probs"])
        assert np.array_equal(ids, expected_ids), text
        np.testing.assert_allclose(probs, expected_probs, rtol=2e-3, atol=1e-6)
        assert seen["is_fused"].sum() > 0 or len(text) < 3


def distribution(table: pa.Table, name: str, row: int) -> dict[str, np.ndarray]:
    """One source's columns of one passage, under their names without the prefix."""
    names = ("token_ids", "end_bytes", "topk_ids", "topk_logprobs", "token_logprobs")
    return {column: rows_of(table[f"{name}/{column}"])[row] for column in names}


def passages_inside(blocks: list[dict], top_k: int) -> dict[str, dict]:
    """The passages of all training blocks, unpacked."""
    found = {}
    for block in blocks:
        segments = np.asarray(block["segment_ids"])
        for segment, passage_id in enumerate(block["passage_ids"], start=1):
            where = segments == segment
            found[passage_id] = {
                "token_ids": np.asarray(block["input_ids"])[where],
                "is_learned": np.asarray(block["loss_mask"])[where],
                "is_fused": np.asarray(block["fusion_mask"])[where],
                "fused_ids": np.asarray(block["fused_ids"]).reshape(-1, top_k)[where],
                "fused_probs": np.asarray(block["fused_probs"], np.float32).reshape(-1, top_k)[where],
                "win_share": np.asarray(block["win_share"]).reshape(len(block["passage_ids"]), -1)[segment - 1],
            }
    return found
