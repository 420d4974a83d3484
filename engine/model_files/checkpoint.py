"""Checkpoint: where a model's files are, and what a spec puts over them."""

from __future__ import annotations

from dataclasses import dataclass

from engine.spec import SourceModelSpec, TargetModelSpec


@dataclass(frozen=True)
class Checkpoint:
    """A model as a spec names it; ``engine.model_files.local`` turns it into files of this node.

    Attributes:
        path: Hugging Face folder or hub name; fsspec URL of such a folder; path or URL of a ``.gguf`` file.
        adapter: folder or fsspec URL of a LoRA adapter to merge into the weights; empty: none.
        chat_template: path or fsspec URL of a Jinja chat template to use; empty: the tokenizer's own.
    """

    path: str
    adapter: str = ""
    chat_template: str = ""

    @classmethod
    def of(cls, section: TargetModelSpec | SourceModelSpec) -> Checkpoint:
        """The checkpoint of a spec's model section; only sources have adapters."""
        adapter = section.adapter if isinstance(section, SourceModelSpec) else ""
        return cls(section.checkpoint, adapter, section.chat_template)

    def __str__(self) -> str:
        """For messages and tables."""
        adapter = f" + adapter {self.adapter}" if self.adapter else ""
        template = f" + chat template {self.chat_template}" if self.chat_template else ""
        return self.path + adapter + template
