"""Aligner: whole passages from tables to tables, against the slow path, and what it does about odd batches."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from actors.aligner import Aligner
from actors.monitor import NoMeter
from engine.blocks.packing import Packer
from engine.errors import RecordError
from engine.method import canonical
from engine.method.byte_fusion import ROWS
from engine.method.vocabulary import UNMAPPED
from engine.model_files.checkpoint import Checkpoint
from engine.records import FUSED_PASSAGE, NO_TOKEN, PASSAGE, ragged, rows_of, schema, source_columns
from engine.spec import AlignmentSpec, FusionRuleSpec
from engine.spec.sections import Bos
from engine.text.tokenization import PassageTokenizer
from tests.oracles import by_id, fused_passage, nats_per_own_token
from tests.support.tiny_tokenizers import byte_level_with_bos, tokenizer_folders

TOP_K = 6
MIN_CE = FusionRuleSpec(rule="min_ce", top_k=TOP_K)
SAMPLE = ["The cat sat on the mat, and the dog in the sun.", "def main():\n    print(2024)\n"]
NAMES = ["byte-level-with-bos", "byte-level-without-bos", "sentencepiece-like"]
TEXTS = [
    "The cat sat on the mat.",
    "def main():\r\n\tfor index in range(10):\n\n    print(index)\x00",
    "日本語 and emoji 🙂👩‍👩‍👧, e\u0301 and é",
    "   spaces in front, </s> and <|endoftext|> and <bos> inside   ",
    "\n",
    "x",
    "2024.",
    "No. 7, a longer passage: " + "the cat and the dog. " * 12,  # more rows than are fused at once
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {folder.name: folder for folder in [*tokenizer_folders(folder), bos_in_configuration(folder)]}


def bos_in_configuration(folder: Path) -> Path:
    """A tokenizer of which tokenizer_config.json alone says that BOS precedes a text, as DeepSeek V3's."""
    made = folder / "bos-in-configuration"
    byte_level_with_bos().save_pretrained(made)
    for file, values in (
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer_config.json", {"add_bos_token": True}),
    ):
        (made / file).write_text(json.dumps(json.loads((made / file).read_text()) | values))
    return made


def passages(texts: list[str] = TEXTS) -> pa.Table:
    rows = {
        "passage_id": [f"0/corpus.txt:{row}:0" for row in range(len(texts))],
        "text": texts,
        "num_bytes": [len(text.encode()) for text in texts],
        "context_bytes": [0] * len(texts),
        "ends_document": [row % 2 == 0 for row in range(len(texts))],
        "messages": [[]] * len(texts),
    }
    return pa.table(rows, schema(PASSAGE))


def scored(batch: pa.Table, name: str, folder: Path, top_k: int = TOP_K, missing: int | None = None) -> pa.Table:
    """The batch with a source's columns: random distributions over its own vocabulary, EOS scored after each text."""
    tokenizer = PassageTokenizer.load(Checkpoint(str(folder)))
    random = np.random.default_rng(len(name))
    columns = {column.name: [] for column in source_columns(name)}
    for row, text in enumerate(batch["text"].to_pylist()):
        ids, ends = tokenizer.encode_with_roles(text, tokenizer.adds_bos, True)
        ids, ends = (ids[:0], ends[:0]) if row == missing else (ids[:-1], ends[:-1])
        logits = random.normal(0, 3, (len(ends), tokenizer.vocab_size))
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        order = np.argsort(-logprobs, axis=-1)[:, :top_k]
        values = (ids, ends, order, np.take_along_axis(logprobs, order, -1), random.normal(-2, 1, len(ends)))
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    for column in source_columns(name):
        batch = batch.append_column(column.name, ragged(columns[column.name], column.dtype.value_type))
    return batch


def aligner(
    folders,
    target: str,
    sources: list[str],
    tmp_path: Path,
    fusion: FusionRuleSpec = MIN_CE,
    bos: Bos = "tokenizer",
    retired: tuple[str, ...] = (),
    **alignment,
) -> Aligner:
    return Aligner(
        Checkpoint(str(folders[target]), bos=bos),
        [(name, Checkpoint(str(folders[name]))) for name in sources],
        fusion,
        AlignmentSpec(cache_dir=str(tmp_path), **alignment),
        SAMPLE,
        NoMeter(),
        retired,
    )


