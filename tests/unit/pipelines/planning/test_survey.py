"""The survey of the sources in a plan: its figures against plain Python, its text, and its gaps without scores."""

import itertools
import json
import math
import pickle
import re
import shutil
from collections import Counter
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

import engine
from engine.__main__ import main
from engine.corpus.domains import Domain
from engine.corpus.files import CorpusUnit
from engine.errors import PreflightError
from engine.method.vocabulary import UNMAPPED, build_mapping
from engine.model_files.checkpoint import Checkpoint
from engine.reporting.token_view import data_in
from engine.spec import CorpusSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.planning.domain_survey import passes_read
from pipelines.planning.scored_sample import TARGET
from pipelines.planning.survey import SAMPLE_BYTES, sample_passages, scored_sample, survey
from pipelines.planning.survey_examples import quoted, survey_mapping
from pipelines.planning.survey_tokens import KINDS, coverage, row_kinds, tokenize, traits
from pipelines.stream.sizes import derive_flow
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_checkpoint, tiny_model
from tests.support.tiny_tokenizers import SENTENCES, byte_level_with_bos, tokenizer_folders

pytestmark = pytest.mark.timeout(60)

QUICKSTART = "pipelines/specs/quickstart.yaml"
KIND_NAMES = ("exact", "one_to_many", "last_of_longer", "interior", "unaligned")
TOP_K = 12
PADDING = 24
DOCUMENTS = [*SENTENCES[:4], " a space first, and \u65e5\u672c\u8a9e \U0001f642\n\n\tthe end", "\u65e5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A target, two sources of other kinds, one of them with a padded embedding, and a small corpus with a bad row."""
    base = tmp_path_factory.mktemp("survey")
    with_bos, without_bos, pieces = tokenizer_folders(base / "tokenizers")
    tiny_checkpoint(base / "target", "mistral", with_bos, seed=1)
    tiny_checkpoint(base / "plain", "gpt2", without_bos, seed=2)
    tokenizer = AutoTokenizer.from_pretrained(pieces)
    tokenizer.save_pretrained(base / "pieces")
    tiny_model("llama", len(tokenizer) + PADDING, seed=3).save_pretrained(base / "pieces")
    rows = [*(json.dumps({"text": text}) for text in DOCUMENTS[:3]), "no JSON", *map(_line, DOCUMENTS[3:])]
    (base / "corpus.jsonl").write_text("\n".join(rows) + "\n", encoding="utf8")
    return base


def _line(text: str) -> str:
    return json.dumps({"text": text})


#: Name, weight and bytes of the files of each.
DOMAINS_OF_SIZES = (("a", 3.0, 1500), ("b", 1.0, 2000))


def spec_of(folder: Path, *overrides: str) -> engine.FusionSpec:
    sources = [
        {"name": name, "checkpoint": str(folder / name), "dtype": "float32", "max_context_tokens": 96, "probe": "off"}
        for name in ("plain", "pieces")
    ]
    document = {
        "run": {"name": "survey", "output_dir": str(folder / "output")},
        "corpus": {"paths": [str(folder / "corpus.jsonl")]},
        "target_model": {"checkpoint": str(folder / "target")},
        "source_models": sources,
        "fusion": {"top_k": TOP_K},
        "alignment": {"cache_dir": str(folder / "tables")},
        "training": {"block_length": 64},
    }
    return engine.load_spec(document, list(overrides))


@pytest.fixture(scope="module")
def surveyed(folder) -> tuple:
    spec = spec_of(folder)
    flow = derive_flow(spec)
    return spec, sample_passages(spec, flow), survey(spec, flow, scored_sample(spec, flow))


def slow_kinds(target_ends: list[int], source_ends: list[int], alike: bool) -> list[int]:
    """Byte by byte: who owns the target token's bytes on the source's side?"""
    owner, spans, start = {}, [], 0
    for end in source_ends[:-1]:
        owner.update({byte: len(spans) for byte in range(start, end)})
        spans.append((start, end))
        start = end
    at_zero = [sum(end == 0 for end in ends[:-1]) for ends in (target_ends, source_ends)]
    kinds, start = [], 0
    for row, end in enumerate(target_ends[:-1]):
        if end == 0:
            last = row + 1 == at_zero[0]
            kinds.append("exact" if last and alike and at_zero[0] == at_zero[1] else "unaligned")
            continue
        source_start, source_end = spans[owner[end - 1]]
        if source_end != end:
            kinds.append("interior")
        elif source_start == start:
            kinds.append("exact")
        else:
            kinds.append("one_to_many" if source_start > start else "last_of_longer")
        start = end
    return kinds


def test_coverage_equals_a_walk_over_the_bytes(surveyed, folder):
    _, passages, _ = surveyed
    texts = [passage.text for passage in passages]
    assert "".join(texts) == "".join(DOCUMENTS)
    tokenizers = [PassageTokenizer.load(Checkpoint(str(folder / name))) for name in ("target", "plain", "pieces")]
    of_all: Counter = Counter()
    for target, source in itertools.permutations(tokenizers, 2):
        kinds: Counter = Counter()
        for passage in passages:
            text = passage.text
            target_ends = target.encode_with_roles(text, target.adds_bos, passage.ends_document)[1].tolist()
            source_ends = source.encode_with_roles(text, source.adds_bos, True)[1].tolist()
            alike = target.has_dummy_prefix(text) == source.has_dummy_prefix(text)
            kinds.update(slow_kinds(target_ends, source_ends, alike))
        scored = [replace(passage, ends_document=True) for passage in passages]
        found = coverage(tokenize(target, passages), tokenize(source, scored))
        rows = sum(kinds.values())
        assert found.rows == rows > 100
        for kind in KIND_NAMES:
            assert getattr(found, kind) == pytest.approx(kinds[kind] / rows), kind
        assert found.used + found.interior + found.unaligned == pytest.approx(1)
        of_all.update(kinds)
    assert all(of_all[kind] >= 5 for kind in KIND_NAMES)


def test_the_survey_counts_its_own_sample(surveyed, folder):
    spec, passages, surveys = surveyed
    target = PassageTokenizer.load(Checkpoint(str(folder / "target")))
    scored = [replace(passage, ends_document=True) for passage in passages]
    texts = [passage.text for passage in passages]
    for bos in ("tokenizer", "always"):
        plain = PassageTokenizer.load(Checkpoint(str(folder / "plain"), bos=bos))
        found = survey(spec_of(folder, f"source_models.0.bos={bos}"), derive_flow(spec))[0]
        expected = coverage(tokenize(target, passages), tokenize(plain, scored))
        assert (found.coverage, found.scores, found.target_scores) == (expected, None, None)
        assert found.traits.adds_bos == (bos == "always")
    assert [(found.passages, found.num_bytes) for found in surveys] == [(6, len("".join(texts).encode()))] * 2


@pytest.mark.parametrize(
    ("target", "source", "alike", "expected"),
    [
        ([0, 2, 6, 6], [0, 2, 6, 6], True, [0, 0, 0]),
        ([0, 6, 6], [0, 2, 4, 6, 6], True, [0, 1]),
        ([0, 2, 4, 6, 6], [0, 6, 6], True, [0, 3, 3, 2]),
        ([0, 2, 6, 6], [2, 6, 6], True, [4, 0, 0]),
        ([0, 2, 6, 6], [0, 2, 6, 6], False, [4, 0, 0]),
        ([0, 3, 6, 6], [0, 1, 4, 6, 6], True, [0, 3, 1]),
        ([0, 4, 4, 4, 6, 6], [0, 4, 6, 6], True, [0, 4, 4, 2, 0]),
        ([0, 4, 6, 6], [0, 4, 4, 4, 6, 6], True, [0, 1, 0]),
        ([0], [0, 0], True, []),
    ],
    ids=["1-1", "1-n", "n-1", "no BOS", "other prefix", "crossing", "parts of a character", "its parts", "no row"],
)
def test_the_kinds_of_rows(target, source, alike, expected):
    assert row_kinds(np.array(target, np.int32), np.array(source, np.int32), alike).tolist() == expected
    assert list(KINDS) == [0, 1, 2, 3, 4]


def test_masses_and_nats_equal_a_plain_forward_pass(surveyed, folder):
    spec, passages, surveys = surveyed
    target = PassageTokenizer.load(Checkpoint(spec.target_model.checkpoint))
    for name, found in zip(("plain", "pieces"), surveys, strict=True):
        source = PassageTokenizer.load(Checkpoint(str(folder / name)))
        mapping = build_mapping(source, target, "prefix").tolist() + [UNMAPPED] * PADDING
        model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        lost, unmapped, nats, num_bytes = [], [], 0.0, 0
        for passage in passages:
            ids, ends = source.encode_with_roles(passage.text, source.adds_bos, True)
            with torch.no_grad():
                rows = model(torch.tensor(ids[None].astype(np.int64))).logits[0].double().softmax(-1)[:-1]
            for row, following, end in zip(rows, ids[1:], ends[:-1], strict=True):
                kept = row.topk(TOP_K)
                lost.append(1 - float(kept.values.sum()))
                pairs = zip(kept.values.tolist(), kept.indices.tolist(), strict=True)
                unmapped.append(sum(mass for mass, token in pairs if mapping[token] == UNMAPPED))
                nats -= math.log(row[following]) if end < passage.num_bytes else 0.0
            num_bytes += passage.num_bytes - int(ends[0])
        scores = found.scores
        assert (scores.rows, scores.num_bytes, scores.problem) == (len(lost), num_bytes, "")
        assert scores.lost_mass == pytest.approx(sum(lost) / len(lost), abs=1e-3)
        assert scores.unmapped_mass == pytest.approx(sum(unmapped) / len(lost), abs=1e-3)
        assert scores.nats_per_byte == pytest.approx(nats / num_bytes, abs=1e-4)
        assert math.isfinite(found.target_scores.nats_per_byte)
    assert surveys[1].scores.unmapped_mass > 0.01  # the padding of the embedding, which no token maps


def test_traits_padding_and_mapping_shares(surveyed):
    spec, _, (plain, pieces) = surveyed
    assert (plain.traits.adds_bos, plain.traits.has_bos, plain.traits.dummy_prefix) == (False, True, False)
    assert (pieces.traits.adds_bos, pieces.traits.dummy_prefix) == (True, True)
    assert pieces.traits.normalizer == ("Prepend", "Replace")
    assert (plain.padding_rows, pieces.padding_rows) == (0, PADDING)
    target = PassageTokenizer.load(Checkpoint(spec.target_model.checkpoint))
    for section, found in zip(spec.source_models, (plain, pieces), strict=True):
        source = PassageTokenizer.load(Checkpoint(section.checkpoint))
        mapping = build_mapping(source, target, "prefix")
        pairs = [(source.token_bytes[token], mapped) for token, mapped in enumerate(mapping)]
        by_bytes = sum(
            mapped >= 0 and data is not None and data == target.token_bytes[mapped] for data, mapped in pairs
        )
        roles = {source.bos_id, source.eos_id, source.pad_id} - {-1}
        by_role = sum(mapping[role] >= 0 for role in roles)
        assert found.mapping.same == pytest.approx((by_bytes + by_role) / len(mapping))
        assert found.mapping.nowhere == pytest.approx(sum(mapped == UNMAPPED for _, mapped in pairs) / len(mapping))
        assert found.mapping.same + found.mapping.otherwise + found.mapping.nowhere == pytest.approx(1)
        assert found.mapping.nonsense == 0


def test_nonsense_comes_first_and_then_frequent_tokens(folder):
    source, target = (PassageTokenizer.load(Checkpoint(str(folder / name))) for name in ("target", "plain"))
    mapping = build_mapping(source, target, "prefix")
    counts = np.zeros(source.vocab_size, np.int64)
    inexact = [token for token, data in enumerate(source.token_bytes) if data and data != b"x" and len(data) > 2]
    inexact = [token for token in inexact if target.token_bytes[mapping[token]] != source.token_bytes[token]]
    counts[inexact[:5]] = [3, 9, 1, 5, 50]
    far, near = source.id_of_bytes[b"x"], inexact[4]
    assert source.token_bytes[near][-1:] != source.token_bytes[near][:1]
    mapping[far], mapping[near] = target.id_of_bytes[b"Q"], target.id_of_bytes[source.token_bytes[near][-1:]]
    found = survey_mapping(source, target, mapping, counts)
    assert found.nonsense == 2
    assert [example.is_nonsense for example in found.examples] == [True] * 2 + [False] * 8
    expected = [far, near, inexact[1], inexact[3], inexact[0], inexact[2]]
    assert [example.source_id for example in found.examples[:6]] == expected
    assert str(found.examples[0]) == f'"x" -> "Q"  (source id {far} -> target id {target.id_of_bytes[b"Q"]})'
    mapping[far], counts[far] = UNMAPPED, 10
    lost = survey_mapping(source, target, mapping, counts)
    assert str(lost.examples[1]) == f'"x" -> nowhere  (source id {far})'
    assert (lost.nonsense, len(lost.examples)) == (1, 10)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b" un", '" un"'),
        (b"\n\t\x00", r'"\n\t\x00"'),
        (b'a"\\', r'"a\"\\"'),
        ("é日".encode(), '"é日"'),
        (b"\xf0\x9f", r'"\xf0\x9f"'),
        ("\u200b\u2028".encode(), r'"\u200b\u2028"'),
    ],
)
def test_bytes_are_shown_as_readable_text(data, shown):
    assert quoted(data) == shown


