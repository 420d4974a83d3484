"""A real Prometheus that scrapes an address of this machine, and its promtool: Debian's package."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

#: Where ``requirements/prometheus.sh`` unpacks the package.
UNPACKED = ROOT / ".venv" / "prometheus" / "usr" / "bin"

SECONDS_TO_START = 30.0


def is_installed() -> bool:
    """Whether there is a Prometheus on this machine."""
    return _path("prometheus") is not None


def program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``; skips the test with a reason where there is none."""
    found = _path(name)
    if found is None:
        pytest.skip(f"needs {name}; on Debian: requirements/prometheus.sh")
    return found


def _path(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=str(UNPACKED))


class Prometheus:
    """A running server at an address of this machine."""

    def __init__(self, address: str):
        self._address = address

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that answer a query now, each with its labels (``metric``) and its ``value``."""
        url = f"http://{self._address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    @property
    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=10) as answer:
                return answer.status == 200
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, target: str, rules: Path) -> Iterator[Prometheus]:
    """Scrape ``target`` (``host:port``) every second for as long as the block lasts, with the alerts of ``rules``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    scrape = {"job_name": "ray", "static_configs": [{"targets": [target]}]}
    seconds = {"scrape_interval": "1s", "evaluation_interval": "5s"}
    (folder / "prometheus.yml").write_text(  # JSON is YAML
        json.dumps({"global": seconds, "rule_files": [str(rules)], "scrape_configs": [scrape]})
    )
    command = [program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with open(folder / "prometheus.log", "w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        server, deadline = Prometheus(address), time.monotonic() + SECONDS_TO_START
        while not server.is_ready:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "prometheus.log").read_text()
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(30)
