"""Checkpoint: where a model's files are, and what a spec puts over them."""

from __future__ import annotations

from dataclasses import dataclass

from engine.spec import SourceModelSpec, TargetModelSpec
from engine.spec.sections import Bos


@dataclass(frozen=True)
class Checkpoint:
    """A model as a spec names it; ``engine.model_files.local`` turns it into files of this node.

    Attributes:
        path: Hugging Face folder or hub name; fsspec URL of such a folder; path or URL of a ``.gguf`` file.
        adapter: folder or fsspec URL of a LoRA adapter to merge into the weights; empty: none.
        chat_template: path or fsspec URL of a Jinja chat template to use; empty: the tokenizer's own.
        bos: whether the tokenizer puts BOS before a text: as it does by itself, always, or never.
    """

    path: str
    adapter: str = ""
    chat_template: str = ""
    bos: Bos = "tokenizer"

    @classmethod
    def of(cls, section: TargetModelSpec | SourceModelSpec) -> Checkpoint:
        """The checkpoint of a spec's model section; only sources have adapters."""
        adapter = section.adapter if isinstance(section, SourceModelSpec) else ""
        return cls(section.checkpoint, adapter, section.chat_template, section.bos)

    def __str__(self) -> str:
        """For messages and tables."""
        adapter = f" + adapter {self.adapter}" if self.adapter else ""
        template = f" + chat template {self.chat_template}" if self.chat_template else ""
        return self.path + adapter + template
