"""How many target rows two published models teach each other, with real scores.

    python -m tests.benchmarks.taught CORPUS_FILE ...

SmolLM2-135M and Gemma-3-270M (from the GGUF files that packages of the dev extra carry) score windows of each file by
transformers. For both directions and each file: the share of labelled rows that are fused under ``byte_offset`` and
under ``bytes``, by the number of entries that the source sends.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from engine.method.alignment import SourceAlignment
from engine.method.canonical import CanonicalPairs
from engine.method.fusion import fuse
from engine.method.rows import ScoredRows
from engine.spec import AlignmentSpec, FusionRuleSpec
from engine.text.tokenization import PassageTokenizer
from pipelines.experiment.real_models import gemma_file, place_models, smollm2_file
from tests.benchmarks.passages import documents, target_rows, windows
from tests.support import real_tokenizers

WINDOW, WINDOWS = 512, 3
MOST_SENT = 1024
WAYS = (("byte_offset", 64), ("bytes", 64), ("bytes", 256), ("bytes", MOST_SENT))


def main(paths: list[Path]) -> None:
    """Both directions on all files."""
    reader = real_tokenizers.load("SmolLM2")
    samples = {path.stem: windows(documents([path]), reader, WINDOW, WINDOWS) for path in paths}
    folder = Path(tempfile.gettempdir()) / "taught"
    place_models(folder)
    models = {"SmolLM2": smollm2_file(folder), "Gemma": gemma_file(folder)}
    tokenizers = {
        "SmolLM2": real_tokenizers.load("SmolLM2"),
        "Gemma": PassageTokenizer(real_tokenizers.gemma(), "Gemma", bos="always"),
    }
    scored = {
        (name, corpus): rows
        for name, file in models.items()
        for corpus, rows in scores(file, tokenizers[name], samples).items()
    }
    print("target <- source | corpus | rows | " + " | ".join(f"{tokens} {top_k}" for tokens, top_k in WAYS))
    for target, source in (("SmolLM2", "Gemma"), ("Gemma", "SmolLM2")):
        compare(target, source, tokenizers, samples, scored)


def compare(target: str, source: str, tokenizers: dict, samples: dict, scored: dict) -> None:
    """One direction on all files."""
    canonical = CanonicalPairs(tokenizers[target])
    aligned = {
        tokens: SourceAlignment(tokenizers[source], tokenizers[target], AlignmentSpec(tokens=tokens), [], False)
        for tokens in ("byte_offset", "bytes")
    }
    for corpus, texts in samples.items():
        rows = target_rows(tokenizers[target], texts)
        cells = []
        for tokens, top_k in WAYS:
            source_rows = aligned[tokens].align(texts, rows, cut_to(scored[source, corpus], top_k))
            fused = fuse(
                rows, [source_rows], FusionRuleSpec(top_k=top_k), tokenizers[target].vocab_size,
                canonical=canonical if tokens == "bytes" else None,
            )  # fmt: skip
            cells.append(f"{100 * fused.is_fused.sum() / rows.is_learned.sum():.1f}")
        print(f"{target} <- {source} | {corpus} | {rows.is_learned.sum()} | {' | '.join(cells)}", flush=True)


def cut_to(rows: ScoredRows, top_k: int) -> ScoredRows:
    """The first entries of each row."""
    ids, logprobs = rows.topk_ids[:, :top_k].copy(), rows.topk_logprobs[:, :top_k].copy()
    return ScoredRows(**{**vars(rows), "topk_ids": ids, "topk_logprobs": logprobs})


@torch.no_grad()
def scores(file: Path, tokenizer: PassageTokenizer, samples: dict[str, list[str]]) -> dict[str, ScoredRows]:
    """A model's rows for the windows of each corpus, with ``MOST_SENT`` entries."""
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
    found = {}
    for corpus, texts in samples.items():
        encoded = [tokenizer.encode_with_roles(text, tokenizer.adds_bos, True) for text in texts]
        kept = [entries(model, ids) for ids, _ in encoded]
        found[corpus] = ScoredRows(
            offsets=np.cumsum([0, *(len(ids) - 1 for ids, _ in encoded)], dtype=np.int64),
            token_ids=np.concatenate([ids[:-1] for ids, _ in encoded]),
            end_bytes=np.concatenate([ends[:-1] for _, ends in encoded]),
            topk_ids=np.concatenate([ids for ids, _, _ in kept]),
            topk_logprobs=np.concatenate([logprobs for _, logprobs, _ in kept]),
            token_logprobs=np.concatenate([own for _, _, own in kept]),
        )
        nats = -found[corpus].token_logprobs.sum() / sum(len(text.encode()) for text in texts)
        print(f"{file.name} on {corpus}: {nats:.3f} nats per byte", flush=True)
    return found


def entries(model: torch.nn.Module, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The most probable entries of each row of one passage, and the log-probability of what follows."""
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    logprobs = model(tokens).logits[0, :-1].log_softmax(-1)
    kept = logprobs.topk(MOST_SENT, dim=-1)
    own = logprobs.gather(1, tokens[0, 1:, None])[:, 0]
    return kept.indices.int().numpy(), kept.values.numpy().astype(np.float16), own.numpy()


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
