"""Instruction tuning from a spec: four chat templates, one stream, losses on the assistant's answers alone."""

import math

import pytest
from transformers import AutoTokenizer

from engine import load_spec, run
from engine.corpus.documents import read_conversations
from engine.corpus.files import units_of
from engine.model_files.checkpoint import Checkpoint
from engine.text.chat import ChatTemplate
from engine.text.tokenization import PassageTokenizer

CORPUS = "pipelines/quickstart/corpus/conversations.jsonl"


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("shared_ray")
def test_the_example_learns_the_answers_of_every_conversation_and_nothing_else(tmp_path):
    spec = load_spec(
        "pipelines/specs/instruction_example.yaml",
        [
            f"run.output_dir={tmp_path / 'out'}",
            f"alignment.cache_dir={tmp_path / 'tables'}",
            "corpus.passes=1",
            "source_models.1.backend=transformers",
            "source_models.2.backend=transformers",
        ],
    )
    result = run(spec)
    found = [conversation for unit in units_of(CORPUS) for conversation in read_conversations(unit, "messages")]
    assert result.passages == len(found) == 30
    answers = [message["content"] for item in found for message in item.messages if message["role"] == "assistant"]
    assert result.bytes == sum(len(answer.encode()) for answer in answers)
    # The export speaks the template that it has learned.
    exported = PassageTokenizer.load(Checkpoint(str(tmp_path / "out" / "export")))
    renderings = [ChatTemplate(exported).encode(item.messages) for item in found]
    assert result.tokens - result.passages == sum(len(rendering.rows()) for rendering in renderings)
    assert math.isfinite(result.metrics.loss) and result.metrics.fusion_loss > 0
    for source in result.sources:
        assert 0.7 < source.coverage < 1.0
        assert 0.5 < source.cross_entropy < 2.5
        assert source.left_out == 0
    assert sum(source.win_rate for source in result.sources) == pytest.approx(1.0, abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "export")
    question = [message for message in found[0].messages if message["role"] != "assistant"]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>assistant\n")
