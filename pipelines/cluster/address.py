"""Whether something answers at ``RAY_ADDRESS``, asked without Ray, which takes seconds to import."""

from __future__ import annotations

import os
import socket

from engine.errors import Fault

#: Seconds within which a cluster must take a connection.
CONNECT_SECONDS = 5.0


def silent_address() -> list[Fault]:
    """A fault if ``RAY_ADDRESS`` is HOST:PORT and nothing takes a connection there."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        return []
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = f"no Ray answers at {address!r}: {type(error).__name__}: {error}"
        remedy = "set it to HOST:PORT of a running cluster, or unset it to start a local Ray"
        return [Fault("environment variable RAY_ADDRESS", reason, remedy)]
    return []