@pytest.mark.parametrize(("target", "bos"), [*((name, "tokenizer") for name in NAMES), (NAMES[1], "always")])
@pytest.mark.parametrize(
    ("fusion", "vocabulary", "tokens", "split_tokens"),
    [
        (MIN_CE, "prefix", "byte_offset", "first_piece"),
        (FusionRuleSpec(rule="avg_ce", top_k=TOP_K), "prefix", "byte_offset", "product"),
        (FusionRuleSpec(rule="avg_ce", temperature=0.2, top_k=TOP_K), "exact", "byte_offset", "first_piece"),
        (FusionRuleSpec(rule="uniform", top_k=TOP_K), "exact", "byte_offset", "product"),
        (FusionRuleSpec(rule="min_ce", granularity="token", top_k=TOP_K), "prefix", "byte_offset", "product"),
        (FusionRuleSpec(rule="avg_ce", granularity="token", top_k=TOP_K), "prefix", "byte_offset", "first_piece"),
        (MIN_CE, "prefix", "bytes", "first_piece"),
        (FusionRuleSpec(rule="uniform", top_k=TOP_K), "prefix", "bytes", "first_piece"),
        (FusionRuleSpec(rule="uniform", top_k=TOP_K), "prefix", "bytes", "product"),
        (FusionRuleSpec(rule="avg_ce", temperature=0.2, top_k=TOP_K), "exact", "bytes", "first_piece"),
        (FusionRuleSpec(rule="min_ce", granularity="token", top_k=TOP_K), "exact", "bytes", "product"),
    ],
)
def test_every_passage_equals_the_slow_path(folders, tmp_path, target, bos, fusion, vocabulary, tokens, split_tokens):
    batch, names = passages(), NAMES
    for name in names:
        batch = scored(batch, name, folders[name])
    alignment = AlignmentSpec(tokens=tokens, vocabulary=vocabulary, split_tokens=split_tokens)
    align = aligner(
        folders, target, names, tmp_path, fusion, bos, **alignment.model_dump(exclude={"cache_dir", "sample_bytes"})
    )
    table = align(batch)
    may_follow = asked(align) if tokens == "bytes" else None
    assert max(map(len, rows_of(table["token_ids"]))) > ROWS
    assert table.schema == schema(FUSED_PASSAGE)
    tokenizers = [PassageTokenizer.load(Checkpoint(str(folders[name]))) for name in names]
    for row, text in enumerate(TEXTS):
        distributions = [
            {column.name.split("/")[1]: rows_of(batch[column.name])[row] for column in source_columns(name)}
            for name in names
        ]
        expected = fused_passage(
            text,
            batch["ends_document"][row].as_py(),
            PassageTokenizer.load(Checkpoint(str(folders[target]), bos=bos)),
            tokenizers,
            distributions,
            fusion,
            alignment,
            may_follow,
        )
        for column in ("token_ids", "is_fused", "covered_rows"):
            assert rows_of(table[column])[row].tolist() == expected[column].tolist(), (text, column)
        flat_ids, flat_probs = (rows_of(table[column])[row] for column in ("fused_ids", "fused_probs"))
        ids, probs = by_id(flat_ids.reshape(-1, TOP_K), flat_probs.reshape(-1, TOP_K).astype(np.float64))
        expected_ids, expected_probs = by_id(expected["fused_ids"], expected["fused_probs"])
        assert np.array_equal(ids, expected_ids), text
        if fusion.granularity == "passage":
            np.testing.assert_allclose(rows_of(table["win_share"])[row], expected["win_share"])
        np.testing.assert_allclose(rows_of(table["cross_entropy"])[row], expected["cross_entropy"], rtol=1e-6)
        # One rounding to float16: half a unit in the last place, or half of the smallest subnormal number.
        np.testing.assert_allclose(probs, expected_probs, rtol=2**-11 * 1.001, atol=2**-25 * 1.001)
        assert (probs.sum(-1) <= 1 + 2**-11).all()


