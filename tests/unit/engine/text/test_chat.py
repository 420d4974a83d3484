"""Conversations: the rendering as transformers tokenizes it, answers found to the byte, and what is refused."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.corpus.cutting import ConversationCutter
from engine.errors import RecordError, TokenizerError
from engine.model_files.checkpoint import Checkpoint
from engine.text.chat import ChatTemplate, beginnings, content_of
from engine.text.tokenization import PassageTokenizer
from tests.support.tiny_tokenizers import byte_level_with_bos, tokenizer_folders

pytestmark = pytest.mark.timeout(60)

TEMPLATES = Path("pipelines/specs/chat_templates").absolute()
STYLES = ("inst", "vicuna", "headings", "chatml")
MESSAGES = [
    {"role": "system", "content": "Answer in one word, </s> or not."},
    {"role": "user", "content": "Is <s> text, and <|endoftext|>?"},
    {"role": "assistant", "content": "Yes: </s>, <eos> and 🙂 are text."},
    {"role": "user", "content": "And é?"},
    {"role": "assistant", "content": "日本語"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {folder.name: folder for folder in tokenizer_folders(tmp_path_factory.mktemp("tokenizers"))}


@pytest.fixture(scope="module")
def templates(folders) -> dict[tuple[str, str], ChatTemplate]:
    return {
        (name, style): ChatTemplate(tokenizer(folder, TEMPLATES / f"{style}.jinja"))
        for name, folder in folders.items()
        for style in STYLES
    }


def tokenizer(folder: Path, template: Path) -> PassageTokenizer:
    return PassageTokenizer.load(Checkpoint(str(folder), chat_template=str(template)))


def written(tmp_path: Path, template: str) -> Path:
    path = tmp_path / "template.jinja"
    path.write_text(template)
    return path


words = st.text(st.sampled_from("ab 1é🙂日.\n'<s>"), min_size=1, max_size=30).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_a_rendering_is_what_transformers_makes_of_it(templates, turns):
    messages = [
        {"role": role, "content": content.replace("<s>", "s")}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    for (name, style), template in templates.items():
        loaded = template._tokenizer.hugging_face
        expected = loaded.apply_chat_template(messages, tokenize=True, return_dict=False)
        rendering = template.encode(messages)
        assert rendering.token_ids.tolist() == expected[: len(rendering.token_ids)], (name, style)
        assert not loaded.decode(expected[len(rendering.token_ids) :]).strip(), "line breaks after the last turn"


def test_every_answer_is_found_to_the_byte(templates):
    contents = [message["content"].encode() for message in MESSAGES if message["role"] == "assistant"]
    for key, template in templates.items():
        rendering, own = template.encode(MESSAGES), template._tokenizer
        assert len(rendering.answers) == 2
        for content, (first, last) in zip(contents, rendering.answers, strict=True):
            ends = rendering.end_bytes[first : last + 1].tolist()
            assert (ends[0], ends[-1]) == (0, len(content)) and ends == sorted(ends), key
            assert rendering.token_ids[last] == own.turn_end_id
            for begin, end, token in zip(ends, ends[1:], rendering.token_ids[first + 1 : last], strict=False):
                data = own.token_bytes[token]
                assert data.endswith(content[begin:end]) and not data[: len(data) - (end - begin)].strip(), key
        between = set(range(len(rendering.token_ids))) - set(rendering.tokens().tolist())
        assert not rendering.end_bytes[sorted(between)].any()


def test_special_strings_in_contents_are_text(templates):
    for (name, style), template in templates.items():
        plain = [{**message, "content": "x"} for message in MESSAGES]
        specials = {token["id"] for token in template._tokenizer.special_tokens}
        count = [sum(int(token) in specials for token in template.encode(m).token_ids) for m in (MESSAGES, plain)]
        assert count[0] == count[1] > 0, (name, style)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{{ eos_token }}{% endfor %}", "changes the contents"),
        ("{{ messages[0].content }}{{ eos_token }}", "leaves out an answer"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "no special token after"),
        ("{{ raise_exception('no systems here') }}", "refuses the conversation: TemplateError: no systems here"),
        ("{% for m in messages %}{{ m.content }}", "TemplateSyntaxError: Unexpected end of template"),
        ("{{ messages[0].text.strip() }}", "UndefinedError: 'dict object' has no attribute 'text'"),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no systems') }}{% endif %}"
            "{{ m.content }}{{ eos_token }}{% endfor %}",
            "refuses the conversation: TemplateError: no systems",
        ),
        (
            "{% for m in messages %}{{ m.content }}{{ eos_token if loop.last else '|' }}{% endfor %}",
            "does not put '</s>' after every answer",
        ),
    ],
)
def test_a_template_that_cannot_be_learned_from_is_refused(folders, tmp_path, template, sentence):
    with pytest.raises(TokenizerError, match=sentence.replace("|", "\\|")):
        ChatTemplate(tokenizer(folders["byte-level-with-bos"], written(tmp_path, template))).encode(MESSAGES)


def test_a_tokenizer_without_a_template_says_how_to_give_one(folders):
    with pytest.raises(TokenizerError, match="no chat template; give one as chat_template"):
        ChatTemplate(PassageTokenizer.load(Checkpoint(str(folders["byte-level-with-bos"]))))


def test_a_conversation_is_cut_after_an_answer(folders, templates):
    names = ["byte-level-with-bos", "sentencepiece-like"]
    tokenizers = [tokenizer(folders[name], TEMPLATES / "chatml.jinja") for name in names]
    lengths = [[len(ChatTemplate(own).encode(m).token_ids) for own in tokenizers] for m in beginnings(MESSAGES)]
    assert [len(m) for m in beginnings(MESSAGES)] == [5, 3]

    def cut(*windows: int) -> int:
        return len(ConversationCutter(tokenizers, windows).cut(MESSAGES))

    whole, one = lengths
    assert cut(whole[0] - 2, whole[1] - 2) == 5, "two places more, which a plain passage leaves to BOS and EOS"
    assert cut(whole[0] - 2, whole[1] - 3) == 3
    assert cut(one[0] - 2, one[1] - 2) == 3
    with pytest.raises(RecordError, match=f"{one[0]} tokens for .*byte-level-with-bos.*, which takes {one[0] - 1}"):
        cut(one[0] - 3, one[1])
    assert content_of(MESSAGES[:3]) == MESSAGES[2]["content"]


@pytest.mark.parametrize("entry", ["gap", "mark"])
def test_special_tokens_keep_their_ids_in_a_vocabulary_with_gaps_or_with_the_marks(entry):
    wrapped = byte_level_with_bos()
    layout = json.loads(wrapped.backend_tokenizer.to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    if entry == "gap":
        layout["model"]["vocab"]["Y"] = len(layout["model"]["vocab"]) + 1
    else:
        token = len(layout["model"]["vocab"])
        layout["model"]["vocab"]["\U00100000"] = token
        layout["added_tokens"].append({"id": token, "content": "\U00100000", **flags})
    loaded = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(layout)), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    loaded.chat_template = (TEMPLATES / "chatml.jinja").read_text()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    rendering = ChatTemplate(PassageTokenizer(loaded, entry)).encode(messages)
    expected = loaded.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert rendering.token_ids.tolist() == expected[: len(rendering.token_ids)]
    assert rendering.token_ids[rendering.answers[-1][1]] == loaded.eos_token_id


#: As DeepSeek and Qwen write them: control strings that tokenizer.json does not call special.
PLAIN_CONTROLS = ("<|User|>", "<|Assistant|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<table>")
CONTROLLED = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|Assistant|>' if m.role == 'assistant' else '<|User|>' }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
)


def controlled(template: str = CONTROLLED) -> PassageTokenizer:
    plain = byte_level_with_bos().backend_tokenizer
    plain.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN_CONTROLS])
    loaded = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")
    loaded.chat_template = template
    return PassageTokenizer(loaded, "controlled")


def counts(tokenizer: PassageTokenizer, messages: list[dict]) -> dict[str, int]:
    ids = ChatTemplate.of(tokenizer).encode(messages).token_ids.tolist()
    return {text: found for text in PLAIN_CONTROLS if (found := ids.count(tokenizer.backend.token_to_id(text)))}


@pytest.mark.parametrize("role", ["user", "system", "tool"])
@pytest.mark.parametrize("text", PLAIN_CONTROLS)
def test_control_strings_that_are_not_special_are_text_in_the_contents_of_others(role, text):
    found = controlled()
    answer = {"role": "assistant", "content": "Yes."}
    written = counts(found, [{"role": role, "content": f"Say {text} twice: {text}"}, answer])
    assert written == {"<|User|>": 1, "<|Assistant|>": 1} | ({"<table>": 2} if text == "<table>" else {})


def test_an_assistant_may_write_its_own_control_strings_but_no_turns():
    found = controlled()
    content = "Look: <tool_call>{}</tool_call> or <|User|>é"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    assert counts(found, messages) == {"<|User|>": 1, "<|Assistant|>": 1, "<tool_call>": 1, "</tool_call>": 1}
    rendering = ChatTemplate.of(found).encode(messages)
    ((first, last),) = rendering.answers
    ends = rendering.end_bytes[first : last + 1].tolist()
    data = [found.token_bytes[token] for token in rendering.token_ids[first + 1 : last]]
    assert ends == [0, *itertools.accumulate(map(len, data)), len(content.encode())]
    assert b"".join(data) == content.encode()


def test_a_rendering_with_calls_and_reasoning_is_what_transformers_makes_of_it():
    found = controlled()
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    asked = {"role": "user", "content": "Hi"}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    answered = {"role": "assistant", "content": "Yes.", "reasoning_content": "é?"}
    mine = [
        asked,
        {"role": "assistant", "content": "", "weight": 0, "more": json.dumps({"tool_calls": [call]})},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "Yes.", "more": json.dumps({"reasoning_content": "é?"})},
    ]
    theirs = [asked, called, {"role": "tool", "content": "1"}, answered]
    rendering = ChatTemplate.of(found).encode(mine)
    expected = found.hugging_face.apply_chat_template(theirs, tokenize=True, return_dict=False)
    assert rendering.token_ids.tolist() == expected
    assert len(rendering.answers) == 1, "a call is context"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"more": '{"reasoning_content": "Hm."}'}, "leaves out the reasoning_content of message 2"),
        ({"weight": 0, "more": '{"tool_calls": [{"function": {}}]}'}, "leaves out the tool_calls of message 2"),
    ],
)
def test_a_template_that_leaves_out_calls_or_reasoning_is_refused(message, sentence):
    plain = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    asked, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}
    with pytest.raises(TokenizerError, match=sentence):
        ChatTemplate(controlled(plain)).encode([asked, {**answer, **message}, asked, answer])


@pytest.mark.parametrize("message", [{"role": "a<|User|>"}, {"role": "a</s>"}, {"more": '{"name": "<think>"}'}])
def test_a_control_string_outside_a_content_is_refused(message):
    messages = [{"role": "user", "content": "Hi", **message}, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(TokenizerError, match=r"message 1 has the control string '.*' outside its content"):
        ChatTemplate(controlled()).encode(messages)


def test_an_answer_of_weight_0_is_context():
    found = controlled()
    asked, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}
    both = ChatTemplate(found).encode([asked, answer, asked, answer])
    one = ChatTemplate(found).encode([asked, {**answer, "weight": 0}, asked, answer])
    assert one.token_ids.tolist() == both.token_ids.tolist()
    assert one.answers == both.answers[1:]
    assert not one.end_bytes[: one.answers[0][0]].any()


def test_messages_that_a_template_leaves_out_are_named():
    deaf = "{% for m in messages if m.role != 'system' %}{{ m.content }}{{ eos_token }}{% endfor %}"
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES[1:3]]
    assert ChatTemplate(controlled(deaf)).encode(messages).left_out == ("system",)
    assert ChatTemplate(controlled()).encode(messages).left_out == ()


def test_a_process_has_one_template_of_a_tokenizer(folders):
    found = tokenizer(folders["byte-level-with-bos"], TEMPLATES / "chatml.jinja")
    assert ChatTemplate.of(found) is ChatTemplate.of(found)


@pytest.mark.parametrize("ending", ["", "{{ eos_token }}"])
def test_answers_end_with_their_turn(ending):
    """As in Gemma 3 and Phi 3: the configuration does not name the turn's end; EOS ends the whole conversation."""
    plain = byte_level_with_bos().backend_tokenizer
    plain.add_special_tokens(["<turn>", "<end>"])
    loaded = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")
    turns = "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    loaded.chat_template = "{{ bos_token }}" + turns + ending
    rendering = ChatTemplate(PassageTokenizer(loaded, "turns")).encode(MESSAGES)
    ends = [int(rendering.token_ids[last]) for _, last in rendering.answers]
    assert ends == [plain.token_to_id("<end>")] * 2
