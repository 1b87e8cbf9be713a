"""The roll call of a job: all processes go on together, or each of them says in one line why not."""

import concurrent.futures
import contextlib
import dataclasses
import json
import socket
import time
from importlib.metadata import version

import pytest

from ssljax.base.errors import UserError
from ssljax.parallel import roll_call


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


def outcomes(address, *places, seconds=5.0):
    """Outcomes of processes (id, number of processes), here threads: "" or the error."""

    def hold(place):
        try:
            roll_call.hold(address, *place, seconds)
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(hold, places))


def test_all_processes_go_on_together(address):
    assert outcomes(address, (0, 4), (1, 4), (2, 4), (3, 4)) == [""] * 4


def test_others_may_come_first(address):
    with concurrent.futures.ThreadPoolExecutor() as threads:
        other = threads.submit(outcomes, address, (1, 2))
        time.sleep(0.5)
        assert outcomes(address, (0, 2)) == other.result() == [""]


def test_two_processes_with_one_number(address):
    lines = outcomes(address, (0, 3), (1, 3), (1, 3))
    assert len(set(lines)) == 1 and lines[0].startswith("two processes have the process id 1: (")


def test_two_processes_with_number_0(address):
    lines = outcomes(address, (0, 3), (0, 3))
    assert len(set(lines)) == 1 and lines[0].startswith("two processes have the process id 0: (")


def test_different_numbers_of_processes(address):
    lines = outcomes(address, (0, 2), (1, 3))
    assert len(set(lines)) == 1 and "is 2 in process 0 (" in lines[0] and "but 3 in process 1 (" in lines[0]


def test_different_versions(address, monkeypatch):
    versions = iter(["0.10.2", "0.10.2", "0.11.0", "0.11.0"])
    monkeypatch.setattr(roll_call, "version", lambda _: next(versions))
    lines = outcomes(address, (0, 2), (1, 2))
    assert len(set(lines)) == 1 and lines[0].startswith("versions differ: process 0 (")


def test_a_process_that_does_not_come(address):
    start = time.monotonic()
    lines = outcomes(address, (0, 4), (2, 4), seconds=1)
    assert set(lines) == {f"processes 1, 3 of 4 did not come to {address} within 1 s"}
    assert time.monotonic() - start < 3


def test_a_coordinator_that_cannot_be_reached(address):
    start = time.monotonic()
    (line,) = outcomes(address, (1, 2), seconds=0.5)
    assert line.startswith(f"--coordinator: process 0 of the job cannot be reached at {address} within 0.5 s (Conn")
    (line,) = outcomes("nowhere.invalid:9", (1, 2), seconds=0.5)
    assert "cannot be reached at nowhere.invalid:9" in line
    assert time.monotonic() - start < 10  # a name server may take its time


def test_a_process_that_left_is_not_counted(address):
    """Its scheduler may start it again; strangers are not counted either."""
    versions = f"jax {version('jax')}, jaxlib {version('jaxlib')}"
    message = roll_call._Present(1, 3, versions, "here")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        first = threads.submit(outcomes, address, (0, 3))
        host, port = address.split(":")
        for words in (json.dumps(dataclasses.asdict(message)).encode(), b"GET / HTTP/1.1"):
            for _ in range(20):
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port))) as one:
                    one.sendall(words)
                    time.sleep(0.3)
                    break
                time.sleep(0.1)
        time.sleep(0.3)
        assert not first.done()
        assert outcomes(address, (1, 3), (2, 3)) == ["", ""]
        assert first.result() == [""]


def test_another_program_at_the_address():
    with socket.create_server(("127.0.0.1", 0)) as server, concurrent.futures.ThreadPoolExecutor() as threads:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        line = threads.submit(outcomes, address, (1, 2))
        connection, _ = server.accept()
        connection.sendall(b"SSH-2.0\n")
        connection.close()
        assert "answers, but not as process 0 of a job that starts" in line.result()[0]