def test_habits_of_a_normalizer_are_found():
    tokenizer = byte_level_with_bos()
    assert traits(PassageTokenizer(tokenizer, "plain")).habits == ()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    found = traits(PassageTokenizer(tokenizer, "normalising", bos="never"))
    assert found.normalizer == ("NFKC", "Lowercase")
    assert found.habits == (
        "lower-cases",
        "composes characters as NFC",
        "replaces compatibility characters as NFKC",
    )
    assert not found.adds_bos and found.has_bos


@pytest.mark.parametrize(
    ("of_system", "expected"),
    [("", "left out"), ("{{ m.content }}", "written"), ("{{ raise_exception('no') }}", "refused"), (None, "")],
)
def test_the_plan_says_what_a_template_does_with_system_messages(of_system, expected):
    tokenizer = byte_level_with_bos()
    if of_system is not None:
        others = "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        tokenizer.chat_template = f"{{% for m in messages %}}{{% if m.role == 'system' %}}{of_system}{others}"
    assert traits(PassageTokenizer(tokenizer, "plain")).system == expected


def test_the_sample_is_spread_and_bounded(folder, tmp_path):
    long = " ".join(SENTENCES) + "\n"
    for index in range(20):
        (tmp_path / f"{index:02}.txt").write_text(long * 400 + str(index), encoding="utf8")
    spec = spec_of(folder, f"corpus.paths=[{tmp_path}/*.txt]")
    flow = derive_flow(spec)
    passages = sample_passages(spec, flow)
    assert SAMPLE_BYTES <= sum(passage.num_bytes for passage in passages) < 1.1 * SAMPLE_BYTES
    assert sum(passage.text.startswith("The quick") for passage in passages) >= 16
    assert not any(passage.ends_document for passage in passages)
    assert passages == sample_passages(spec, flow)
    assert len(flow.corpus_units) == 20 and flow.corpus_units[0].path.endswith("00.txt")