def asked(align: Aligner) -> Callable[[int, int], bool]:
    """Whether the target's tokenizer writes a token after another; ``test_canonical`` asks the tokenizer itself."""

    def may_follow(before: int, token: int) -> bool:
        pairs = align._canonical.pairs
        tables = (pairs.tokens, pairs.splits, *pairs.merges)
        if canonical.merges_allow(before, token, *tables) == canonical.UNKNOWN_PAIR:
            align._canonical.answer()
        return canonical.merges_allow(before, token, *tables) == canonical.POSSIBLE

    return may_follow


@pytest.mark.timeout(60)
def test_a_retired_source_has_no_columns_and_the_others_are_fused_as_without_it(folders, tmp_path):
    first, retired, third = NAMES
    batch = passages()
    for name in (first, third):
        batch = scored(batch, name, folders[name])
    table = aligner(folders, first, NAMES, tmp_path, retired=(retired,))(batch)
    alone = aligner(folders, first, [first, third], tmp_path)(batch)
    for column in ("token_ids", "fused_ids", "fused_probs", "is_fused"):
        assert table[column].equals(alone[column]), column
    for row in range(len(batch)):
        assert rows_of(table["covered_rows"])[row][1] == 0
        assert math.isnan(rows_of(table["cross_entropy"])[row][1])


@pytest.mark.timeout(60)
def test_a_look_at_tokens_shows_what_the_slow_path_says(folders, tmp_path):
    batch, names, target = passages(), list(folders), "byte-level-with-bos"
    for name in names:
        batch = scored(batch, name, folders[name])
    align = aligner(folders, target, names, tmp_path)
    table = align(batch)
    looks = [json.loads(text) if text else None for text in table["inspection"].to_pylist()]
    assert sum(map(bool, looks)) == 2
    assert sum(len(look["tokens"]) for look in looks if look) >= 3
    align._batches = 16
    assert not any(align(batch)["inspection"].to_pylist()), "the 17th batch is none of those that are shown"
    tokenizers = {name: PassageTokenizer.load(Checkpoint(str(folders[name]))) for name in names}
    for row, look in enumerate(looks):
        if look:
            assert look["passage"] == batch["passage_id"][row].as_py()
            expected = slow_look(batch, row, names, tokenizers, tokenizers[target], asked(align))
            _check_look(look, expected, names)


def slow_look(batch, row, names, tokenizers, target, may_follow):
    """The slow path's values for a passage: fused by MinCE, and from each source alone."""

    def slow(sources, rule):
        found = [{c.name.split("/")[1]: rows_of(batch[c.name])[row] for c in source_columns(s)} for s in sources]
        end = batch["ends_document"][row].as_py()
        models = [tokenizers[source] for source in sources]
        return fused_passage(TEXTS[row], end, target, models, found, rule, AlignmentSpec(), may_follow)

    alone = FusionRuleSpec(rule="uniform", top_k=TOP_K)
    return [slow(names, MIN_CE), *(slow([name], alone) for name in names)]


def _check_look(look, expected, names):
    """The fused rows of a look, and those of each source alone, are those of the slow path."""
    shown = [look["fused"], *(source["rows"] for source in look["sources"])]
    costs = [math.nan if value is None else value for value in look["cross_entropy"]]
    assert costs == pytest.approx(expected[0]["cross_entropy"], rel=1e-3, nan_ok=True)
    assert look["tokens"] == expected[0]["token_ids"][look["first"] + 1 :][: len(look["tokens"])].tolist()
    for place in range(len(look["tokens"])):
        for rows, values in zip(shown, expected, strict=True):
            at = look["first"] + place
            assert (rows[place] is not None) == values["is_fused"][at]
            if rows[place] is not None:
                check_row(rows[place], slow_row(values, at))
        won = max(range(len(names)), key=lambda n: look["weights"][place][n])
        taught = [n for n in range(len(names)) if shown[n + 1][place] is not None]
        if taught:
            assert won == min(taught, key=lambda n: (expected[0]["cross_entropy"][n], n)), "the cheapest with a row"


def slow_row(values, at: int) -> dict[int, float]:
    """Target token to probability in one row of the slow path."""
    return dict(zip(values["fused_ids"][at].tolist(), values["fused_probs"][at].tolist(), strict=True))


