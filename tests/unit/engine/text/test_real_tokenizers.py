"""Tokenizers of real models and all kinds: every byte is accounted for, alignment is exact, mass is never made."""

import functools
import itertools
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.aligner import MOST_UNMAPPED, unmapped_share
from engine.errors import TokenizerError
from engine.method.alignment import ByteMatcher
from engine.method.fusion import fuse
from engine.method.rows import SourceRows, TargetRows
from engine.method.vocabulary import UNMAPPED, build_mapping
from engine.spec import FusionRuleSpec
from engine.text.token_bytes import check_token_bytes
from engine.text.tokenization import PassageTokenizer
from tests import oracles
from tests.support import real_tokenizers

NAMES = real_tokenizers.NAMES
#: Kinds whose tokens' bytes are the text's bytes, dummy prefix aside.
EXACT = ["Mistral SentencePiece", "SmolLM2", "byte-level", "Mistral Tekken"]

#: Kinds that drop spaces and controls, or bytes that their vocabulary lacks.
DROPPING = ["WordPiece", "SmolLM2"]

ALPHABET = st.characters(exclude_categories=["Cs"])
PIECES = st.sampled_from(
    [" ", "   ", "\t", "\r\n", "\n\n", "\x00", "e\u0301",
     "\u1112\u1161\u11ab", "ﬁ", "👩‍👩‍👧", "🇩🇪", "the", " The", "Ωμέγα",
     "</s>", "<|im_end|>", "2024", "naïve", "\u2581", "don't",
     "日本語"]
)  # fmt: skip
ANY_TEXT = st.lists(st.one_of(ALPHABET, PIECES), min_size=1, max_size=40).map("".join)


@pytest.fixture(scope="module", autouse=True)
def tokenizers() -> dict[str, PassageTokenizer]:
    return {name: real_tokenizers.load(name) for name in NAMES}


