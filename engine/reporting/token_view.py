"""The token view of a report: passages as text, and for each token what every model says of it.

The page holds plain data and a script that draws it; ``inspection`` and ``looks`` say what the data mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.spec import FusionSpec

#: The most bytes of the view's data; beyond it every second passage is left out.
MOST_BYTES = 2_000_000

_DATA = re.compile(r'<script type="application/json" id="token-data">(.*?)</script>', re.DOTALL)


def token_view(data: Mapping[str, Any], most_bytes: int = MOST_BYTES) -> str:
    """The section of the page; empty without passages.

    Args:
        data: of ``token_data``.
        most_bytes: of the section; beyond it every second passage is left out, as often as it takes.
    """
    passages = data.get("passages", ())
    while passages:
        section = _section(dict(data) | {"passages": passages})
        if len(section.encode("utf8")) <= most_bytes:
            return section
        passages = passages[::2] if len(passages) > 1 else ()
    return ""


def _section(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return (
        '<section id="tokens"><h2>Tokens</h2>\n<div id="token-view"><p>The token view needs JavaScript.</p></div>\n'
        f'<script type="application/json" id="token-data">{text}</script></section>'
    )


def token_data(
    spec: FusionSpec, passages: Sequence[Mapping[str, Any]], token_bytes: Sequence[bytes | None]
) -> dict[str, Any]:
    """The data of the view, at most ``MOST_BYTES`` of them.

    Args:
        spec: of the run, for the names of the sources and the rule.
        passages: looks (``actors.training.looks``), in the order of their steps.
        token_bytes: of the target's tokenizer; None for special tokens.
    """
    shown, sizes = list(passages), [len(json.dumps(passage)) for passage in passages]
    while sum(sizes) > MOST_BYTES:
        shown, sizes = (shown[::2], sizes[::2]) if len(shown) > 1 else ([], [])
    ids = sorted({token for passage in shown for token in _ids(passage)})
    return {
        "sources": [source.name for source in spec.source_models],
        "rule": f"{spec.fusion.rule} by {spec.fusion.granularity}",
        "texts": {token: text_of(token_bytes[token]) for token in ids if token < len(token_bytes)},
        "passages": shown,
    }


def data_in(page: str) -> dict[str, Any]:
    """The data of the view in an earlier page; empty if it has none."""
    found = _DATA.search(page)
    return json.loads(found[1]) if found else {}


def text_of(data: bytes | None) -> str:
    """A token as text: bytes that are not UTF-8 as \\xNN, special tokens as a mark."""
    if data is None:
        return "⟨special⟩"
    return data.decode("utf8", "backslashreplace")


def _ids(passage: Mapping[str, Any]) -> Iterable[int]:
    yield from passage["before"]
    yield from passage["tokens"]
    for rows in (passage["fused"], passage["own"], *(source["rows"] for source in passage["sources"])):
        for row in rows:
            yield from row[0] if row else ()
