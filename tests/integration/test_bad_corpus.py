"""Bad input through the whole engine: the run says which file and row, and stops or goes on as the spec says."""

import pytest

from engine import run
from engine.corpus.first_rows import SAMPLED_ROWS
from engine.errors import FusionError, PreflightError, RecordError

pytestmark = [pytest.mark.timeout(360), pytest.mark.usefixtures("shared_ray")]

ROWS = [b'{"text": "a good document"}', b'{"text": ""}', b'{"text": "\xff"}', b'{"title": "x"}', b"{torn"]


def spec(tmp_path, on_error: str) -> dict:
    """Continued training on a corpus with four bad rows, a missing end of file and a document beyond any window."""
    long = '{"text": "%s"}' % ("many words in one long document " * 100)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*ROWS, long.encode()]))
    (tmp_path / "torn.jsonl.gz").write_bytes(b"\x1f\x8b no gzip")
    return {
        "run": {"name": "bad-corpus", "output_dir": str(tmp_path / on_error)},
        "corpus": {"paths": [str(tmp_path / "*.jsonl"), str(tmp_path / "*.gz")], "on_error": on_error},
        "target_model": {"checkpoint": "pipelines/quickstart/models/mistral-target"},
        "objective": {"lm_loss_weight": 1.0},
        "training": {"block_length": 128, "global_batch_blocks": 2, "max_steps": 50},
        "cluster": {"object_store_bytes": 2**27},
    }


def test_fail_names_file_row_and_remedy(tmp_path):
    failing = spec(tmp_path, "fail")
    failing["corpus"]["paths"] = [str(tmp_path / "rows.jsonl")]  # of several bad files any may be met first
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*ROWS[:1] * SAMPLED_ROWS, *ROWS]))
    with pytest.raises(RecordError) as caught:
        run(failing)
    where = f"{tmp_path / 'rows.jsonl'}, row 10"
    assert str(caught.value) == f"{where}: the document is empty; fix it, or set corpus.on_error: skip to leave it out"


def test_skip_goes_on_and_counts(tmp_path):
    skipping = spec(tmp_path, "skip")
    skipping["corpus"]["most_skipped"] = 1.0
    result = run(skipping)
    skipped = {(row.path.rsplit("/", 1)[1], row.row): row.reason for row in result.skipped}
    assert set(skipped) == {("rows.jsonl", row) for row in (2, 3, 4, 5)} | {("torn.jsonl.gz", 0)}
    assert "invalid UTF-8" in skipped["rows.jsonl", 3]
    assert "no key 'text'" in skipped["rows.jsonl", 4]
    assert "not JSON" in skipped["rows.jsonl", 5]
    assert "cannot be read" in skipped["torn.jsonl.gz", 0]
    # Every byte of both good documents has been learned, the one beyond any window in several passages.
    assert result.stopped_by == "corpus"
    assert result.bytes == len("a good document") + len("many words in one long document " * 100)
    assert result.passages > 5


def test_a_run_that_learned_nothing_fails_and_exports_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.run.runner.train", lambda *_: ())
    skipping = spec(tmp_path, "skip")
    skipping["corpus"]["most_skipped"] = 1.0
    with pytest.raises(FusionError, match=r"nothing was learned: .* No model was exported"):
        run(skipping)
    assert not (tmp_path / "skip" / "export").exists()


def test_a_missing_file_is_found_before_anything_starts(tmp_path):
    wrong = spec(tmp_path, "fail") | {"corpus": {"paths": [str(tmp_path / "none.jsonl")]}}
    wrong["target_model"] = {"checkpoint": str(tmp_path / "no-model")}
    with pytest.raises(PreflightError) as caught:
        run(wrong)
    assert "corpus.paths.0" in str(caught.value)
    assert "target_model.checkpoint" in str(caught.value)
    assert not (tmp_path / "fail").exists()
