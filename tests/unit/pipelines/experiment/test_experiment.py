"""The experiment's texts, arms and page, without a run."""

import itertools
import json
import math
import os
import shlex
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from engine import load_spec
from engine.spec.presets import PRESETS
from pipelines.experiment import arms
from pipelines.experiment.__main__ import trained_runs
from pipelines.experiment.arms import LM_LOSS_ALONE, SPEC, WEIGHTS, Arm, Run
from pipelines.experiment.bootstrap import ScoredDomain
from pipelines.experiment.choices import choose, try_grid
from pipelines.experiment.domains import DOCUMENT_CHARACTERS, LARGEST_SHARE, deal, folder_domains
from pipelines.experiment.kept import keep, kept
from pipelines.experiment.models import base_folder, expert_folder, expert_job
from pipelines.experiment.page import PAPERS_ORDER, write_page
from pipelines.experiment.real_page import write_real_chapter
from pipelines.experiment.real_tasks import CONTINUATIONS, HEADINGS, MOST_GROUPS, NEXT_WORDS, write_tasks
from pipelines.experiment.real_texts import LARGEST_SHARE as LARGEST_REAL_SHARE
from pipelines.experiment.real_texts import REAL_CORPORA, TASKS, write_real_texts
from pipelines.experiment.results import Choice, Findings, Row
from pipelines.experiment.runs import Laboratory
from pipelines.experiment.texts import CORPUS, EXPERT_QUOTAS, HELD_OUT, VALIDATION, read_texts, write_texts
from pipelines.quickstart.build import passages
from pipelines.quickstart.texts import Document
from pipelines.run.pairwise import MERGED

pytestmark = pytest.mark.timeout(60)

FOLDER = Path("outputs/experiment")
QUOTAS = {"held-out": 600, "corpus": 1200, "expert": 3000}
EXPERT_RATES = {"docs": 3e-3, "code": 5e-3, "headers": 8e-3}
ARMS = (
    *(arms.CONTINUED, arms.DISTILLED, arms.EQUAL, arms.FUSED, *arms.SINGLE),
    *(*arms.ABLATIONS, arms.PAIRWISE, arms.PAPERS),
    *(arms.MIXED, arms.fused_experts(EXPERT_RATES)),
    *(arm for corpus in REAL_CORPORA for arm in arms.real_arms(corpus).all),
)


def run_of(arm, rate, seed):
    return Run(arm, rate, seed, 0.2 if arm.has_sources else LM_LOSS_ALONE)


def files(count, pieces=3, size=40):
    return [
        [Document(f"d/{name}/{number}", "d", f"{name} {number} ".ljust(size, "x")) for number in range(pieces)]
        for name in range(count)
    ]


def file_of(document):
    return document.name.rpartition("/")[0]


def test_no_two_parts_share_a_file():
    parts = deal(files(60), QUOTAS, seed=0)
    held = {part: {file_of(document) for document in documents} for part, documents in parts.items()}
    assert all(held.values())
    assert all(ours.isdisjoint(theirs) for ours, theirs in combinations(held.values(), 2))


def test_parts_are_filled_and_no_file_fills_one():
    parts = deal(files(60, pieces=50), QUOTAS, seed=0)
    for part, quota in QUOTAS.items():
        sizes = Counter()
        for document in parts[part]:
            sizes[file_of(document)] += document.num_bytes
        assert max(sizes.values()) <= quota // LARGEST_SHARE
        assert quota <= sizes.total() < quota + quota // LARGEST_SHARE


def test_dealing_depends_on_names_and_seed_alone():
    given = files(60)
    assert deal(given, QUOTAS, seed=0) == deal(reversed(given), QUOTAS, seed=0)
    assert deal(given, QUOTAS, seed=0) != deal(given, QUOTAS, seed=1)


def test_the_three_largest_files_of_a_folder_are_domains(tmp_path):
    for name, rows in (("small", 1), ("b", 4), ("a", 3), ("c", 5)):
        text = "one line of text that goes on and on\\n" * 100
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{text}"}}\n' * rows)
    domains = folder_domains(tmp_path, {"held-out": 10_000}, seed=0)
    assert list(domains) == ["a", "b", "c"]
    for domain, parts in domains.items():
        assert parts["held-out"]
        assert all(document.domain == domain for document in parts["held-out"])
        assert all(len(document.text) <= DOCUMENT_CHARACTERS for document in parts["held-out"])


