"""What must be true of the output folder before work starts."""

import sys

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from engine import load_spec
from engine.errors import PreflightError
from pipelines.run.preflight import preflight, write_spec

pytestmark = pytest.mark.timeout(60)


def check(tmp_path, *overrides: str) -> None:
    spec = load_spec("pipelines/specs/quickstart.yaml", [f"run.output_dir={tmp_path / 'out'}", *overrides])
    write_spec(spec, preflight(spec))


def learn_something(tmp_path) -> None:
    """Leave a complete checkpoint in the output folder."""
    checkpoint = tmp_path / "out" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"step": 1, "steps_in_files": 0, "history": [], "learned": {}}')


def test_an_output_folder_of_another_run_is_refused(tmp_path, monkeypatch):
    check(tmp_path)
    learn_something(tmp_path)
    with pytest.raises(PreflightError, match=r"holds another run \(its training.block_length is 256, not 128\)"):
        check(tmp_path, "training.block_length=128")

    def away(*_arguments, **_options):
        raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr("engine.store.FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.cat_file", away)
    with pytest.raises(PreflightError, match=r"run\.output_dir: .*spec\.yaml: the file cannot be read: OSError"):
        check(tmp_path, "training.block_length=128")


def test_a_corrected_spec_is_accepted_where_nothing_was_learned(tmp_path):
    check(tmp_path)
    check(tmp_path, "source_models.0.bos=always")
    learn_something(tmp_path)
    check(tmp_path, "source_models.0.bos=always")
    with pytest.raises(PreflightError, match="holds another run"):
        check(tmp_path)


def test_a_run_may_go_on_elsewhere_and_otherwise_placed(tmp_path):
    check(tmp_path)
    learn_something(tmp_path)
    check(tmp_path, "training.num_workers=1", "training.max_restarts=0", "source_models.0.replicas=3")


def test_where_a_source_may_retire_its_checkpoints_stay_as_often_as_they_are(tmp_path):
    """They decide when it is judged and by which steps, so the resumed run would be another one."""
    check(tmp_path)
    learn_something(tmp_path)
    check(tmp_path, "training.checkpoint_every_steps=7")
    (tmp_path / "out" / "spec.yaml").unlink()
    check(tmp_path, "source_models.0.retire=true", "training.checkpoint_every_steps=7")
    words = r"checkpoint_every_steps is 7, not 8: a source with retire is judged at each checkpoint.*\); set it back"
    with pytest.raises(PreflightError, match=words):
        check(tmp_path, "source_models.0.retire=true", "training.checkpoint_every_steps=8")


def test_a_run_does_not_go_on_with_other_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("a document")
    corpus = f"corpus={{paths: ['{tmp_path}/*.txt']}}"
    check(tmp_path, corpus)
    (tmp_path / "b.txt").write_text("a corrected document")
    learn_something(tmp_path)
    check(tmp_path, corpus)
    (tmp_path / "c.txt").write_text("one more")
    with pytest.raises(
        PreflightError, match=r"has changed since its last checkpoint: it had 2 units in 1 shards, now 3"
    ):
        check(tmp_path, corpus)


def test_a_corpus_of_which_no_row_can_be_read_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    corpus = f"corpus={{paths: [{tmp_path / 'rows.jsonl'}], on_error: skip}}"
    with pytest.raises(PreflightError, match=r"corpus: none of the first 2 rows can be read; .*'text'"):
        check(tmp_path, corpus)


SOME_BAD = '{"text": "one"}\n{"te\\\\ud83dxt": "x"}\n{"text": "two"}\n'


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("on_error: fail", r"row 2: has no key 'text'; it has te\\ud83dxt; fix it, or set corpus\.on_error: skip"),
        ("on_error: skip", r"1 of 3 rows cannot be read, corpus\.most_skipped allows 5\.0%; the first one is .*row 2"),
    ],
)
def test_a_corpus_at_whose_first_rows_a_run_would_end_is_refused(tmp_path, settings, words):
    (tmp_path / "rows.jsonl").write_text(SOME_BAD)
    with pytest.raises(PreflightError, match=words):
        check(tmp_path, f"corpus={{paths: [{tmp_path / 'rows.jsonl'}], {settings}}}")
    check(tmp_path, f"corpus={{paths: [{tmp_path / 'rows.jsonl'}], on_error: skip, most_skipped: 0.4}}")


def test_a_corpus_without_rows_is_refused(tmp_path):
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    with pytest.raises(PreflightError, match=r"corpus\.paths: .*rows\.parquet hold no row; name files that do"):
        check(tmp_path, f"corpus={{paths: [{tmp_path / 'rows.parquet'}]}}")


def test_a_domain_of_which_nothing_can_be_read_is_refused_by_name(tmp_path):
    for name, column in (("good", "text"), ("bad", "other")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"{column}": "a text"}}\n')
    domains = ", ".join(f"{name}: {{paths: [{tmp_path / name}.jsonl]}}" for name in ("good", "bad"))
    with pytest.raises(PreflightError, match=r"corpus\.domains\.bad: none of the first 1 rows can be read") as raised:
        check(tmp_path, f"corpus={{domains: {{{domains}}}}}")
    assert len(raised.value.faults) == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [("abfs://container/it", "ImportError: .*adlfs"), ("nonsense://it", "ValueError: Protocol not known: nonsense")],
)
@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("run.output_dir={}", "run.output_dir"),
        ("corpus.paths=[{}]", "corpus.paths.0"),
        ("target_model.checkpoint={}", "target_model.checkpoint"),
        ("source_models.0.checkpoint={}", "source_models.0.checkpoint"),
        ("evaluation.corpora={{docs: [{}]}}", "evaluation.corpora.docs.0"),
        ("evaluation.models={{other: {}}}", "evaluation.models.other"),
    ],
)
def test_a_place_that_no_installed_filesystem_reaches_is_a_fault(tmp_path, monkeypatch, url, reason, override, where):
    monkeypatch.setitem(sys.modules, "adlfs", None)  # cannot be imported, whether it is installed or not
    with pytest.raises(PreflightError, match=reason) as raised:
        check(tmp_path, override.format(url))
    assert [fault.where for fault in raised.value.faults] == [where]
