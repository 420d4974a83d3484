"""Reading: a plain passage is one answer, a conversation has its own, and both travel as rows of one table."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from engine.corpus.cutting import Cutter
from engine.corpus.documents import Conversation, Document
from engine.corpus.passages import Passage, passages_of, table_of
from engine.corpus.reading import Reading
from engine.errors import TokenizerError
from engine.model_files.checkpoint import Checkpoint
from engine.records import PASSAGE, check
from engine.text.chat import ChatTemplate
from engine.text.tokenization import PassageTokenizer
from pipelines.evaluation.bits_per_byte import tokens_of
from tests.support.tiny_tokenizers import byte_level_without_bos, tokenizer_folders

TEMPLATE = Path("pipelines/specs/chat_templates/inst.jinja").absolute()
MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The dog."}]
PLAIN = Passage("0/a:1:0", "The cat.", 8, 0, ends_document=False)
CHAT = Passage("0/a:2:0", "The dog.", 8, 0, ends_document=True, messages=MESSAGES)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Checkpoint]:
    folders = tokenizer_folders(tmp_path_factory.mktemp("tokenizers"))
    return [Checkpoint(str(folder), chat_template=str(TEMPLATE)) for folder in folders]


@pytest.mark.parametrize("bos", ["tokenizer", "always", "never"])
def test_bos_precedes_a_passage_as_the_checkpoint_has_it(checkpoints, bos):
    for checkpoint in checkpoints:
        own, tokenizer = PassageTokenizer.load(checkpoint), PassageTokenizer.load(replace(checkpoint, bos=bos))
        expected = {"tokenizer": own.adds_bos, "always": True, "never": False}[bos]
        token_ids = Reading(tokenizer, tokenizer.adds_bos).read(PLAIN, ends_document=True).token_ids
        assert token_ids.tolist() == [own.bos_id] * expected + own.encode(PLAIN.text)[0].tolist() + [own.eos_id]
        assert (tokenizer.hugging_face("a")["input_ids"][0] == own.bos_id) == expected, "so has the export"
        assert (len(tokens_of(tokenizer, PLAIN.text).bos) == 1) == expected, "so has the evaluation"


def test_bos_cannot_precede_a_passage_where_there_is_none(tmp_path):
    plain = PreTrainedTokenizerFast(tokenizer_object=byte_level_without_bos().backend_tokenizer)
    plain.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TokenizerError, match="bos is always, but the tokenizer has no BOS; use never"):
        PassageTokenizer.load(Checkpoint(str(tmp_path), bos="always"))


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("ends_document", [True, False])
def test_a_plain_passage_is_one_answer(checkpoints, adds_bos, ends_document):
    for checkpoint in checkpoints:
        tokenizer = PassageTokenizer.load(checkpoint)
        rendering = Reading(tokenizer, adds_bos).read(PLAIN, ends_document)
        token_ids, end_bytes = tokenizer.encode_with_roles(PLAIN.text, adds_bos, ends_document)
        assert rendering.token_ids.tolist() == token_ids.tolist()
        assert rendering.end_bytes.tolist() == end_bytes.tolist()
        assert rendering.tokens().tolist() == list(range(len(token_ids)))
        assert rendering.rows().tolist() == list(range(len(token_ids) - 1))


def test_a_conversation_is_read_in_the_models_own_template(checkpoints):
    for checkpoint in checkpoints:
        tokenizer = PassageTokenizer.load(checkpoint)
        rendering, expected = Reading(tokenizer, True).read(CHAT, True), ChatTemplate(tokenizer).encode(MESSAGES)
        assert rendering.token_ids.tolist() == expected.token_ids.tolist()
        assert rendering.answers == expected.answers


def test_passages_come_out_of_their_table_as_they_went_in():
    table = table_of([PLAIN, CHAT])
    check(table, PASSAGE, "test")
    plain, chat = passages_of(table)
    assert chat == CHAT
    assert (plain.passage_id, plain.text, plain.ends_document, list(plain.messages)) == (
        "0/a:1:0",
        "The cat.",
        False,
        [],
    )
    assert passages_of(table.slice(0, 0)) == []


def test_a_cutter_cuts_documents_and_conversations_in_another_process(checkpoints):
    cutter = pickle.loads(pickle.dumps(Cutter(checkpoints, [200] * len(checkpoints))))
    document = cutter.cut(Document("a", 1, "The cat."), corpus_pass=2)
    assert [(each.passage_id, each.text, each.ends_document) for each in document.passages] == [
        ("2/a:1:0", "The cat.", True)
    ]
    conversation = cutter.cut(Conversation("a", 2, tuple(MESSAGES)), corpus_pass=2)
    assert [(each.passage_id, each.text, each.messages) for each in conversation.passages] == [
        ("2/a:2:0", "The dog.", MESSAGES)
    ]
    assert not conversation.left_out