def test_a_folder_with_too_few_domains_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has 0 \.parquet and \.jsonl files; setting B needs 3 domains"):
        folder_domains(tmp_path, QUOTAS, seed=0)


def test_learning_rates_are_chosen_on_text_that_is_neither_learned_nor_reported(tmp_path):
    write_texts(tmp_path, {part: files(2)[0] for part in EXPERT_QUOTAS})
    found = {part: read_texts(tmp_path / "a", part) for part in (VALIDATION, HELD_OUT)}
    assert set(found[VALIDATION]) == set(found[HELD_OUT]) == {"docs", "code"}
    texts = {part: {text for domain in found[part].values() for text in domain} for part in found}
    corpus = (tmp_path / "a" / f"{CORPUS}.jsonl").read_text(encoding="utf8").splitlines()
    texts[CORPUS] = {json.loads(line)["text"] for line in corpus}
    assert all(texts.values())
    assert all(ours.isdisjoint(theirs) for ours, theirs in combinations(texts.values(), 2))


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: f"{arm.setting} {arm.name}")
def test_every_arm_is_a_spec(arm):
    shared = arms.SETTINGS[arm.setting].spec
    spec = load_spec(shared, run_of(arm, 4e-3, 2).overrides(FOLDER))
    assert (spec.run.seed, spec.training.optimizer.learning_rate) == (2, 4e-3)
    assert spec.corpus.paths == (str(FOLDER / "texts" / arm.setting / "corpus.jsonl"),)
    assert spec.target_model.checkpoint == str(arms.SETTINGS[arm.setting].beginning(FOLDER, 2))
    assert bool(spec.source_models) == arm.has_sources != arm.name.startswith("continued training")
    setting = arms.SETTINGS[arm.setting]
    assert spec.training.max_steps == setting.max_steps // setting.passes * spec.corpus.passes


def test_the_papers_arm_is_the_preset():
    spec = load_spec(SPEC, Run(arms.PAPERS, 4e-3, 0, *arms.PAPERS.weights).overrides(FOLDER)).model_dump()
    for section, values in PRESETS["fusellm_soft"].items():
        assert {field: spec[section][field] for field in values} == values


def test_an_ablation_changes_one_thing():
    fused = load_spec(SPEC, run_of(arms.FUSED, 4e-3, 0).overrides(FOLDER)).model_dump()
    for arm in arms.ABLATIONS:
        changed = load_spec(SPEC, run_of(arm, 4e-3, 0).overrides(FOLDER)).model_dump()
        different = [
            (section, key)
            for section, values in fused.items()
            if isinstance(values, dict)
            for key in values
            if values[key] != changed[section][key] and (section, key) != ("run", "output_dir")
        ]
        assert len(different) + (fused["source_models"] != changed["source_models"]) == 1, arm.name


def test_the_merged_pairs_are_where_the_recipe_exports_them():
    assert arms.PAIRWISE.export == os.path.join("merges", MERGED)


def test_the_experts_of_a_seed_are_the_sources_of_its_fusion():
    spec = load_spec(SPEC, run_of(arms.fused_experts(EXPERT_RATES), 4e-3, 1).overrides(FOLDER))
    assert [source.name for source in spec.source_models] == list(EXPERT_RATES)
    assert spec.source_models[2].checkpoint.endswith("expert-headers-rate-0.008-seed-1")


def test_an_expert_continues_its_seeds_base_on_its_own_domain():
    documents = [Document("docs/a/0", "docs", "prose " * 100), Document("headers/b/0", "headers", "int b; " * 100)]
    job = expert_job(FOLDER, "headers", documents, 5e-3, seed=1)
    assert job.start == base_folder(FOLDER, 1)
    assert job.folder == expert_folder(FOLDER, "headers", 5e-3, 1)
    assert {text.split()[0] for text, _ in itertools.islice(passages(job.recipe, documents), 5)} <= {"int", "b;"}


