"""The documents name what exists: every path, and in the README's file map every folder; old phrases stay away.

The map is the fenced block under the README's heading "Where things are". Each of its lines begins with a path: a
folder (``engine/text/``), a top-level file (``Makefile``), or ``folder/…/``, which stands for all folders below
``folder/``.
"""

import re
import subprocess
from collections import Counter
from pathlib import PurePosixPath

import pytest

from tests.support.paths import ROOT

ALL_BELOW = "…"

#: Phrases that readers stumbled over, and what stands in their place.
GONE = {
    "likeliest": "top",
    "insist_on_": "check_",
    "goes on no longer": "has stopped",
    "has been heard": "has run",
    "anew": "again",
    "nobody": "no process, no person",
    "mended": "fixed",
}


def tracked_paths() -> list[PurePosixPath]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return [PurePosixPath(name) for name in done.stdout.split("\0") if name]


def map_entries() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf8")
    (block,) = re.findall(r"^#+ Where things are\n.*?^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.split()[0] for line in block.splitlines() if line.strip()]


def covers(entry: str, place: str) -> bool:
    """Whether a line that begins with ``entry`` stands for a folder (``engine/text/``) or a top-level file."""
    if entry.endswith(f"/{ALL_BELOW}/"):
        above = entry.removesuffix(f"{ALL_BELOW}/")
        return place.startswith(above) and place != above
    return entry == place


def test_every_folder_and_top_level_file_has_one_line_in_the_map():
    places = {str(path) if len(path.parts) == 1 else f"{path.parent}/" for path in tracked_paths()}
    entries = map_entries()
    lines = {place: [entry for entry in entries if covers(entry, place)] for place in sorted(places)}
    assert {place: found for place, found in lines.items() if len(found) != 1} == {}


def test_every_line_of_the_map_names_something_tracked():
    paths = tracked_paths()
    folders = {f"{folder}/" for path in paths for folder in path.parents if folder.parts}
    existing = folders | {str(path) for path in paths if len(path.parts) == 1}
    entries = map_entries()
    assert [entry for entry in entries if entry.replace(f"{ALL_BELOW}/", "") not in existing] == []
    assert [entry for entry, count in Counter(entries).items() if count > 1] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "tests/README.md"])
def test_every_path_in_backticks_exists(document):
    text = (ROOT / document).read_text(encoding="utf8")
    named = set(re.findall(r"`((?:engine|actors|pipelines|tests|requirements)/[\w./-]*)`", text))
    assert named
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_old_phrases_stay_away():
    texts = [path for path in tracked_paths() if path.suffix in (".py", ".md", ".yaml", ".html")]
    texts = [path for path in texts if path.name not in ("LOG.md", "test_documents.py")]
    assert len(texts) > 200
    found = [(str(path), old) for path in texts for old in GONE if old in (ROOT / path).read_text(encoding="utf8")]
    assert found == []
