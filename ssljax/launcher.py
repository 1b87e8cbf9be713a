"""Supervisor of the processes of a job on one machine: `python -m ssljax.launcher -n 4 train --config ...`.

When a process of a job dies, JAX aborts the others without Python, some time later. So the processes have a parent that
never imports JAX. It says which process died and why, gives the others a bounded time, ends all that is left, and
returns the exit code.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from ssljax.base.errors import UserError, one_line
from ssljax.base.signals import STOPPED

USER_ERROR = 2
_POLL_SECONDS = 0.1
_COMMANDS = ("train", "eval", "sweep")  # of ssljax; any other command is a program


@dataclasses.dataclass(frozen=True)
class Launch:
    """Processes to start, and bounds of time for their end.

    Attributes:
        command: words of a command of ssljax, or of any program that calls `ssljax.parallel.start()`.
        processes: number of processes.
        devices: CPU devices of each process; None: the devices that the machine has.
        port: at which process 0 connects the others; None: a free one.
        grace: seconds that the other processes have after one died.
        restarts: number of times that all are started again after a failure.
        logs: folder for the output of all processes but 0; None: a temporary one, kept after a failure.
    """

    command: tuple[str, ...]
    processes: int
    devices: int | None = None
    port: int | None = None
    grace: float = 60.0
    restarts: int = 0
    logs: pathlib.Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the processes that the arguments describe; returns the exit code."""
    try:
        options = _parser().parse_args(arguments)
        names = ("processes", "devices", "port", "grace", "restarts", "logs")
        launch = Launch(_words(options.command), **{name: getattr(options, name) for name in names})
        if options.dry_run:
            for process_id in range(launch.processes):
                settings = " ".join(f"{k}={v}" for k, v in environment(launch, process_id, launch.port or 0).items())
                print(f"{settings} {shlex.join(launch.command)}")
            return 0
        return supervise(launch)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="launch", description="Start a job of several processes on this machine.")
    parser.add_argument("-n", "--processes", type=_count, required=True, metavar="N")
    parser.add_argument(
        "--devices-per-process", dest="devices", type=_count, metavar="K", help="simulated CPU devices of each process"
    )
    parser.add_argument("--port", type=_count, help="at which process 0 connects the others (default: a free one)")
    parser.add_argument(
        "--grace", type=float, default=60.0, metavar="SECONDS", help="for the others after one died (default: 60)"
    )
    parser.add_argument(
        "--restarts", type=int, default=0, metavar="K", help="start all again after a failure, up to K times"
    )
    parser.add_argument(
        "--logs", type=pathlib.Path, metavar="DIR", help="for the output of processes 1, 2, ... (default: temporary)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    command = "a command of ssljax (train, eval, sweep), or a program that calls ssljax.parallel.start()"
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help=command)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a whole number, at least 1")
    return int(text)


def _words(command: Sequence[str]) -> tuple[str, ...]:
    words = tuple(command[1:] if command[:1] == ["--"] else command)
    if not words:
        raise UserError("COMMAND: missing, such as train --config configs/quickstart.py --workdir runs/first")
    if words[0] in _COMMANDS:
        return (sys.executable, "-m", "ssljax.cli", *words)
    if shutil.which(words[0]) is None:
        raise UserError(f"{words[0]}: no such program, nor a command of ssljax that several processes can run")
    return words