def check_row(row: list, expected: dict[int, float]) -> None:
    """Ids, probabilities (to five decimals) and rest of a row that is shown are the top of the slow path's row."""
    ids, probs, rest = row
    top = sorted((p for p in expected.values() if p > 0), reverse=True)[: len(ids)]
    assert probs == pytest.approx(top, rel=2e-3, abs=6e-6)
    assert [expected[token] for token in ids] == pytest.approx(probs, rel=2e-3, abs=6e-6)
    assert rest == pytest.approx(1.0 - sum(expected.values()), abs=2e-3)


def test_the_authors_arithmetic_counts_eos_only_after_passages_that_end_their_document(folders, tmp_path):
    names = NAMES
    batch = passages()
    for name in names:
        batch = scored(batch, name, folders[name])
    fusion = FusionRuleSpec(rule="min_ce", top_k=TOP_K, arithmetic="fusellm")
    table = aligner(folders, names[0], names, tmp_path, fusion, tokens="byte_offset")(batch)
    for row, ends_document in enumerate(batch["ends_document"].to_pylist()):
        ends, costs = (
            [rows_of(batch[f"{name}/{part}"])[row] for name in names] for part in ("end_bytes", "token_logprobs")
        )
        expected = [
            nats_per_own_token(*source, batch["num_bytes"][row].as_py(), ends_document)
            for source in zip(ends, costs, strict=True)
        ]
        np.testing.assert_allclose(rows_of(table["cross_entropy"])[row], expected, rtol=1e-6)


def test_a_single_source_is_taken_whatever_its_cross_entropy(folders, tmp_path):
    names = NAMES
    batch = passages()
    for name in names:
        batch = scored(batch, name, folders[name])
    fusion = FusionRuleSpec(rule="single", single_source=names[2], top_k=TOP_K)
    both = aligner(folders, names[0], names, tmp_path, fusion)(batch)
    alone = aligner(folders, names[0], [names[2]], tmp_path)(batch.drop_columns(columns_of(names[:2])))
    for column in ("fused_ids", "fused_probs", "is_fused"):
        assert both[column] == alone[column]


def columns_of(names: list[str]) -> list[str]:
    return [column.name for name in names for column in source_columns(name)]


@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [("min_edit", "min_edit"), ("exact", "exact"), ("suffix", "statistical")]
)
def test_by_edits_every_scored_row_learns_from_the_source_or_from_its_label(folders, tmp_path, tokens, vocabulary):
    target, name = "byte-level-with-bos", "sentencepiece-like"
    batch = scored(passages(), name, folders[name], missing=2)
    table = aligner(folders, target, [name], tmp_path, tokens=tokens, vocabulary=vocabulary)(batch)
    taught = used = 0
    for row in range(len(TEXTS)):
        token_ids = rows_of(table["token_ids"])[row]
        ids = rows_of(table["fused_ids"])[row].reshape(-1, TOP_K)
        probs = rows_of(table["fused_probs"])[row].reshape(-1, TOP_K)
        fused = rows_of(table["is_fused"])[row]
        if row == 2:
            assert not fused.any()
            assert rows_of(table["covered_rows"])[row].tolist() == [0]
            continue
        assert not fused[-1], "the last row has no label"
        one_hot = (probs[:-1, 0] == 1.0) & (ids[:-1, 0] == token_ids[1:]) & (ids[:-1, 1] == NO_TOKEN)
        covered = rows_of(table["covered_rows"])[row][0]
        # A row of the source whose kept tokens all map nowhere is not fused, and no label is put in its place.
        assert one_hot.sum() + covered >= fused.sum() >= one_hot.sum()
        taught, used = taught + one_hot.sum(), used + covered
    assert taught > 0
    assert used > 0


