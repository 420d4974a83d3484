"""What a local Ray starts instead of Python for a worker: it asks the fork server for a copy that has its imports.

    python -I -S forked_worker.py SOCKET SETUP_WORKER DEFAULT_WORKER ARGUMENT...

It imports next to nothing, since it runs once for each worker. Where no fork server answers, or the worker needs more
of its own than environment variables, it becomes the plain worker.
"""

import json
import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET
from _socket import socket as plain_socket

#: What a request begins with: its length, in this many digits.
DIGITS = 8

#: Arguments for ``setup_worker.py``: the worker's own environment, and its language, which the worker does not know.
OWN_ENVIRONMENT, LANGUAGE = "--serialized-runtime-env-context=", "--language="


def main(path: str, setup_worker: str, worker: str, *arguments: str) -> None:
    """Have the worker forked and end, or become the worker."""
    own = [argument.removeprefix(OWN_ENVIRONMENT) for argument in arguments if argument.startswith(OWN_ENVIRONMENT)]
    plain = [argument for argument in arguments if not argument.startswith((OWN_ENVIRONMENT, LANGUAGE))]
    try:
        ask(path, [worker, *plain], variables_alone(*own) if own else {})
    except OSError:
        command = [setup_worker, worker, *arguments] if own else [worker, *plain]
        os.execv(sys.executable, [sys.executable, *command])


def variables_alone(own_environment: str) -> dict[str, str]:
    """The variables of a worker's own environment.

    Raises:
        OSError: it has another Python, or a program before it, which no fork has.
    """
    own = json.loads(own_environment)
    variables = own.pop("env_vars", {})
    if own.pop("py_executable", sys.executable) != sys.executable or any(own.values()):
        raise OSError("a worker with a program of its own")
    return variables


def ask(path: str, command: list[str], added: dict[str, str]) -> None:
    """Send the command, the folder, the environment and the open files; wait until the worker is forked.

    Raises:
        OSError: no fork server answers.
    """
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    parts = [os.getcwd(), json.dumps(added), *command, "", *environment]
    request = "\0".join(parts).encode("utf8", "surrogateescape")
    connection = plain_socket(AF_UNIX, SOCK_STREAM)
    connection.connect(path)
    files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    connection.sendmsg([b"%0*d" % (DIGITS, len(request))], [(SOL_SOCKET, SCM_RIGHTS, files)])
    connection.sendall(request)
    if not connection.recv(1):
        raise OSError("the fork server has ended")


if __name__ == "__main__":
    main(*sys.argv[1:])
