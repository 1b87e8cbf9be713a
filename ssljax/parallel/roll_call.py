"""A roll call before the start of a job: process 0 waits until each process has come and has equal settings.

JAX ends the process with a stack trace of C++ if the processes do not find each other. The roll call comes first, at
the same address, and gives the reason in one line, in every process that it reached.
"""

import contextlib
import dataclasses
import errno
import json
import os
import selectors
import socket
import time
from importlib.metadata import version
from typing import cast

from ssljax.base.errors import UserError

_RETRY_SECONDS = 0.2
_LONGEST = 65536  # bytes of a message


@dataclasses.dataclass(frozen=True)
class _Present:
    """The message with which a process answers the call."""

    process_id: int
    num_processes: int
    versions: str
    where: str


def hold(address: str, process_id: int, num_processes: int, seconds: float) -> None:
    """Returns when all processes have come to `address` (HOST:PORT), where process 0 listens.

    Raises:
        UserError: not all came within `seconds`, two have the same number, or their settings or versions differ.
    """
    versions = f"jax {version('jax')}, jaxlib {version('jaxlib')}"
    own = _Present(process_id, num_processes, versions, f"{socket.gethostname()}, pid {os.getpid()}")
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    if process_id == 0:
        try:
            server = _listen(int(port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"--coordinator: cannot listen on port {port}: {error.strerror}") from error
        else:
            with server:
                _call(server, own, address, deadline, seconds)
            return
    _answer((host.strip("[]"), int(port)), own, deadline, seconds)  # a second process 0 is told of the first


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=4096)


def _call(server: socket.socket, own: _Present, address: str, deadline: float, seconds: float) -> None:
    """Waits for the other processes and tells them the outcome."""
    connected: dict[socket.socket, _Present | None] = {}  # None: it has not spoken yet
    problem = ""
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while not problem and len(_present(connected)) < own.num_processes - 1:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                problem = _absence(own, _present(connected), address, seconds)
            for key, _ in ready:
                if key.fileobj is server:
                    connection = server.accept()[0]
                    selector.register(connection, selectors.EVENT_READ)
                    connected[connection] = None
                    continue
                connection = cast(socket.socket, key.fileobj)
                message = _read(connection)
                if message and not connected[connection]:
                    problem = problem or _contradiction([own, *_present(connected)], message)
                    connected[connection] = message
                else:  # it has left, or is no process of a job
                    selector.unregister(connection)
                    connection.close()
                    del connected[connection]
    for connection in connected:
        with connection, contextlib.suppress(OSError):  # it may just have left, which JAX will notice
            connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
    if problem:
        raise UserError(problem)


def _present(connected: dict[socket.socket, _Present | None]) -> list[_Present]:
    return [message for message in connected.values() if message]


def _absence(own: _Present, present: list[_Present], address: str, seconds: float) -> str:
    away = sorted(set(range(1, own.num_processes)) - {p.process_id for p in present})
    listed = f"process{'es' * (len(away) > 1)} {', '.join(map(str, away[:10]))}{', ...' * (len(away) > 10)}"
    return f"{listed} of {own.num_processes} did not come to {address} within {seconds:g} s"


def _read(connection: socket.socket) -> _Present | None:
    """The message of a process; None: the connection is closed, or something else speaks there."""
    try:
        connection.settimeout(5)
        return _Present(**json.loads(connection.recv(_LONGEST)))
    except (OSError, ValueError, TypeError):
        return None


def _contradiction(known: list[_Present], new: _Present) -> str:
    """Describes how a process contradicts the known ones; "" if it does not."""
    first = known[0]
    if new.num_processes != first.num_processes:
        return (
            f"the number of processes is {first.num_processes} in process 0 ({first.where}), but {new.num_processes} "
            f"in process {new.process_id} ({new.where})"
        )
    twin = next((old for old in known if old.process_id == new.process_id), None)
    if twin:
        return f"two processes have the process id {new.process_id}: ({twin.where}) and ({new.where})"
    if new.versions != first.versions:
        return (
            f"versions differ: process 0 ({first.where}) has {first.versions}, but process {new.process_id} "
            f"({new.where}) {new.versions}"
        )
    return ""


def _answer(address: tuple[str, int], own: _Present, deadline: float, seconds: float) -> None:
    """Reports to process 0 and waits for the outcome."""
    shown, reason = f"{address[0]}:{address[1]}", "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=min(left, 5)) as connection:
                connection.sendall(json.dumps(dataclasses.asdict(own)).encode() + b"\n")
                connection.settimeout(seconds + 5)  # process 0 may have started later, and now decides
                outcome = connection.makefile("rb").readline(_LONGEST)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
        else:
            if outcome:
                return _end(outcome, shown, own)
            reason = "the connection was closed"
        time.sleep(_RETRY_SECONDS)
    raise UserError(
        f"--coordinator: process 0 of the job cannot be reached at {shown} within {seconds:g} s ({reason}); check that "
        "it runs there and that no firewall is between"
    )


def _end(outcome: bytes, shown: str, own: _Present) -> None:
    try:
        problem = json.loads(outcome)["problem"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--coordinator: {shown} answers, but not as process 0 of a job that starts: another program has the port, "
            f"or the job has begun with another process {own.process_id}"
        ) from error
    if problem:
        raise UserError(problem)
