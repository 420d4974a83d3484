"""The invented batch by which an aligner compiles its kernels before the first real one comes."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from actors import aligner as aligner_module
from actors.aligner import Aligner
from actors.invented_batch import TEXT
from actors.monitor import NoMeter
from engine.errors import TokenizerError
from engine.model_files.checkpoint import Checkpoint
from engine.spec import AlignmentSpec, FusionRuleSpec
from tests.support.tiny_tokenizers import tokenizer_folders
from tests.unit.actors.test_aligner import TEXTS, passages, scored

TOP_K = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    return tokenizer_folders(tmp_path_factory.mktemp("tokenizers"))


def made(folders: list[Path], cache: Path, rule: str = "avg_ce", tokens: str = "bytes") -> Aligner:
    return Aligner(
        Checkpoint(str(folders[0])),
        [(folder.name, Checkpoint(str(folder))) for folder in folders[1:]],
        FusionRuleSpec(rule=rule, top_k=TOP_K),
        AlignmentSpec(tokens=tokens, cache_dir=str(cache)),
        [],
        NoMeter(),
    )


def compiled() -> set[tuple[str, str]]:
    """Each kernel of this process with each list of types that it is compiled for."""
    modules = [module for name, module in sys.modules.items() if name.startswith("engine.method.")]
    kernels = [value for module in modules for value in vars(module).values() if hasattr(value, "nopython_signatures")]
    return {(kernel.__name__, str(types)) for kernel in kernels for types in kernel.signatures}


def compiled_around_a_batch(folders: list[Path], cache: Path, rule: str, tokens: str) -> list[set[tuple[str, str]]]:
    """What is compiled once an aligner is made, and once it has fused a batch."""
    align = made(folders, cache, rule, tokens)
    before, batch = compiled(), passages()
    for folder in folders[1:]:
        batch = scored(batch, folder.name, folder)
    align(batch)
    return [before, compiled()]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("rule", "tokens"), [("avg_ce", "bytes"), ("min_ce", "byte_offset")])
def test_the_first_batch_compiles_nothing(folders, tmp_path, rule, tokens):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        before, after = fresh.submit(compiled_around_a_batch, folders, tmp_path, rule, tokens).result()
    assert after == before
    assert {"label_nats", "nats_per_byte", "round_to_float16"} <= {kernel for kernel, _ in before}


@pytest.mark.timeout(60)
def test_a_tokenizer_that_cannot_write_the_invented_text_compiles_with_the_first_batch(folders, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise TokenizerError("no token for c")

    monkeypatch.setattr(aligner_module, "invented_batch", refuse)
    said: list[str] = []
    monkeypatch.setattr(aligner_module._log, "info", said.append)
    align, batch = made(folders, tmp_path), passages()
    assert len(said) == 1 and repr(TEXT) in said[0]
    for folder in folders[1:]:
        batch = scored(batch, folder.name, folder)
    assert len(align(batch)) == len(TEXTS)