def test_runs_do_not_share_a_folder():
    both = itertools.product(ARMS, (3e-3, 5e-3), (0, 1), (0.2, 0.5))
    runs = [Run(*one) for one in both if one[0].has_sources or one[3] == 0.2]
    assert len({run.folder(FOLDER) for run in runs}) == len(runs)


def row(name, mean, seeds=3, **more):
    documents = np.linspace(-0.5, 0.5, 11)
    scores = [
        {"code": ScoredDomain((mean + 0.001 * seed + documents) * 100, np.full(11, 100.0))} for seed in range(seeds)
    ]
    return Row(name, scores, **more)


def findings(fusion):
    choice = Choice("fusion", {(3e-3, 0.2): 2.5, (5e-3, 0.2): 2.4, (5e-3, 0.1): 2.41})
    compared = [row("target before", 3.0), row("continued training", 2.5, rate=3e-3, overrides=("a=b",))]
    experts = [row("expert code", 2.6), row("expert docs", 3.1), row("ensemble of the experts", 2.8), row("base", 2.9)]
    experts += [row("experts merged (linear)", 2.45), row("continued training", 2.5)]
    compared += [row("distillation from an equal source", 2.3), *(row(arm.name, 2.45) for arm in arms.SINGLE)]
    compared.append(row(arms.PAPERS.name, 2.48, overrides=("a=[{b: c}]", "d=one (e)")))
    fused = row("fusion", fusion, rate=5e-3, weight=0.2)
    ablations = [row("K 10", 2.47, seeds=1), row("equal weights", 2.46, seeds=1), row("MinCE", 2.45, seeds=1)]
    return [
        Findings("a", [choice], [*compared, fused], ablations, {"avg_ce": 1.42, "min_ce": 1.44, "uniform": 1.45}),
        Findings("b", [choice], [*experts, fused]),
    ]


def page(folder, fusion):
    path = folder / "RESULTS.md"
    write_page(path, findings(fusion), minutes=1.0)
    assert {plot.name for plot in (folder / "figures").iterdir()} >= {
        "setting_a.png",
        "setting_b.png",
        "ablations_a.png",
    }
    return path.read_text(encoding="utf8")


def test_the_page_says_what_held(tmp_path):
    text = page(tmp_path, 2.4)
    assert "**Fusion beats continued training** by -0.1000 [-0.1000, -0.1000]" in text
    assert "**Fusion of three sources beats the best single one, one source (llama-docs)** by -0.0500" in text
    assert f"**Fusion beats {arms.PAPERS.name}** by -0.0800" in text
    assert "Fusion gains 50% of what distillation from an equal source gains" in text
    assert "| fusion | 2.4100 | **2.4000** |" in text, "the weights, in order"
    assert "at the edge of the rates that were tried: fusion." in text
    assert "at the edge of the weights that were tried: fusion." in text
    assert f"The paper's order: {' < '.join(PAPERS_ORDER)}. Ours is the same." in text
    assert "| K 10 | 1 | 2.4700 | +0.0700" in text
    assert "nats per byte: fusion 1.4200 < MinCE 1.4400 < equal weights 1.4500." in text
    assert "seed 0: fusion 2.4000 < MinCE 2.4500 < equal weights 2.4600.\nThe order is the same." in text


def test_a_shell_reads_the_commands_of_the_page(tmp_path):
    [command] = [line for line in page(tmp_path, 2.4).splitlines() if "d=one" in line]
    assert shlex.split(command)[-2:] == ["a=[{b: c}]", "d=one (e)"]


def test_the_page_says_what_did_not_hold(tmp_path):
    text = page(tmp_path, 2.5)
    assert "No difference is shown between fusion and continued training: +0.0000" in text
    assert "Ours is not the same." in text
    assert "seed 0: MinCE 2.4500 < equal weights 2.4600 < fusion 2.5000.\n**The order is not the same**" in text
    assert "**Fusion is worse than experts merged (linear)** by +0.0500" in text


