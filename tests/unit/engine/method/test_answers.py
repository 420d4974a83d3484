"""Answers of conversations: aligned across templates, fused, learned, and nothing else is."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.aligner import Aligner
from actors.monitor import NoMeter
from actors.sources.source_model import SourceModel
from actors.training.target_model import TargetModel
from engine.blocks.packing import Packer
from engine.errors import RecordError
from engine.method.alignment import SourceAlignment
from engine.method.answers import answer_offsets, target_answers
from engine.method.canonical import CanonicalPairs
from engine.method.fusion import fuse, whole_passages
from engine.method.rows import FusedRows, ScoredRows
from engine.method.vocabulary import with_turn_end
from engine.model_files.checkpoint import Checkpoint
from engine.records import NO_TOKEN, PASSAGE, flat_values, rows_of, schema
from engine.spec import AlignmentSpec, FusionRuleSpec, ObjectiveSpec, SourceModelSpec, TargetModelSpec, TrainingSpec
from engine.text.chat import ChatTemplate, Rendering, content_of
from engine.text.tokenization import PassageTokenizer
from pipelines.evaluation.bits_per_byte import score_texts
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tiny_tokenizers import tokenizer_folders

MESSAGES = schema(PASSAGE).field("messages").type

TEMPLATES = Path("pipelines/specs/chat_templates").absolute()
TOP_K, LENGTH = 8, 128
CONVERSATIONS = [
    [
        {"role": "user", "content": "The quick brown fox?"},
        {"role": "assistant", "content": "jumps over the lazy dog."},
        {"role": "user", "content": "And 1995?"},
        {"role": "assistant", "content": "2024, 3.14159; emoji 🙂"},
    ],
    [
        {"role": "system", "content": "def main():"},
        {"role": "user", "content": "print(index)"},
        {"role": "assistant", "content": "for index in range(10):\n    print(index)"},
    ],
]
#: With marks for the assistant's words, so that transformers itself shows which tokens these are.
MARKED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}Answer:\n{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    tokenizers = {path.name: path for path in tokenizer_folders(tmp_path_factory.mktemp("tokenizers"))}
    return {name: tiny_checkpoint(folder / name, "llama", path, seed=len(name)) for name, path in tokenizers.items()}


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("templates") / "marked.jinja"
    path.write_text(MARKED)
    return str(path)


def style(name: str) -> str:
    return str(TEMPLATES / f"{name}.jinja")


def passages() -> pa.Table:
    texts = [content_of(messages) for messages in CONVERSATIONS]
    columns = {
        "passage_id": [f"0/a.jsonl:{row}:0" for row in range(len(texts))],
        "text": texts,
        "num_bytes": [len(text.encode()) for text in texts],
        "context_bytes": [0] * len(texts),
        "ends_document": [True] * len(texts),
        "messages": CONVERSATIONS,
    }
    fields = schema(PASSAGE)
    return pa.table([pa.array(columns[field.name], field.type) for field in fields], fields)


def scored(batch: pa.Table, name: str, checkpoint: str, template: str) -> pa.Table:
    source = SourceModelSpec(
        name=name, checkpoint=checkpoint, chat_template=template, backend="transformers", dtype="float32", probe="off"
    )
    return SourceModel(source, TOP_K)(batch)


def fused(batch: pa.Table, target: Checkpoint, sources: dict[str, Checkpoint], tmp_path: Path) -> pa.Table:
    fusion, alignment = (
        FusionRuleSpec(rule="min_ce", top_k=TOP_K),
        AlignmentSpec(tokens="byte_offset", cache_dir=str(tmp_path)),
    )
    return Aligner(target, list(sources.items()), fusion, alignment, [], NoMeter(), conversations=True)(batch)


def aligned(checkpoint: str, source_style: str, target_style: str, tmp_path: Path) -> tuple[pa.Table, pa.Table]:
    """A model aligned with itself, but for the template: its own columns, and what is fused of them."""
    names = {kind: Checkpoint(checkpoint, chat_template=style(kind)) for kind in (source_style, target_style)}
    batch = scored(passages(), "same", checkpoint, style(source_style))
    return batch, fused(batch, names[target_style], {"same": names[source_style]}, tmp_path)


@pytest.mark.parametrize(("source_style", "target_style"), [("headings", "chatml"), ("vicuna", "inst")])
def test_one_tokenizer_under_two_templates_is_aligned_throughout(checkpoints, tmp_path, source_style, target_style):
    checkpoint = checkpoints["byte-level-with-bos"]
    batch, table = aligned(checkpoint, source_style, target_style, tmp_path)
    for row in range(len(CONVERSATIONS)):
        is_fused, is_learned = (rows_of(table[name])[row] for name in ("is_fused", "is_learned"))
        answers = sum(message["role"] == "assistant" for message in CONVERSATIONS[row])
        # Llama-2's template has a space before the turn's end. It is learned, but no other template knows it.
        assert is_learned.sum() - is_fused.sum() == (answers if target_style == "inst" else 0)
        assert not is_fused[~is_learned].any()
        kept = rows_of(table["fused_ids"])[row].reshape(-1, TOP_K)[is_fused]
        rows = rows_of(batch["same/topk_ids"])[row].reshape(-1, TOP_K)
        # Entries that float16 makes alike are in order of their ids.
        assert np.sort(kept).tolist() == np.sort(rows).tolist(), "every row of the source, in order, none twice"
        assert rows_of(table["covered_rows"])[row].tolist() == [is_fused.sum()]


@pytest.mark.parametrize("tokens", ["byte_offset", "bytes"])
def test_what_a_template_writes_after_an_answer_is_not_taken_for_its_text(checkpoints, tmp_path, tokens):
    """The source's template has a space before the turn's end. Without it the answer would go on half of the time."""
    messages = [{"role": "user", "content": "The fox?"}, {"role": "assistant", "content": "the dog"}]
    source, target = (
        PassageTokenizer.load(Checkpoint(checkpoints["sentencepiece-like"], chat_template=style(kind)))
        for kind in ("inst", "chatml")
    )
    rendering = ChatTemplate(source).encode(messages)
    rows = target_answers([ChatTemplate(target).encode(messages)], [0], [True]).rows
    places = rendering.rows()
    said = np.append(rendering.token_ids[places][1:], source.turn_end_id)
    going_on = next(token for data, token in source.id_of_bytes.items() if data.startswith(b" ") and len(data) > 1)
    probs = np.full((len(places), 2), [0.99, 0.0])
    probs[-2] = 0.5, 0.5
    scored = ScoredRows(
        offsets=np.array([0, len(places)]),
        token_ids=rendering.token_ids[places],
        end_bytes=rendering.end_bytes[places],
        topk_ids=np.stack([said, np.full(len(said), going_on)], axis=1).astype(np.int32),
        topk_logprobs=np.log(np.maximum(probs, 1e-7)).astype(np.float16),
        token_logprobs=np.log(probs[:, 0]).astype(np.float32),
    )
    alignment = AlignmentSpec(tokens=tokens, cache_dir=str(tmp_path))
    aligned_rows = SourceAlignment(source, target, alignment, [], True).align(["the dog"], rows, scored)
    pairs = CanonicalPairs(target) if tokens == "bytes" else None
    found = fuse(rows, [aligned_rows], FusionRuleSpec(rule="uniform", top_k=2), target.vocab_size, ["a"], True, pairs)
    last = len(rows.token_ids) - 2
    assert rows.token_ids[last + 1] == target.turn_end_id
    taught = dict(zip(found.ids[last].tolist(), found.probs[last].tolist(), strict=True))
    assert taught[target.turn_end_id] > 0.98


def test_a_first_token_with_the_templates_space_is_aligned_only_with_its_like(checkpoints, tmp_path):
    checkpoint = checkpoints["byte-level-with-bos"]
    _, table = aligned(checkpoint, "vicuna", "chatml", tmp_path)
    template = ChatTemplate(PassageTokenizer.load(Checkpoint(checkpoint, chat_template=style("chatml"))))
    for row, messages in enumerate(CONVERSATIONS):
        missing = rows_of(table["is_learned"])[row] & ~rows_of(table["is_fused"])[row]
        firsts = [first for first, _ in template.encode(messages).answers]
        assert missing[firsts].all()
        assert missing.sum() <= 2 * len(firsts), "a token later both have fallen into step"


@pytest.mark.parametrize("name", ["byte-level-with-bos", "byte-level-without-bos", "sentencepiece-like"])
def test_what_is_learned_is_what_transformers_masks(checkpoints, marked, tmp_path, name):
    checkpoint = Checkpoint(checkpoints[name], chat_template=marked)
    table = fused(passages(), checkpoint, {}, tmp_path)
    tokenizer = PassageTokenizer.load(checkpoint).hugging_face
    for row, messages in enumerate(CONVERSATIONS):
        expected = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        learned = rows_of(table["is_learned"])[row]
        mask = expected["assistant_masks"][1 : len(learned)]
        assert rows_of(table["token_ids"])[row].tolist() == expected["input_ids"][: len(learned)]
        assert learned.tolist() == [*map(bool, mask), False]


@pytest.mark.usefixtures("process_group")
def test_no_loss_on_what_the_assistant_does_not_say(checkpoints, tmp_path):
    target, source = checkpoints["byte-level-with-bos"], checkpoints["sentencepiece-like"]
    names = [Checkpoint(target, chat_template=style("chatml")), Checkpoint(source, chat_template=style("inst"))]
    table = fused(scored(passages(), "other", source, style("inst")), names[0], {"other": names[1]}, tmp_path)
    blocks = Packer(LENGTH, TOP_K)(table, np.arange(len(table)), np.zeros((len(table), 1), np.int64))
    rows = hidden_gradients(target, blocks)
    learned = flat_values(blocks["loss_mask"])[0]
    assert 0 < learned.sum() < 0.7 * (flat_values(blocks["segment_ids"])[0] > 0).sum()
    assert (np.abs(rows[learned]).sum(axis=1) > 0).all(), "every token of an answer is learned"
    assert not rows[~learned].any(), "exactly zero, not small"
    assert not flat_values(blocks["fusion_mask"])[0][~learned].any()
    assert flat_values(blocks["fusion_mask"])[0].sum() > 0.3 * learned.sum()


def hidden_gradients(checkpoint: str, blocks: pa.Table) -> np.ndarray:
    """The gradient of both losses with respect to the hidden state of each row, [B*L, D]."""
    training = TrainingSpec(block_length=LENGTH, global_batch_blocks=len(blocks))
    section, objective = TargetModelSpec(checkpoint=checkpoint), ObjectiveSpec(lm_loss_weight=0.5, full_gain=0.0)
    target = TargetModel(section, training, objective, TOP_K, torch.device("cpu"))
    kept = []
    base_model = target.model.model.base_model
    base_model.register_forward_hook(lambda module, inputs, output: kept.append(output.last_hidden_state))
    loss, _, _, _ = target.model(target._blocks(blocks), (1.0, 1.0), torch.zeros(1))
    (gradient,) = torch.autograd.grad(loss, kept)
    return gradient.flatten(0, 1).numpy()


def test_changing_the_question_changes_the_prompt_and_no_label(checkpoints, tmp_path):
    target = Checkpoint(checkpoints["byte-level-with-bos"], chat_template=style("chatml"))
    before = fused(passages(), target, {}, tmp_path)
    changed = [[{**m, "content": "x"} if m["role"] == "user" else m for m in messages] for messages in CONVERSATIONS]
    position = passages().column_names.index("messages")
    after = fused(
        passages().set_column(position, "messages", pa.array(changed, MESSAGES)),
        target,
        {},
        tmp_path,
    )
    for row in range(len(CONVERSATIONS)):
        ids = [rows_of(table["token_ids"])[row] for table in (before, after)]
        learned = [rows_of(table["is_learned"])[row] for table in (before, after)]
        labels = [tokens[1:][mask[:-1]].tolist() for tokens, mask in zip(ids, learned, strict=True)]
        assert len(ids[0]) > len(ids[1])
        assert labels[0] == labels[1]


def test_the_source_is_scored_on_its_answers_alone(checkpoints, tmp_path):
    checkpoint = checkpoints["sentencepiece-like"]
    batch = scored(passages(), "one", checkpoint, style("inst"))
    name = Checkpoint(checkpoint, chat_template=style("inst"))
    table = fused(batch, name, {"one": name}, tmp_path)
    for row, messages in enumerate(CONVERSATIONS):
        rendering = ChatTemplate(PassageTokenizer.load(name)).encode(messages)
        ends, nats = rendering.end_bytes[rendering.rows()], -rows_of(batch["one/token_logprobs"])[row]
        # A row that has consumed a whole answer predicts the turn's end, which has no bytes.
        whole = [rendering.end_bytes[last] for first, last in rendering.answers for _ in range(first, last)]
        expected = nats[ends < whole].sum() / len(content_of(messages).encode())
        np.testing.assert_allclose(rows_of(table["cross_entropy"])[row], [expected], rtol=1e-6)


@pytest.mark.parametrize("kind", ["inst", "chatml", "vicuna"])
def test_held_out_conversations_are_scored_on_the_contents_of_answers(checkpoints, kind):
    checkpoint = checkpoints["byte-level-with-bos"]
    batch, name = scored(passages(), "one", checkpoint, style(kind)), Checkpoint(checkpoint, chat_template=style(kind))
    (found,) = score_texts(name, {"chats": CONVERSATIONS}, LENGTH, batch_tokens=200).values()
    for row, messages in enumerate(CONVERSATIONS):
        rendering = ChatTemplate(PassageTokenizer.load(name)).encode(messages)
        whole = [rendering.end_bytes[last] for first, last in rendering.answers for _ in range(first, last)]
        inside = rendering.end_bytes[rendering.rows()] < whole
        np.testing.assert_allclose(found[row].nats, -rows_of(batch["one/token_logprobs"])[row][inside], atol=1e-4)
        assert len(found[row].boundaries) == inside.sum() + 1
        assert (found[row].boundaries[0], found[row].boundaries[-1]) == (0, len(content_of(messages).encode()))


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=5), st.data())
def test_offsets_separate_answers(conversations, data):
    left_out = [data.draw(st.booleans()) for _ in conversations]
    rows = [
        np.concatenate([np.arange(size + 1) for size in sizes]) if not absent else np.empty(0)
        for sizes, absent in zip(conversations, left_out, strict=True)
    ]
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    ends = np.concatenate([np.empty(0), *rows]).astype(np.int32)
    counts = np.array([len(sizes) for sizes in conversations], np.int64)
    lengths = [
        0 if absent else size + 1 for sizes, absent in zip(conversations, left_out, strict=True) for size in sizes
    ]
    assert answer_offsets(ends, offsets, counts).tolist() == np.cumsum([0, *lengths]).tolist()


def test_another_number_of_answers_is_refused():
    with pytest.raises(RecordError, match="conversation 1 of the batch has 2 answers in a source's rows, 1 in"):
        answer_offsets(np.array([0, 3, 0, 2, 0, 1], np.int32), np.array([0, 2, 6]), np.array([1, 1]))


def test_a_turns_end_that_is_eos_too_means_the_turns_end(checkpoints, tmp_path):
    source = PassageTokenizer.load(Checkpoint(checkpoints["byte-level-without-bos"], chat_template=style("vicuna")))
    target = PassageTokenizer.load(Checkpoint(checkpoints["byte-level-with-bos"], chat_template=style("chatml")))
    target.turn_end_id, before = target.pad_id, target.turn_end_id
    try:
        mapping = np.full(source.vocab_size, NO_TOKEN, np.int32)
        mapping[source.eos_id] = target.eos_id
        assert with_turn_end(mapping, source, target)[source.turn_end_id] == target.pad_id
        assert mapping[source.eos_id] == target.eos_id, "the table of plain passages stays"
    finally:
        target.turn_end_id = before


def test_the_win_share_of_a_conversation_is_the_mean_over_the_bytes_of_its_answers():
    """Answers of 9 and 1 bytes with as many tokens, a prompt before them; then a conversation of one answer.

    One source was left out of the second answer: its win rate is still over all bytes, its cross-entropy over those
    that it has scored.
    """
    two = Rendering(
        np.arange(8, dtype=np.int32), np.array([0, 0, 9, 9, 0, 0, 1, 1], np.int32), answers=((1, 3), (5, 7))
    )
    one = Rendering(np.arange(4, dtype=np.int32), np.array([0, 0, 5, 5], np.int32), answers=((1, 3),))
    answers = target_answers([two, one], [0, 0], [True, True])
    rows = len(answers.places)
    fused = FusedRows(
        ids=np.zeros((rows, 1), np.int32),
        probs=np.ones((rows, 1), np.float16),
        is_fused=np.ones(rows, bool),
        win_share=np.array([[0.0, 1.0], [1.0, 0.0], [0.25, 0.75]], np.float32),
        cross_entropy=np.array([[3.0, 2.0], [4.0, math.nan], [1.0, 1.0]]),
        covered_rows=np.array([[2, 2], [2, 0], [2, 2]]),
    )
    found, _ = whole_passages(answers, fused)
    np.testing.assert_allclose(found.win_share, [[0.1, 0.9], [0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(found.cross_entropy, [[3.1, 2.0], [1.0, 1.0]])


def test_two_answers_that_fill_a_conversation_are_put_together():
    """A template that puts one token before each answer: then every token is in an answer."""
    rendering = Rendering(
        np.array([1, 5, 2, 1, 6, 2], np.int32), np.array([0, 3, 3, 0, 1, 1], np.int32), ((0, 2), (3, 5))
    )
    answers = target_answers([rendering], [0], [True])
    ids, probs = np.zeros((6, 1), np.int32), np.ones((6, 1), np.float16)
    is_fused = np.array([True, True, False] * 2)
    shares, nats = np.array([[1.0], [0.0]], np.float32), np.array([[2.0], [4.0]])
    fused, is_learned = whole_passages(answers, FusedRows(ids, probs, is_fused, shares, nats, np.array([[2], [2]])))
    assert is_learned.tolist() == [True, True, False] * 2
    assert fused.win_share.tolist() == [[0.75]]
    assert fused.cross_entropy.tolist() == [[(2.0 * 3 + 4.0 * 1) / 4]]
    assert fused.covered_rows.tolist() == [[4]]
