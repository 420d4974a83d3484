"""Ray for a run: settings that Ray knows, and refusals where it cannot be reached or started."""

import re
import threading
import time
from contextlib import nullcontext
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import ray
from ray._private import services

from engine.errors import PreflightError
from engine.spec import FusionSpec
from pipelines.cluster import session
from pipelines.cluster.session import CONNECT_SECONDS, LOCAL, QUIET, TRAIN_TAB, ray_session

pytestmark = pytest.mark.timeout(60)


def test_this_ray_reads_every_setting():
    folder = Path(ray.__file__).parent
    sources = [path for part in ("_private", "dashboard", "data", "train") for path in (folder / part).rglob("*.py")]
    texts = [path.read_bytes() for path in (folder / "core/src/ray/raylet/raylet", *sources)]
    settings = {*QUIET, *LOCAL, TRAIN_TAB} - {"TOKENIZERS_PARALLELISM"}  # of another library
    assert not [name for name in settings if not any(name.encode() in text for text in texts)]


def spec(folder: Path) -> FusionSpec:
    return FusionSpec.model_validate(
        {
            "run": {"name": "none", "output_dir": str(folder)},
            "corpus": {"paths": ["unused"]},
            "target_model": {"checkpoint": "unused"},
        }
    )


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "ConnectionError: UNAVAILABLE: .*refused"),
        ("127.0.0.1:none", "ConnectionError: UNAVAILABLE"),
        ("nonsense", "ValueError"),
        ("ray://127.0.0.1:1", "ConnectionError: a run needs a cluster's own address"),
        ("no-such-host.invalid:6379", "ConnectionError: (UNAVAILABLE|DEADLINE_EXCEEDED)"),
    ],
)
def test_an_address_where_no_ray_answers_is_refused_at_once(tmp_path, monkeypatch, address, reason):
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(PreflightError) as refused, ray_session(spec(tmp_path), ()):
        pass
    assert time.monotonic() - started < 2 * CONNECT_SECONDS
    where = re.escape(f"environment variable RAY_ADDRESS: no Ray answers at '{address}': ")
    assert re.search(where + reason, str(refused.value))
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (None, "no Ray answers at 'auto': ConnectionError: Could not find any running Ray instance"),
        ("127.0.0.1:1", "no Ray answers at '.*:1': ConnectionError: UNAVAILABLE"),
    ],
)
def test_a_cluster_that_ray_must_find_itself_is_refused_where_none_answers(tmp_path, monkeypatch, known, reason):
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda temp_dir: known)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    started = time.monotonic()
    with pytest.raises(PreflightError, match=reason), ray_session(spec(tmp_path), ()):
        pass
    assert time.monotonic() - started < 2 * CONNECT_SECONDS
    assert not ray.is_initialized()


@pytest.mark.parametrize("answers", [True, False], ids=["speaks HTTP", "says nothing"])
def test_a_port_of_something_else_is_refused_within_seconds(tmp_path, monkeypatch, answers):
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{other.server_port}")
        thread = threading.Thread(target=other.serve_forever)
        if answers:
            thread.start()
        started = time.monotonic()
        with pytest.raises(PreflightError, match="no Ray answers at"), ray_session(spec(tmp_path), ()):
            pass
        assert time.monotonic() - started < 2 * CONNECT_SECONDS
        if answers:
            other.shutdown()
            thread.join()


@pytest.mark.parametrize("starts_ray", [True, False])
def test_ray_is_left_even_if_its_helpers_do_not_end_and_nodes_are_asked_for_of_clusters_alone(
    tmp_path, monkeypatch, starts_ray
):
    calls: list[str] = []

    def ends_badly() -> None:
        raise ProcessLookupError("the dashboard has ended already")

    monkeypatch.setattr(session, "starts_local_ray", lambda: starts_ray)
    monkeypatch.setattr(session, "_start", lambda spec, cpus: calls.append("start"))
    monkeypatch.setattr(session, "_join", lambda address: calls.append("join"))
    monkeypatch.setattr(session, "nodes_asked_for", lambda needs: calls.append("ask") or nullcontext())
    monkeypatch.setattr(session, "wait_for_room", lambda *_: None)
    monkeypatch.setattr(session, "look_ahead", lambda later, may_grow, say: calls.append(f"may grow: {may_grow}"))
    monkeypatch.setattr(session, "_end_helpers", ends_badly)
    monkeypatch.setattr(session.ray, "shutdown", lambda: calls.append("leave"))
    with pytest.raises(ProcessLookupError) if starts_ray else nullcontext(), ray_session(spec(tmp_path), ()):
        pass
    begun = ["start"] if starts_ray else ["join", "ask"]
    assert calls == [*begun, f"may grow: {not starts_ray}", "leave"]


def test_an_empty_address_starts_a_local_ray_whose_folder_must_be_short(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 30)))
    sentence = r"a local Ray does not start, tried 2 times: .*; .*set RAY_TMPDIR to a short folder"
    with pytest.raises(PreflightError, match=sentence), ray_session(spec(tmp_path), ()):
        pass
    assert not ray.is_initialized()


def test_a_local_ray_that_misses_its_time_limit_once_is_started_again(tmp_path, monkeypatch):
    attempts = []

    def slow_at_first(*_arguments):
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise TimeoutError("the node did not register in time")

    monkeypatch.setattr(session, "_start_once", slow_at_first)
    session._start(spec(tmp_path), 1)
    assert attempts == [0, 1]