def test_the_rate_and_weight_with_the_fewest_bits_are_chosen():
    choice = Choice(
        "fusion", {(3e-3, 0.2): 2.5, (5e-3, 0.2): 2.4, (8e-3, 0.2): 2.6, (5e-3, 0.1): 2.3, (3e-3, 0.1): 2.4}
    )
    assert (choice.rate, choice.weight) == (5e-3, 0.1)
    assert choice.by_rate == {5e-3: 2.3, 3e-3: 2.4}
    assert choice.by_weight == {0.2: 2.4, 0.1: 2.3}


@pytest.mark.parametrize(
    ("best_rate", "best_weight", "tried"),
    [(5e-3, 0.2, 5), (8e-3, 0.2, 6), (2e-2, 0.2, 7), (1.2e-3, 0.2, 7), (5e-3, 0.1, 8), (8e-3, 0.05, 12)],
)
def test_places_are_tried_until_the_best_lies_inside(best_rate, best_weight, tried):
    found = try_grid(
        arms.RATES,
        WEIGHTS,
        lambda places: [abs(np.log(rate / best_rate)) + abs(np.log(weight / best_weight)) for rate, weight in places],
    )
    assert min(found, key=found.__getitem__) == (best_rate, best_weight)
    assert len(found) == tried


def test_the_best_rate_may_depend_on_the_weight():
    best_rate = dict.fromkeys(WEIGHTS, 3e-3) | {0.1: 5e-3}

    def bits(rate, weight):
        return abs(np.log(rate / best_rate[weight])) + 2 * abs(np.log(weight / 0.1))

    found = try_grid(arms.RATES, WEIGHTS, lambda places: [bits(*place) for place in places])
    assert min(found, key=found.__getitem__) == (5e-3, 0.1)
    assert (3e-3, 0.2) in found


def test_one_weight_is_a_grid():
    found = try_grid(arms.RATES, (0.8,), lambda places: [abs(np.log(rate / 8e-3)) for rate, _ in places])
    assert [*found] == [(3e-3, 0.8), (5e-3, 0.8), (8e-3, 0.8), (1.2e-2, 0.8)]


class ChoosingLaboratory:
    """Knows what each run would measure; the first arm's first rates come only after the second arm's weights."""

    folder = FOLDER

    def __init__(self, first: Arm, second: Arm, best: dict[Arm, float]):
        self._first, self._second, self._best = first, second, best
        self._second_is_done = threading.Event()
        self.failing: Arm | None = None

    def run(self, runs):
        if runs and runs[0].arm is self.failing:
            raise RuntimeError(f"{self.failing.name} failed; see its log")
        if runs and runs[0].arm is self._first:
            assert self._second_is_done.wait(20)

    def export(self, run):
        return run

    def means(self, setting, part, runs):
        assert part == VALIDATION and all(run.arm.setting == setting and run.seed == 0 for run in runs)
        if any(run.weight == 0.05 for run in runs):
            self._second_is_done.set()
        return [abs(np.log(run.rate / self._best[run.arm])) + abs(run.weight - 0.1) for run in runs]


def test_no_arm_waits_for_another_to_choose():
    best = {arms.CONTINUED: 8e-3, arms.FUSED: 3e-3}
    laboratory = ChoosingLaboratory(*best, best)
    continued, fused = choose(laboratory, list(best), arms.RATES)
    assert (continued.arm, continued.rate, continued.weight) == ("continued training", 8e-3, LM_LOSS_ALONE)
    assert (fused.arm, fused.rate, fused.weight) == ("fusion", 3e-3, 0.1)
    assert (len(continued.by_rate), sorted(fused.by_weight)) == (4, [0.05, 0.1, 0.2, 0.5])


def test_a_run_that_fails_ends_the_choosing_at_once():
    best = {arms.CONTINUED: 8e-3, arms.FUSED: 3e-3}
    laboratory = ChoosingLaboratory(*best, best)
    laboratory.failing = arms.FUSED  # so that continued training would wait for ever
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="fusion failed"):
        choose(laboratory, list(best), arms.RATES)
    laboratory._second_is_done.set()
    assert time.monotonic() - started < 10


