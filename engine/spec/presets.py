"""The published methods as settings, for comparison: ``preset: fusellm_soft`` in a spec.

Each does what the authors' code does, with one bug fixed: where no source row is found, the one-hot target is the
*next* token, not the current one. Packing, BOS and the splitting of long documents are this engine's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import Fault, SpecError

_FUSELLM = {"rule": "min_ce", "granularity": "passage", "temperature": 1.0, "top_k": 10, "arithmetic": "fusellm"}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # FuseLLM's default: MinED for tokens and vocabulary.
    "fusellm_soft": {
        "alignment": {"tokens": "min_edit", "vocabulary": "min_edit"},
        "fusion": _FUSELLM,
        "objective": {"lm_loss_weight": 0.9, "full_gain": 0.0},
    },
    # FuseLLM's exact match.
    "fusellm_hard": {
        "alignment": {"tokens": "exact", "vocabulary": "exact"},
        "fusion": _FUSELLM,
        "objective": {"lm_loss_weight": 0.9, "full_gain": 0.0},
    },
    # FuseChat's mapping statistics. Its code penalises frequent pairs; the mapping here takes the most frequent.
    "fusechat_ms": {
        "alignment": {"tokens": "suffix", "vocabulary": "statistical"},
        "fusion": _FUSELLM,
        "objective": {"lm_loss_weight": 0.9, "full_gain": 0.0},
    },
}


def with_preset(document: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's mapping with the values of its ``preset``; the spec's own values have priority.

    Raises:
        SpecError: there is no such preset.
    """
    own = dict(document)
    if "preset" not in own:
        return own
    name = own.pop("preset")
    if not isinstance(name, str) or name not in PRESETS:
        raise SpecError([Fault("preset", f"{name!r} is no preset", f"allowed: {', '.join(PRESETS)}")])
    for section, values in PRESETS[name].items():
        given = own.get(section, {})
        own[section] = {**values, **given} if isinstance(given, Mapping) else given
    return own