def test_the_plan_of_a_mixture_has_figures_by_domain(folder, tmp_path):
    for name, copies in (("small", 1), ("large", 4)):
        (tmp_path / f"{name}.jsonl").write_text("".join(_line(text) + "\n" for text in DOCUMENTS * copies))
    domains = ", ".join(f"{name}: {{paths: [{tmp_path / name}.jsonl]}}" for name in ("small", "large"))
    plan = engine.plan(spec_of(folder, f"corpus={{domains: {{{domains}}}, exhausted: repeat}}"))
    large, small = plan.domains
    assert (large.name, small.name, large.share, small.share) == ("large", "small", 0.5, 0.5)
    assert (large.passes, small.passes) == pytest.approx((1.0, 4.0), rel=0.01)
    whole = {found.name: found.coverage.given_bytes for found in plan.sources}
    assert large.coverage == pytest.approx(whole) and small.coverage == pytest.approx(whole)
    assert set(small.nats_per_byte) == {TARGET, "plain", "pieces"}
    assert all(nats > 0.0 for domain in plan.domains for nats in domain.nats_per_byte.values())
    text = str(plan)
    assert "2 units in 2 shards of 2 domains" in text
    assert re.search(r"\n  small +50\.0 % +0\.0 MB +1 +4\.0", text)
    assert re.search(r"\n  large +pieces +\d\.\d{4} +\d+\.\d %\n", text)


