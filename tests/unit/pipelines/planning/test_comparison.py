"""The comparison of ways to fuse: costs against plain Python, and the target as its own teacher."""

import math

import numpy as np
import pytest
import yaml

import engine
from engine.method.rows import FusedRows
from engine.records import NO_TOKEN, rows_of
from engine.spec.loading import dump_spec
from pipelines.planning.comparison import Comparison, _costs, compare
from pipelines.planning.plan_text import GUIDE, OWN_IS_MISSING, comparison_lines
from pipelines.planning.scored_sample import TARGET, ScoredSample
from pipelines.planning.survey import scored_sample
from pipelines.stream.sizes import derive_flow

pytestmark = pytest.mark.timeout(120)

MODELS = "pipelines/quickstart/models"


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[engine.FusionSpec, ScoredSample, Comparison]:
    """The quickstart's target with itself and another model as its sources."""
    sources = [{"name": name, "checkpoint": f"{MODELS}/{name}"} for name in ("mistral-target", "gpt2-code")]
    cache = tmp_path_factory.mktemp("tables")
    spec = engine.load_spec(
        "pipelines/specs/quickstart.yaml", [f"source_models={sources}", f"alignment.cache_dir={cache}"]
    )
    flow = derive_flow(spec)
    scored = scored_sample(spec, flow)
    return spec, scored, compare(spec, flow, scored)


def test_a_model_teaches_itself_all_rows_at_its_own_cost(compared):
    _, _, found = compared
    target, by_offsets, by_bytes = (
        next(teacher for teacher in found.teachers if (teacher.rule, teacher.tokens) == wanted)
        for wanted in ((TARGET, ""), ("mistral-target", "byte_offset"), ("mistral-target", "bytes"))
    )
    assert target.taught == by_offsets.taught == by_bytes.taught == 1.0
    assert by_offsets.nats_per_byte == target.nats_per_byte
    assert by_bytes.nats_per_byte == pytest.approx(target.nats_per_byte, rel=0.02)  # what it never writes is left out


def test_costs_are_those_of_plain_python():
    fused = FusedRows(
        ids=np.array([[3, 5], [7, NO_TOKEN], [3, 5], [NO_TOKEN, NO_TOKEN]], np.int32),
        probs=np.array([[0.5, 0.25], [0.75, 0.0], [0.5, 0.25], [0.0, 0.0]], np.float16),
        is_fused=np.array([True, True, True, False]),
        win_share=np.zeros((1, 1)),
        cross_entropy=np.zeros((1, 1)),
        covered_rows=np.zeros((1, 1)),
    )
    costs = _costs(fused, np.array([5, 2, 9, NO_TOKEN], np.int32), vocabulary=10)
    shares = (0.25, 0.25 / 9, 0.25 / 8)
    assert costs[:3] == pytest.approx([-math.log(0.99 * share + 0.01 / 10) for share in shares])


def test_the_target_costs_what_its_scores_say(compared):
    """Near enough: the mixture moves each label by a hundredth, the ways have rows of their own."""
    _, scored, found = compared
    nats = -sum(row.sum() for row in rows_of(scored.table[f"{TARGET}/token_logprobs"]))
    num_bytes = sum(passage.num_bytes for passage in scored.passages)
    (target,) = (teacher for teacher in found.teachers if teacher.rule == TARGET)
    assert target.nats_per_byte == pytest.approx(nats / num_bytes, rel=0.15)


def test_the_cheapest_comes_first_and_the_spec_is_marked(compared):
    spec, _, found = compared
    costs = [teacher.nats_per_byte for teacher in found.teachers]
    assert costs == sorted(costs) and len(costs) == 1 + 2 * (3 + 2)
    assert 0 < found.common_rows < found.rows
    taught = {(teacher.rule, teacher.tokens): teacher.taught for teacher in found.teachers}
    assert taught["gpt2-code", "bytes"] > taught["gpt2-code", "byte_offset"]
    text = "\n".join(comparison_lines(found, spec))
    (marked,) = (line for line in text.splitlines() if "<- the spec" in line)
    assert marked.split()[:3] == ["avg_ce", "bytes", "prefix"]
    assert OWN_IS_MISSING not in text and GUIDE in text


def test_the_authors_settings_change_no_way_but_byte_offset(compared):
    spec, scored, found = compared
    document = yaml.safe_load(dump_spec(spec)) | {"preset": "fusellm_soft"}
    for section in ("alignment", "fusion", "objective"):
        del document[section]
    same = [f"fusion={{top_k: {spec.fusion.top_k}, temperature: {spec.fusion.temperature}}}"]
    authors = engine.load_spec(document, [*same, f"alignment.cache_dir={spec.alignment.cache_dir}"])
    assert (authors.fusion.arithmetic, authors.alignment.tokens) == ("fusellm", "min_edit")
    theirs = compare(authors, derive_flow(authors), scored, ["prefix"])
    ways, other_ways = (
        {(way.rule, way.tokens): way.nats_per_byte for way in one.teachers if way.tokens != "byte_offset"}
        for one in (found, theirs)
    )
    assert ways == other_ways and len(ways) == 1 + 3 + 2
    assert OWN_IS_MISSING in "\n".join(comparison_lines(theirs, authors))