def encode(name: str, text: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The tokens; None where a tokenizer that drops spaces and controls has none at all, which it says."""
    tokenizer = real_tokenizers.load(name)
    if name in DROPPING and not tokenizer.backend.encode(text, add_special_tokens=False).ids:
        with pytest.raises(TokenizerError, match="no token at all"):
            tokenizer.encode(text)
        return None
    return tokenizer.encode(text)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
@example(text=" ")
@example(text="\u2581x\u2581\u2581")
@example(text="e\u0301a\u0301\u0302 \u1112\u1161\u11ab\u1100\u1161")
@example(text="A\u0300\u0316b")
def test_offsets_add_up(name, text):
    if (encoded := encode(name, text)) is None:
        return
    ids, ends = encoded
    data = text.encode("utf8")
    assert len(ids) == len(ends) > 0
    assert ends[-1] == len(data)
    assert all(earlier <= later for earlier, later in itertools.pairwise([0, *ends]))
    tokenizer = real_tokenizers.load(name)
    pieces = [tokenizer.token_bytes[token] for token in ids]
    last_of_end = [place for place, end in enumerate(ends) if place + 1 == len(ends) or ends[place + 1] > end]
    if name == "SmolLM2":
        lacking = bytes(byte for byte in range(256) if not tokenizer._has_byte[byte])
        assert b"".join(pieces) == data.translate(None, lacking)
        assert [data[:end].translate(None, lacking) for end in ends] == [
            b"".join(pieces[: place + 1]) for place in range(len(ids))
        ]
    elif name in EXACT and ("\u2581" not in text or name != "Mistral SentencePiece"):
        too_many = int(tokenizer.has_dummy_prefix(text))
        assert np.cumsum([len(piece) for piece in pieces]).tolist() == (ends + too_many).tolist()
        assert b"".join(pieces) == b" " * too_many + data
    elif name == "byte-level with NFC" and unicodedata.normalize("NFC", text) != text:
        for place in last_of_end:
            whole, part = whole_characters(data[: ends[place]])
            assert b"".join(pieces[: place + 1]) == unicodedata.normalize("NFC", whole).encode("utf8") + part
    elif name != "byte-level with NFC":
        parts = [whole_characters(data[: ends[place]])[1] for place in last_of_end]
        read = [b"".join(piece or b"" for piece in pieces[: place + 1]) for place in last_of_end]
        assert all(ours.endswith(part) for ours, part in zip(read, parts, strict=True)), "parts by their bytes alone"


def whole_characters(data: bytes) -> tuple[str, bytes]:
    """The characters of a beginning of a text, and the bytes of one that it cuts."""
    whole = data.decode("utf8", errors="ignore")
    return whole, data[len(whole.encode("utf8")) :]


@pytest.mark.timeout(240)
@settings(max_examples=300, deadline=None)
@given(text=ANY_TEXT, pair=st.sampled_from(list(itertools.permutations(NAMES, 2))))
def test_alignment_equals_the_twin_and_reaches_the_upper_bound(text, pair):
    target, source = (real_tokenizers.load(name) for name in pair)
    if any(encode(name, text) is None for name in pair):
        return
    rows = target_rows(target, text)
    ids, ends = source.encode_with_roles(text, source.bos_id >= 0, True)
    match = ByteMatcher(source, target)([text], rows, source_tokens(ids[:-1], ends[:-1]))
    alike = source.has_dummy_prefix(text) == target.has_dummy_prefix(text)
    assert match.tolist() == oracles.match_end_bytes(rows.end_bytes.tolist(), ends[:-1].tolist(), alike)
    shared = set(rows.end_bytes[:-1].tolist()) & set(ends[:-1].tolist()) - {0}
    assert {int(end) for end, found in zip(rows.end_bytes, match, strict=True) if found >= 0} - {0} == shared


@pytest.mark.timeout(240)
@settings(max_examples=100, deadline=None)
@given(
    text=ANY_TEXT,
    pair=st.sampled_from(list(itertools.permutations(NAMES, 2))),
    method=st.sampled_from(["exact", "prefix"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_fused_and_what_is_rest_make_one(text, pair, method, seed):
    if any(encode(name, text) is None for name in pair):
        return
    target, source = (real_tokenizers.load(name) for name in pair)
    rows, top_k = target_rows(target, text), 8
    ids, ends = (values[:-1] for values in source.encode_with_roles(text, source.bos_id >= 0, True))
    random = np.random.default_rng(seed)
    topk_ids = random.integers(0, source.vocab_size, (len(ids), top_k)).astype(np.int32)
    shares = random.dirichlet(np.ones(top_k + 1), len(ids))[:, :top_k]
    mapping = mapping_of(*pair, method)
    match = ByteMatcher(source, target)([text], rows, source_tokens(ids, ends))
    aligned = SourceRows(
        np.array([0, len(ids)]), ids, ends, topk_ids, np.log(shares + 1e-7).astype(np.float16),
        random.normal(-2, 1, len(ids)).astype(np.float32), mapping, match,
    )  # fmt: skip
    fused = fuse(rows, [aligned], FusionRuleSpec(rule="uniform", top_k=top_k), target.vocab_size)
    for row, found in enumerate(match):
        total = fused.probs[row].astype(np.float64).sum()
        mapped = found >= 0 and np.isfinite(fused.cross_entropy).all()
        kept = shares[found][mapping[topk_ids[found]] != UNMAPPED].sum() if mapped else 0.0
        assert abs(total - kept) < 1e-2
        assert 0.0 <= total <= 1.0 + 2**-11


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["exact", "prefix"])
def test_no_pair_loses_so_much_that_the_aligner_would_stop(method):
    """As if each source were certain of the text, in code and prose: the least that maps, by exact bytes alone."""
    lost = {}
    for source, target in itertools.permutations(NAMES, 2):
        for text in some_texts()[:10]:
            ids, ends = real_tokenizers.load(source).encode(text)
            none = np.empty(0, np.int64)
            rows = SourceRows(
                none, ids, ends, ids[:, None], np.zeros((len(ids), 1), np.float16), np.zeros(len(ids), np.float32),
                mapping_of(target, source, method), none,
            )  # fmt: skip
            lost[source, target, text] = unmapped_share(rows)
    assert max(lost.values()) < MOST_UNMAPPED - 0.1, max(lost, key=lost.get)[:2]
    assert max(lost.values()) > (0.6 if method == "exact" else 0.2), "the hard pairs are among them"


@functools.cache
def mapping_of(target: str, source: str, method: str) -> np.ndarray:
    return build_mapping(real_tokenizers.load(source), real_tokenizers.load(target), method)


def target_rows(target: PassageTokenizer, text: str) -> TargetRows:
    ids, ends = target.encode_with_roles(text, target.adds_bos, True)
    num_bytes = np.array([len(text.encode("utf8"))], np.int32)
    return TargetRows(ids, ends, np.array([0, len(ids)]), num_bytes, np.zeros(1, np.int32), np.ones(1, bool))


def source_tokens(ids: np.ndarray, ends: np.ndarray) -> SimpleNamespace:
    """The tokens of one passage as a matcher takes them."""
    return SimpleNamespace(token_ids=ids, end_bytes=ends, offsets=np.array([0, len(ids)]))


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_all_ids_are_what_they_decode_to(name):
    tokenizer = real_tokenizers.load(name)
    check_token_bytes(tokenizer.token_bytes, tokenizer._kind, tokenizer.backend, name, most=tokenizer.vocab_size)


@pytest.mark.parametrize("name", NAMES)
def test_special_strings_inside_text_are_text(name):
    tokenizer = real_tokenizers.load(name)
    ids, _ = tokenizer.encode("a </s> b <s> c <|endoftext|> d <|im_start|> e [INST] f <unk>")
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids.tolist())


def test_the_rebuilt_sentencepiece_model_writes_what_sentencepiece_writes():
    import sentencepiece

    file = real_tokenizers.package("mistral_common") / "data/tokenizer.model.v1"
    original = sentencepiece.SentencePieceProcessor(str(file))
    tokenizer = real_tokenizers.load("Mistral SentencePiece")
    for text in some_texts():
        assert tokenizer.encode(text)[0].tolist() == original.encode(text)


def test_tekken_writes_what_mistrals_own_code_writes():
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    original = Tekkenizer.from_file(str(real_tokenizers.package("mistral_common") / "data/tekken_240911.json"))
    tokenizer = real_tokenizers.load("Mistral Tekken")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 131072)
    for text in some_texts():
        assert tokenizer.encode(text)[0].tolist() == original.encode(text, bos=False, eos=False)


def some_texts() -> list[str]:
    """Real text, spaces in runs and odd characters."""
    lines = (real_tokenizers.CORPUS / "heldout_code.jsonl").read_text(encoding="utf8").splitlines()[:20]
    return [*(line[:1500] for line in lines), "Hello  wörld 🙂 1234\r\n\t x", "日本語 and עברית", "   a    b"]
