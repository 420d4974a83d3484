"""Whether a run can write its folders."""

from __future__ import annotations

import os
import re
import tempfile

import fsspec

from engine.errors import Fault, first_line
from engine.spec import FusionSpec

WHERE = "run.output_dir"

#: Protocols of the stores that a run writes.
PROTOCOLS = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs")

#: Characters of a URL that every store and tool reads as they are; some decode %20, for instance, and others do not.
_PLAIN = re.compile(r"[A-Za-z0-9._~/:@!$&'()*+,;=-]*")


def written_folder_faults(spec: FusionSpec, may_be_elsewhere: bool = False) -> list[Fault]:
    """A fault for every folder that the run could not write; the look leaves no file.

    Args:
        may_be_elsewhere: pass over packages, and over folders whose parent is not on this machine.
    """
    faults = _output_faults(spec.run.output_dir, may_be_elsewhere)
    tables = spec.alignment.cache_dir
    if spec.source_models and not may_be_elsewhere:
        where = "alignment.cache_dir"
        faults += _store_faults(where, tables) if "://" in tables else local_folder_faults(where, tables)
    return faults


def _output_faults(folder: str, may_be_elsewhere: bool) -> list[Fault]:
    """A fault if the output folder could not be written. A store is not tried: its owner may charge for every write."""
    protocol, _, rest = folder.rpartition("://")
    if protocol in set(fsspec.available_protocols()) - set(PROTOCOLS):
        reason = f"{folder} is of a protocol that a run does not write"
        return [Fault(WHERE, reason, f"give a path, or a URL of {', '.join(PROTOCOLS)}")]
    odd = next((character for character in rest if not _PLAIN.fullmatch(character)), "") if protocol else ""
    if odd:
        reason = f"{folder} has {odd!r}, which not all tools read as it is in a URL"
        return [Fault(WHERE, reason, "give a plain path, or a URL of letters, digits and ._~/:@!$&'()*+,;=-")]
    if protocol in ("", "file"):
        here = os.path.exists(os.path.dirname(rest)) or not may_be_elsewhere
        return local_folder_faults(WHERE, rest) if here else []
    return [] if may_be_elsewhere else _store_faults(WHERE, folder)


def _store_faults(where: str, folder: str) -> list[Fault]:
    """A fault if this machine cannot speak to a folder's store."""
    try:
        fsspec.core.url_to_fs(folder)
    except Exception as error:  # every filesystem has its own errors, and its package may not be installed
        reason = f"{folder} cannot be used: {type(error).__name__}: {first_line(error)}"
        return [Fault(where, reason, "install the protocol's fsspec package on every node, or choose another folder")]
    return []


def local_folder_faults(where: str, folder: str) -> list[Fault]:
    """A fault if a local folder cannot be made, or a file in it.

    What is missing is tried under another name: a run that starts at the same moment makes the folder itself.
    """
    try:
        path = os.path.abspath(os.path.expanduser(folder))
        missing = _missing(path)
        there = os.path.dirname(missing[0]) if missing else path
        if not missing:
            with tempfile.TemporaryFile(dir=there):
                return []
        with tempfile.TemporaryDirectory(dir=there) as beside:
            os.makedirs(os.path.join(beside, os.path.relpath(path, there)))
        return []
    except (OSError, ValueError, RecursionError) as error:  # the last: a thousand folders, one in the other
        reason = getattr(error, "strerror", None) or first_line(error)
        return [Fault(where, f"{folder} cannot be made or written: {reason}", "choose another folder")]


def _missing(path: str) -> list[str]:
    """The folders that a path still needs, outermost first."""
    missing = []
    while not os.path.lexists(path):
        missing.insert(0, path)
        path = os.path.dirname(path)
    return missing