def test_context_is_neither_fused_nor_compared(folders, tmp_path):
    target, name = "byte-level-with-bos", "sentencepiece-like"
    plain = scored(passages(TEXTS[:2]), name, folders[name])
    position = plain.column_names.index("context_bytes")
    context = pa.array([len("The cat"), 0], pa.int32())
    batch = plain.set_column(position, "context_bytes", context)
    whole, part = (aligner(folders, target, [name], tmp_path)(table) for table in (plain, batch))
    _, ends = PassageTokenizer.load(Checkpoint(str(folders[target]))).encode_with_roles(TEXTS[0], True, True)
    rows = int((ends <= len("The cat")).sum()) - 1
    for row, context_rows in ((0, rows), (1, 0)):
        learned = rows_of(part["is_learned"])[row]
        assert learned.tolist() == [False] * context_rows + [True] * (len(learned) - context_rows - 1) + [False]
    assert rows > 1
    assert part["num_bytes"].to_pylist() == [len(TEXTS[0]) - len("The cat"), len(TEXTS[1])]
    fused = [rows_of(table["is_fused"])[0] for table in (whole, part)]
    assert not fused[1][:rows].any()
    assert fused[1][rows:].tolist() == fused[0][rows:].tolist()
    assert rows_of(part["covered_rows"])[0][0] == rows_of(whole["covered_rows"])[0][0] - (fused[0][:rows].sum())
    assert rows_of(part["cross_entropy"])[0] != rows_of(whole["cross_entropy"])[0]
    assert rows_of(part["cross_entropy"])[1] == rows_of(whole["cross_entropy"])[1]


def test_without_sources_the_passages_go_through_unfused(folders, tmp_path):
    table = aligner(folders, "byte-level-with-bos", [], tmp_path)(passages())
    assert table.schema == schema(FUSED_PASSAGE)
    assert table["passage_id"].to_pylist() == passages()["passage_id"].to_pylist()
    for tokens, ids, fused in zip(
        *(rows_of(table[name]) for name in ("token_ids", "fused_ids", "is_fused")), strict=True
    ):
        assert ids.tolist() == [NO_TOKEN] * len(tokens) * TOP_K
        assert not fused.any()
    assert all(len(row) == 0 for row in rows_of(table["win_share"]))


def test_a_source_that_failed_on_a_passage_is_left_out_there_alone(folders, tmp_path):
    names = ["byte-level-with-bos", "sentencepiece-like"]
    batch = scored(scored(passages(), names[0], folders[names[0]], missing=0), names[1], folders[names[1]])
    table = aligner(folders, "byte-level-with-bos", names, tmp_path)(batch)
    cross_entropy = np.array(rows_of(table["cross_entropy"]))
    assert np.isnan(cross_entropy[0]).tolist() == [True, False]
    assert not np.isnan(cross_entropy[1]).any()
    assert rows_of(table["win_share"])[0].tolist() == [0, 1]
    assert rows_of(table["covered_rows"])[0][0] == 0
    assert rows_of(table["is_fused"])[0].sum() > 0


@pytest.mark.parametrize("tokens", ["bytes", "byte_offset", "min_edit"])
@pytest.mark.parametrize(
    ("target", "bos"),
    [("byte-level-without-bos", "always"), ("bos-in-configuration", "tokenizer"), ("byte-level-with-bos", "tokenizer")],
)
def test_a_targets_bos_is_one_more_row_in_front_of_the_same_rows(folders, tmp_path, target, bos, tokens):
    name, vocabulary = "byte-level-with-bos", "min_edit" if tokens == "min_edit" else "prefix"
    batch = scored(passages(), name, folders[name])
    long, short = (
        packed(aligner(folders, target, [name], tmp_path, bos=choice, tokens=tokens, vocabulary=vocabulary)(batch))
        for choice in (bos, "never")
    )
    bos_id = PassageTokenizer.load(Checkpoint(str(folders[target]))).bos_id
    for row in range(len(TEXTS)):
        with_bos, without = long[row], short[row]
        assert with_bos["input_ids"][0] == bos_id != without["input_ids"][0]
        assert with_bos["loss_mask"][0], "the text's first token is its label"
        for column, values in without.items():
            assert with_bos[column][1:].tolist() == values.tolist(), column
        assert with_bos["fusion_mask"][0], "the source has read BOS as well"
        if target != "byte-level-without-bos":  # one vocabulary
            own = {part: rows_of(batch[f"{name}/{part}"])[row][:TOP_K] for part in ("topk_ids", "topk_logprobs")}
            assert with_bos["fused_ids"][0].tolist() == own["topk_ids"].tolist()
            np.testing.assert_allclose(
                with_bos["fused_probs"][0], np.exp(own["topk_logprobs"].astype(float)), rtol=2e-3
            )