def environment(launch: Launch, process_id: int, port: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that a process gets in addition.

    Raises:
        UserError: the processes cannot share the GPUs of the machine evenly.
    """
    settings = {
        "SSLJAX_COORDINATOR": f"127.0.0.1:{port}",
        "SSLJAX_PROCESS_ID": str(process_id),
        "SSLJAX_NUM_PROCESSES": str(launch.processes),
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
    }
    if launch.devices:
        settings |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(launch.devices)}
        # With fewer threads than devices, two collectives can wait for each other for ever.
        threads = str(max(2 * launch.devices, os.cpu_count() or 1))
        settings |= {name: threads for name in ("NPROC", "PJRT_NPROC") if name not in environ}
    elif gpus := _gpus(environ):
        if gpus % launch.processes:
            raise UserError(
                f"-n: {launch.processes} processes cannot share {gpus} GPUs evenly; JAX_PLATFORMS=cpu uses none"
            )
        share = gpus // launch.processes
        devices = range(process_id * share, (process_id + 1) * share)
        settings["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, devices))
    return settings


def _gpus(environ: Mapping[str, str]) -> int:
    """Number of NVIDIA GPUs that a process would use; 0 if it is told to use none."""
    if not re.search("gpu|cuda", environ.get("JAX_PLATFORMS", "gpu")):
        return 0
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name not in ("", "-1")])
    return len(list(pathlib.Path("/proc/driver/nvidia/gpus").glob("*")))


def supervise(launch: Launch) -> int:
    """Runs the processes to their end, again after failures; returns the exit code.

    It is 0 if all processes ended with 0, 75 if they were stopped and saved, and otherwise that of the first failure,
    or 128 + N for signal N. SIGTERM and SIGINT are passed on once; a second one kills all processes.
    """
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    logs = launch.logs or pathlib.Path(tempfile.mkdtemp(prefix="ssljax-"))
    logs.mkdir(parents=True, exist_ok=True)
    with _guard() as guard:
        for restart in range(launch.restarts + 1):
            code = _Group(launch, logs, guard).run(received)
            if code in (0, USER_ERROR, STOPPED) or received or restart == launch.restarts:
                break
            _say(f"starting again, {restart + 1} of {launch.restarts}")
    if code == 0 and launch.logs is None:
        shutil.rmtree(logs)
    return code


class _Group:
    """The processes of one start, each the leader of a process group of its own."""

    def __init__(self, launch: Launch, logs: pathlib.Path, guard: "_Guard"):
        self._launch, self._guard = launch, guard
        self._files: dict[int, pathlib.Path] = {i: logs / f"process-{i}.txt" for i in range(1, launch.processes)}
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._codes: list[int] = []  # in the order of the ends

    def run(self, received: list[int]) -> int:
        """Starts the processes and waits for their end; returns the exit code of the group."""
        deadline = passed_on = None
        try:
            self._start()
            while self._running:
                failed = self._collect()
                if failed and deadline is None:
                    deadline = time.monotonic() + self._launch.grace
                if received and passed_on is None:
                    passed_on = received[0]
                    for process in self._running.values():
                        process.send_signal(passed_on)
                if len(received) > 1:
                    return 128 + received[1]
                if self._running and deadline and time.monotonic() > deadline:
                    left = ", ".join(map(str, self._running))
                    _say(f"after {self._launch.grace:g} s, ending what has not left: {left}")
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            self._end()
        return exit_code(self._codes)

    def _start(self) -> None:
        port = self._launch.port or _free_port()
        for i in range(self._launch.processes):
            with contextlib.ExitStack() as stack:
                output = stack.enter_context(open(self._files[i], "ab")) if i else None
                process = subprocess.Popen(
                    self._launch.command,
                    env={**os.environ, **environment(self._launch, i, port)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            self._guard.add(process.pid)
            self._running[i] = process

    def _collect(self) -> bool:
        """Takes note of processes that have ended; returns True if one of them has failed."""
        ended = {i: code for i, process in self._running.items() if (code := process.poll()) is not None}
        for i, code in ended.items():
            process = self._running.pop(i)
            self._kill(process)
            self._codes.append(code if code >= 0 else 128 - code)
            if code not in (0, STOPPED) and all(c in (0, STOPPED) for c in self._codes[:-1]):
                _say(self._obituary(i, code))
        return any(ended.values())

    def _obituary(self, i: int, code: int) -> str:
        cause = f"ended with exit code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
        line = f"process {i} of {self._launch.processes} {cause}"
        if self._running:
            line += f"; the others have {self._launch.grace:g} s to leave"
        if i:
            error = last_error(self._files[i].read_text(errors="replace"))
            line += f"; {self._files[i]}: {error}" if error else f"; its output is in {self._files[i]}"
        return line

    def _kill(self, process: "subprocess.Popen[bytes]") -> None:
        """Kills what is left of a process and of its children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._guard.remove(process.pid)

    def _end(self) -> None:
        for process in self._running.values():
            self._kill(process)
            self._codes.append(128 + signal.SIGKILL)


def exit_code(codes: Sequence[int]) -> int:
    """The exit code of a group, from those of its processes in the order of their ends."""
    return next((code for code in codes if code not in (0, STOPPED)), max(codes))


def last_error(text: str) -> str:
    """The last line of a log that names an error; empty if there is none."""
    named = [line.strip() for line in text.splitlines() if re.search(r"(?i)error\b|exception\b|^F\d{4} ", line)]
    return one_line(named[-1])[:300] if named else ""


class _Guard:
    """A child process that kills the process groups of which it was told, should this process die without doing so."""

    def __init__(self, pipe: int):
        self._pipe = pipe

    def add(self, group: int) -> None:
        os.write(self._pipe, b"%d\n" % group)

    def remove(self, group: int) -> None:
        os.write(self._pipe, b"%d\n" % -group)


@contextlib.contextmanager
def _guard() -> Iterator[_Guard]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _watch_over(read, write)
    os.close(read)
    try:
        yield _Guard(write)
    finally:
        os.close(write)
        os.waitpid(child, 0)


def _watch_over(read: int, write: int) -> None:
    os.setsid()
    os.close(write)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # a reader of our output must not wait for this process
        os.dup2(null, stream)
    groups: set[int] = set()
    with open(read) as numbers:
        for number in map(int, numbers):
            groups = groups | {number} if number > 0 else groups - {-number}
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    os._exit(0)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _say(line: str) -> None:
    print(f"launch: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
