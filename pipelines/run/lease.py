"""The lease of an output folder: one run at a time works there.

The owner renews the lease while it runs. After a crash the lease expires by itself; on the owner's own machine it ends
as soon as the owner's process is gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime

import fsspec
import psutil

from engine.errors import Fault, FusionError, PreflightError

LEASE_FILE = "lease.json"

#: The owner renews its lease so often, and a lease that was not renewed for so long has expired.
RENEW_SECONDS, EXPIRE_SECONDS = 15.0, 90.0

#: The same process may seem to have started at times so far apart, since the machine's clock is corrected.
CLOCK_SECONDS = 5.0

#: Object stores have no exclusive creation: of two runs that start at once the last to write keeps the lease.
SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Lease:
    """An owner of an output folder.

    Attributes:
        host, pid: of the run's driver.
        started: of that process, seconds since 1970; a process id may come again.
        renewed: last renewal, seconds since 1970.
        token: of this lease alone.
    """

    host: str
    pid: int
    started: float
    renewed: float
    token: str

    def is_held(self, now: float) -> bool:
        """Whether the owner may still be at work."""
        if self.host == socket.gethostname():
            return abs(_started(self.pid) - self.started) < CLOCK_SECONDS
        return now - self.renewed < EXPIRE_SECONDS

    def __str__(self) -> str:
        start = datetime.fromtimestamp(self.started).isoformat(" ", "seconds")
        return f"process {self.pid} on {self.host}, started {start}"


@contextmanager
def lease(output_dir: str) -> Iterator[None]:
    """Own the output folder for as long as the block lasts.

    Raises:
        PreflightError: another run owns the folder, or the folder cannot be written.
        FusionError: another run has taken the folder over, since this one could not renew its lease in time.
    """
    mine = Lease(socket.gethostname(), os.getpid(), _started(os.getpid()), time.time(), uuid.uuid4().hex)
    try:
        _take(output_dir, mine)
    except PreflightError:
        raise
    except Exception as error:  # of the disk, or of a store's client, which has kinds of its own
        reason = f"{output_dir} cannot be written: {type(error).__name__}: {error}"
        raise PreflightError([Fault("run.output_dir", reason, "choose another folder")]) from error
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # ignored in a script's background; the renewal needs it
    done, lost = threading.Event(), threading.Event()
    renewal = threading.Thread(target=_renew, args=(output_dir, mine, done, lost), daemon=True, name="lease")
    renewal.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            sentence = f"{output_dir}: another run has taken the folder over: {_read(output_dir)}"
            raise FusionError(f"{sentence}; this one could not renew its lease in time") from None
        raise
    finally:
        done.set()
        renewal.join()
        with suppress(Exception):  # a lease that cannot be deleted expires
            _give_up(output_dir, mine)


def _take(output_dir: str, mine: Lease) -> None:
    _refuse_other(output_dir, mine)
    _write(output_dir, mine)
    time.sleep(SETTLE_SECONDS)
    _refuse_other(output_dir, mine)


def _refuse_other(output_dir: str, mine: Lease) -> None:
    other = _read(output_dir)
    if other is not None and other.token != mine.token and other.is_held(time.time()):
        reason = f"{output_dir} belongs to a run that is at work: {other}"
        remedy = (
            f"wait for it, stop it, or choose another folder; after a crash on another machine the folder is free "
            f"{EXPIRE_SECONDS:.0f} s after the last sign of life"
        )
        raise PreflightError([Fault("run.output_dir", reason, remedy)])


def _renew(output_dir: str, mine: Lease, done: threading.Event, lost: threading.Event) -> None:
    """Renew the lease until the run has ended; interrupt the run if another one holds the lease."""
    while not done.wait(RENEW_SECONDS):
        try:
            current = _read(output_dir)
            if current is not None and current.token != mine.token and current.is_held(time.time()):
                lost.set()
                os.kill(os.getpid(), signal.SIGINT)
                return
            _write(output_dir, Lease(**{**asdict(mine), "renewed": time.time()}))
        except Exception:  # a store out of reach for a moment, whose errors are of many kinds; the next renewal follows
            continue


def _give_up(output_dir: str, mine: Lease) -> None:
    current = _read(output_dir)
    if current is not None and current.token == mine.token:
        filesystem, path = _place(output_dir)
        filesystem.rm_file(path)


def _read(output_dir: str) -> Lease | None:
    filesystem, path = _place(output_dir)
    filesystem.invalidate_cache()
    try:
        return Lease(**json.loads(filesystem.cat_file(path)))
    except (FileNotFoundError, ValueError, TypeError):  # none, or no lease of ours
        return None


def _write(output_dir: str, mine: Lease) -> None:
    filesystem, path = _place(output_dir)
    filesystem.makedirs(os.path.dirname(path), exist_ok=True)
    # Renamed into place: another run that reads half a lease would take it for none.
    part = f"{path}.{mine.token}"
    filesystem.pipe_file(part, json.dumps(asdict(mine)).encode("utf8"))
    filesystem.mv(part, path)


def _place(output_dir: str) -> tuple[fsspec.AbstractFileSystem, str]:
    filesystem, folder = fsspec.core.url_to_fs(output_dir)
    return filesystem, os.path.join(folder, LEASE_FILE)


def _started(pid: int) -> float:
    """When a process has started, seconds since 1970; 0 if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0