def packed(fused: pa.Table) -> list[dict[str, np.ndarray]]:
    """Each passage's rows in the training block that holds all of them."""
    length = len(pc.list_flatten(fused["token_ids"]))
    (block,) = Packer(length, TOP_K)(fused, np.zeros(len(fused), np.int32), np.zeros((1, 1), np.int64)).to_pylist()
    ends = np.cumsum([len(ids) for ids in rows_of(fused["token_ids"])])[:-1]
    columns = ("input_ids", "loss_mask", "fusion_mask", "fused_ids", "fused_probs")
    parts = [np.split(np.array(block[column]).reshape(length, -1).squeeze(), ends) for column in columns]
    return [dict(zip(columns, passage, strict=True)) for passage in zip(*parts, strict=True)]


def test_batches_of_any_chunking_and_slice_come_out_alike(folders, tmp_path):
    name = "byte-level-without-bos"
    batch, align = scored(passages(), name, folders[name]), aligner(folders, "byte-level-with-bos", [name], tmp_path)
    whole = align(batch)
    chunked = pa.concat_tables([batch.slice(0, 2), batch.slice(2, 1), batch.slice(3)])
    for part, expected in (
        (batch.slice(2, 3), whole.slice(2, 3)),
        (chunked, whole),
        (batch.slice(0, 0), whole.slice(0, 0)),
    ):
        # As text, where NaN equals itself; floats are written with all their digits.
        found = align(part).drop_columns("inspection")  # which passages are looked at depends on the batch
        assert str(found.to_pylist()) == str(expected.drop_columns("inspection").to_pylist())


def test_the_last_row_of_a_passage_is_never_fused(folders, tmp_path):
    name = "byte-level-with-bos"
    table = aligner(folders, name, [name], tmp_path)(scored(passages(), name, folders[name]))
    fused = rows_of(table["is_fused"])
    assert not any(row[-1] for row in fused)
    assert all(row[:-1].all() for row in fused), "a model aligns with itself everywhere else"


@pytest.mark.parametrize("vocabulary", ["prefix", "exact"])
def test_a_table_of_another_model_is_refused(folders, tmp_path, vocabulary):
    """One that maps nothing, one of a single token: all mass would be rest, with a loss that looks like any."""
    name = "sentencepiece-like"
    batch = scored(passages(["The cat sat on the mat, and the dog in the sun."] * 40), name, folders[name])
    align = aligner(folders, "byte-level-with-bos", [name], tmp_path, vocabulary=vocabulary)
    assert rows_of(align(batch)["is_fused"])[0].any(), "the pair is sound"
    sound = align._sources[0].mapping
    for wrong in (np.full_like(sound, UNMAPPED), sound[:1]):
        align._sources[0].mapping = wrong
        with pytest.raises(RecordError, match=rf"mass that source model {name} keeps .*{vocabulary}.*delete"):
            align(batch)


def test_a_few_rows_in_another_script_are_no_fault(folders, tmp_path):
    name = "sentencepiece-like"
    batch = scored(passages(["The cat sat on the mat."]), name, folders[name])
    align = aligner(folders, "byte-level-with-bos", [name], tmp_path, tokens="byte_offset")
    align._sources[0].mapping = np.full_like(align._sources[0].mapping, UNMAPPED)
    table = align(batch)
    assert (rows_of(table["fused_probs"])[0] == 0).all(), "all of it is rest"


def test_rows_that_do_not_fit_together_are_refused(folders, tmp_path):
    name = "byte-level-with-bos"
    batch = scored(passages(), name, folders[name], top_k=TOP_K - 1)
    with pytest.raises(RecordError, match=r"passage 0/corpus.txt:0:0 has \d+ values in .*topk_ids.*, expected \d+"):
        aligner(folders, name, [name], tmp_path)(batch)
    with pytest.raises(RecordError, match=r"token_ids.* is missing"):
        aligner(folders, name, [name], tmp_path)(passages())