def test_an_arm_takes_the_rate_and_weight_that_were_chosen():
    choices = [
        Choice("fusion", {(3e-3, 0.2): 2.5, (5e-3, 0.2): 2.4, (5e-3, 0.1): 2.3}),
        Choice("continued training", {(8e-3, LM_LOSS_ALONE): 3.0}),
    ]
    found = trained_runs((arms.FUSED, arms.PAIRWISE, arms.CONTINUED), choices, range(2))
    assert [(run.rate, run.weight) for run in found[arms.PAIRWISE]] == [(5e-3, 0.1)] * 2
    assert "objective.lm_loss_weight=0.1" in found[arms.FUSED][1].overrides(FOLDER)
    assert "objective.lm_loss_weight=1" in found[arms.CONTINUED][0].overrides(FOLDER)


def test_continued_training_in_one_pass_has_as_many_steps_as_a_pass_has():
    german = arms.real_arms("german")
    found = run_of(german.once, 5e-5, 0).overrides(FOLDER)
    assert found.index("corpus.passes=4") < found.index("corpus.passes=1")
    assert found[-1] == "training.max_steps=8", "the last one counts"
    assert arms.real_arms("mixture").once is None


def test_a_finished_run_is_repeated_only_if_its_settings_have_changed(tmp_path):
    """Defaults count, which a command does not show. Its old output goes: a run refuses a folder that holds another's.

    Checkpoints go in any case.
    """
    laboratory, begun = Laboratory(tmp_path, 10, lambda line: None), []

    def submit(_work, _spec, _overrides, log, _seconds):
        (log.parent / "checkpoints" / "step-00000001").mkdir(parents=True)
        (log.parent / "pairs" / "one" / "checkpoints").mkdir(parents=True)
        (log.parent / "export").mkdir()
        begun.append(log)
        done: Future[float] = Future()
        done.set_result(1.5)
        return done

    laboratory._benches = SimpleNamespace(submit=submit)
    run = run_of(arms.CONTINUED, 5e-3, 0)
    for _ in range(2):
        laboratory.run([run])
    assert len(begun) == 1 and laboratory.seconds(run) == 1.5
    assert {place.name for place in run.folder(tmp_path).iterdir()} == {"export", "pairs", "done.json"}
    assert not [*run.folder(tmp_path).rglob("checkpoints")]
    old = run.folder(tmp_path) / "old"
    old.touch()
    done = run.folder(tmp_path) / "done.json"
    settings = json.loads(done.read_text())["settings"]
    done.write_text(json.dumps({"settings": settings.replace("split_tokens: product", "split_tokens: first_piece")}))
    laboratory.run([run])
    assert len(begun) == 2 and laboratory.seconds(run) == 1.5 and not old.exists()


def test_a_seed_has_a_target_of_its_own_where_targets_are_made_here():
    for setting in ("a", "b"):
        assert len({arms.SETTINGS[setting].beginning(FOLDER, seed) for seed in range(3)}) == 3


def test_a_chapter_leaves_the_others(tmp_path):
    path = tmp_path / "RESULTS.md"
    german = arms.real_arms("german")
    means = {"target before": 1.7, "continued training": 1.5}
    means |= {german.once.name: 1.6} | {arm.name: 1.4 for arm in (german.gemma, german.itself, german.both)}
    tasks = [dict.fromkeys(HEADINGS, value) for value in (0.25, 0.75)]
    rows = [row(name, mean, seeds=2, tasks=tasks) for name, mean in means.items()]
    found = Findings(
        "german",
        [Choice(german.gemma.name, {(1e-4, 0.2): 1.4, (2e-4, 0.2): 1.5})],
        rows,
        machine="2 cores",
        minutes=3.0,
    )
    write_real_chapter(path, [found])
    alone = path.read_text(encoding="utf8")
    assert "**Fusion with Gemma beats continued training** by -0.1000" in alone
    assert "**Fusion with Gemma beats continued training, one pass** by -0.2000" in alone
    assert "About 12,000 bytes of handbook_de, read 4 times: 32 steps of 512 tokens." in alone
    assert "| fusion with both | 0.5 | 0.5 | 0.5 |" in alone, "means over seeds"
    assert "No difference is shown between fusion with both and fusion with Gemma alone" in alone
    assert "2 cores; 3 minutes." in alone
    both = page(tmp_path, 2.4)
    assert both.startswith("# Does fusion work?") and both.endswith(alone)
    write_real_chapter(path, [found])
    assert path.read_text(encoding="utf8") == both