def test_a_mixture_is_read_to_its_first_or_to_its_last_end():
    domains = [Domain(name, weight, ((CorpusUnit(name, num_bytes=size),),)) for name, weight, size in DOMAINS_OF_SIZES]
    corpus = {"domains": {name: {"paths": [name]} for name, _, _ in DOMAINS_OF_SIZES}, "passes": 2}
    assert passes_read(CorpusSpec(**corpus), domains) == pytest.approx([2.0, 0.5])
    assert passes_read(CorpusSpec(**corpus, exhausted="repeat"), domains) == pytest.approx([8.0, 2.0])
    unknown = [Domain("c", 1.0, ((CorpusUnit("c"),),))]
    assert all(math.isnan(passes) for passes in passes_read(CorpusSpec(**corpus), [*domains, *unknown]))


def test_without_text_or_sources_the_survey_is_empty(folder, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    plan = engine.plan(spec_of(folder, f"corpus.paths=[{tmp_path}/bad.jsonl]"))
    assert str(plan).count("coverage: unknown, the sample has no target row") == 2
    assert str(plan).count("cannot be scored here: the corpus has no text that can be read") == 2
    assert engine.plan(spec_of(folder, "source_models=[]", "objective.lm_loss_weight=1.0")).sources == ()


@pytest.mark.parametrize(
    ("texts", "on_error", "words"),
    [
        (["ab", "q"], "fail", "row 2: .* the text 'q' has no token at all; fix it, or set corpus.on_error: skip"),
        (["q", "qq"], "skip", "none of the first 2 documents can be read by all models; the first one is .*row 1"),
    ],
)
def test_documents_that_a_tokenizer_refuses_are_faults_of_the_plan(folder, tmp_path, texts, on_error, words):
    shutil.copytree(folder / "target", tmp_path / "target")
    file = tmp_path / "target" / "tokenizer.json"
    layout = json.loads(file.read_text())
    layout["normalizer"] = {"type": "Replace", "pattern": {"String": "q"}, "content": ""}
    file.write_text(json.dumps(layout))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    overrides = [f"target_model.checkpoint={tmp_path}/target", f"corpus.paths=[{tmp_path}/a.jsonl]"]
    with pytest.raises(PreflightError, match=words):
        engine.plan(spec_of(folder, *overrides, f"corpus.on_error={on_error}"), score=False)


def test_weights_that_cannot_be_loaded_are_faults_of_the_plan(folder, tmp_path):
    for name in ("plain", "target"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "plain" / "model.safetensors").unlink()
    (tmp_path / "target" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(PreflightError) as caught:
        engine.plan(
            spec_of(
                folder, f"target_model.checkpoint={tmp_path}/target", f"source_models.0.checkpoint={tmp_path}/plain"
            )
        )
    target, source = (str(fault) for fault in caught.value.faults)
    assert target.startswith(f"target_model.checkpoint: {tmp_path}/target/model.safetensors (4 bytes) is cut short")
    assert source.startswith(f"source_models.0.checkpoint: {tmp_path}/plain has no weights")


def test_a_plan_probes_a_source_as_a_run_would(folder, tmp_path):
    shutil.copytree(folder / "plain", tmp_path / "plain")
    weights = load_file(tmp_path / "plain" / "model.safetensors")
    save_file(
        {name: torch.full_like(tensor, math.nan) for name, tensor in weights.items()},
        tmp_path / "plain" / "model.safetensors",
        metadata={"format": "pt"},
    )
    spec = spec_of(folder, f"source_models.0.checkpoint={tmp_path}/plain", "source_models.0.probe=refuse")
    plan = engine.plan(spec)
    name = spec.source_models[0].name
    assert f"distributions: unknown, a run would refuse it: {name}: it predicts a plain text at nan nats" in str(plan)
    (refusal,) = plan.refusals
    assert str(refusal).startswith(
        f"source_models.0: a run would refuse it: {name}: it predicts a plain text at nan nats"
    )
    optional = spec.source_models[0].model_copy(update={"required": False})
    others = (optional, *spec.source_models[1:])
    assert not replace(plan, spec=spec.model_copy(update={"source_models": others})).refusals
    assert math.isnan(plan.sources[0].scores.nats_per_byte)
    assert math.isfinite(plan.sources[0].target_scores.nats_per_byte)
    assert str(pickle.loads(pickle.dumps(plan.sources))) == str(plan.sources)


def test_a_target_without_sound_scores_is_a_fault_of_the_plan(folder, tmp_path):
    shutil.copytree(folder / "target", tmp_path / "target")
    weights = load_file(tmp_path / "target" / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, tmp_path / "target" / "model.safetensors", metadata={"format": "pt"})
    plan = engine.plan(spec_of(folder, f"target_model.checkpoint={tmp_path}/target"))
    assert [fault.where for fault in plan.refusals] == ["target_model"]
    assert "log-probabilities that are not finite" in str(plan.refusals[0])


def test_a_target_whose_top_entries_hold_next_to_nothing_is_no_fault(folder, monkeypatch):
    """Training may begin from random weights."""
    monkeypatch.setattr("actors.sources.probe.LEAST_KEPT_MASS", 2.0)
    plan = engine.plan(spec_of(folder))
    assert plan.sources[0].target_scores.problem.startswith("it cannot be scored here: the target: the kept entries")
    assert "target_model" not in [fault.where for fault in plan.refusals]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare", "--mappings", "nonsense"], "'nonsense' is no mapping; allowed: prefix, exact"),
        (["--mappings", "exact"], "--mappings is of --compare"),
        (["--compare", "--without-scoring"], "--compare needs the models' scores"),
    ],
)
def test_arguments_of_a_comparison_that_do_not_fit_are_refused(capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", QUICKSTART, *arguments])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.timeout(120)  # scores with four models and aligns twice: 15 s of one free core
def test_the_plan_of_the_quickstart(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    plan = engine.plan(engine.load_spec(QUICKSTART, [f"alignment.cache_dir={tmp_path}"]))
    text = str(plan)
    plan.write_page(str(tmp_path / "plan.html"))
    _check_page(plan, (tmp_path / "plan.html").read_text())
    for found in plan.sources:
        scores, numbers = found.scores, found.coverage
        assert 0.8 < numbers.used < 0.95 and 0 < scores.lost_mass < 0.3 and scores.unmapped_mass < 0.01
        assert 1 < scores.nats_per_byte < found.target_scores.nats_per_byte < 3
        assert scores.rows <= 4096
        assert len(found.mapping.examples) == 10 and found.mapping.nonsense == 0
        assert all(str(example) in text for example in found.mapping.examples)
        assert f"used              {100 * numbers.used:.1f} %" in text
        assert numbers.used < numbers.given_bytes <= 1.0
        assert f"{'given bytes':<15}{100 * numbers.given_bytes:>7.1f} %" in text
        assert (
            f"nats per byte     {scores.nats_per_byte:.4f}    target: {found.target_scores.nats_per_byte:.4f}" in text
        )
    assert text.count(" x in the sample") == 30
    assert "nan" not in text and "inf" not in text
    assert max(map(len, text.splitlines())) <= 120


def _check_page(plan, page):
    """The page has the figures of the plan, and the target's and the sources' rows of each scored passage."""
    assert "<title>quickstart: fusion plan</title>" in page and "Planned, not run. avg_ce per passage" in page
    for found, cost in zip(plan.sources, plan.costs[1:], strict=True):
        figures = [f"{found.scores.nats_per_byte:.4f}", f"{100 * found.coverage.given_bytes:.1f} %"]
        assert f'<th scope="row">{found.name}</th>' + "".join(f"<td>{figure}</td>" for figure in figures) in page
        assert f'<th scope="row">{cost.name}</th><td>{cost.parameters:,}</td>' in page
        assert all(escape(example.source_text) in page for example in found.mapping.examples)
    data = data_in(page)
    assert [look["passage"] for look in data["passages"]] == [f"passage {n} of the sample" for n in range(1, 9)]
    for look in data["passages"]:
        assert all(cost >= 0 for cost in look["costs"]) and set(look["gains"]) == {None}
        for row, label, cost in zip(look["own"], look["tokens"], look["costs"], strict=True):
            if label in row[0]:  # what it gives the label is its cost
                assert row[1][row[0].index(label)] == pytest.approx(math.exp(-cost), rel=5e-3)


def test_the_command_line_without_scoring(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    page = tmp_path / "plan.html"
    arguments = ["--without-scoring", "--html", str(page), f"alignment.cache_dir={tmp_path}"]
    assert main(["plan", QUICKSTART, *arguments]) == 0
    assert data_in(page.read_text()) == {} and "<td>-</td>" in page.read_text()
    printed = capsys.readouterr().out
    assert printed.count("not scored (--without-scoring)") == 3
    assert "beyond the top" not in printed and "target: 2" not in printed
    with pytest.raises(SystemExit) as stopped:
        main(["run", QUICKSTART, "--without-scoring"])
    assert stopped.value.code == 2


def test_coverage_of_an_empty_sample_is_nan(folder):
    tokenizer = PassageTokenizer.load(Checkpoint(str(folder / "plain")))
    empty = tokenize(tokenizer, [])
    assert math.isnan(coverage(empty, empty).used)
    assert not empty.counts().any()