def test_a_chapter_compares_each_domain_where_there_are_several(tmp_path):
    mixture = arms.real_arms("mixture")
    names = ("target before", *(arm.name for arm in mixture.all))
    rows = [row(name, 1.5, seeds=2, tasks=[dict.fromkeys(HEADINGS, 0.5)] * 2) for name in names]
    for one in rows:
        better = 0.1 if one.name == mixture.gemma.name else 0.0
        for scores in one.scores:
            scores["wiki"] = ScoredDomain(scores["code"].bits - 100 * better, scores["code"].num_bytes)
    choices = [Choice(mixture.gemma.name, {(1e-4, 0.2): 1.4})]
    write_real_chapter(tmp_path / "RESULTS.md", [Findings("mixture", choices, rows)])
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf8")
    assert "| code | 11 | +0.0000 [+0.0000, +0.0000] | +0.0000 [+0.0000, +0.0000] |" in text
    assert "| wiki | 11 | -0.1000 [-0.1000, -0.1000] | +0.0000 [+0.0000, +0.0000] |" in text


def test_findings_that_were_kept_give_the_same_page(tmp_path):
    assert kept(tmp_path / "figures", "a") is None
    text = page(tmp_path, 2.4)
    again = [kept(tmp_path / "figures", setting) for setting in ("a", "b")]
    assert again[0].choices == findings(2.4)[0].choices
    write_page(tmp_path / "RESULTS.md", again, minutes=1.0)
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf8") == text
    tasks = replace(again[0], setting="c", machine="2 cores", rows=[row("base", 2.0, tasks=[{"word": 0.5}])])
    keep(tmp_path / "figures", tasks)
    [found] = kept(tmp_path / "figures", "c").rows
    assert (found.tasks, found.overrides, math.isnan(found.seconds)) == ([{"word": 0.5}], (), True)


def test_tasks_are_made_of_the_text(tmp_path):
    text = " ".join(f"word{number} goes before others" for number in range(600))
    write_tasks(tmp_path, [Document("d/0", "d", text)])
    questions, words = (
        [json.loads(line) for line in (tmp_path / f"{task}.jsonl").read_text().splitlines()]
        for task in (CONTINUATIONS, NEXT_WORDS)
    )
    assert len(questions) == 4 * MOST_GROUPS
    for question in questions:
        assert question["context"] + question["choices"][question["answer"]] in text
        assert sum(question["context"] + choice in text for choice in question["choices"]) == 1
    assert {word["word"] for word in words} <= {" goes", " before", " others"}
    assert all(f"{word['context']}{word['word']} " in text for word in words)


def test_real_texts_share_no_chapter(tmp_path):
    tables = {"id": [], "text": []}
    for chapter in range(120):
        tables["id"].append(str(chapter))
        tables["text"].append(f"chapter {chapter} " + "some words " * 220)
    for name in REAL_CORPORA["mixture"].files:
        parquet.write_table(pyarrow.table(tables), tmp_path / f"{name}.parquet")
    write_real_texts(tmp_path / "texts", tmp_path)
    for corpus, (names, num_bytes, _, _) in REAL_CORPORA.items():
        chapters = {}
        for part in (HELD_OUT, VALIDATION):
            found = read_texts(tmp_path / "texts" / corpus, part)
            assert set(found) == set(names)
            chapters[part] = {text for texts in found.values() for text in texts}
        lines = (tmp_path / "texts" / corpus / f"{CORPUS}.jsonl").read_text(encoding="utf8").splitlines()
        size = sum(len(json.loads(line)["text"]) for line in lines)
        assert (tmp_path / "texts" / corpus / TASKS / f"{CONTINUATIONS}.yaml").exists()
        assert num_bytes <= size < num_bytes * (1 + 1 / LARGEST_REAL_SHARE)
    with pytest.raises(ValueError, match=r"lacks .*handbook_de\.parquet"):
        write_real_texts(tmp_path / "texts", tmp_path / "elsewhere")
