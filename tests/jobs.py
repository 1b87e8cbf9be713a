"""Jobs of several processes on this machine, for tests."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

WORKER = """
import json, sys
import jax
number, count, port, seconds, requests = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
jax.config.update("jax_default_matmul_precision", "highest")
from ssljax import cli, parallel
parallel.start(f"localhost:{port}", number, count, heartbeat_seconds=seconds)
if number:
    import logging
    logging.getLogger("ssljax").setLevel(logging.WARNING)
exec(sys.argv[6])
for arguments in json.loads(open(requests).read()):
    code = cli.main(arguments)
    if code:
        sys.exit(code)
"""


@dataclasses.dataclass
class Job:
    """The processes of a job that runs `ssljax` commands one after another."""

    processes: list[subprocess.Popen]
    logs: list[pathlib.Path]

    def wait(self, seconds: float = 600) -> list[int]:
        """Exit codes of all processes."""
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def output(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in self.logs)


def start(
    folder: pathlib.Path,
    commands: Sequence[Sequence[str]],
    processes: int,
    devices: int,
    heartbeat: int = 10,
    hook: str = "",
) -> Job:
    """Starts a job; its requests and logs are in a folder.

    Args:
        folder: a folder for the logs.
        commands: arguments of `ssljax`.
        processes: number of processes.
        devices: devices of each process.
        heartbeat: seconds without a sign of life after which a process counts as dead.
        hook: Python that runs in each process before the commands; it may read `number`, the number of the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    requests = folder / "requests.json"
    requests.write_text(json.dumps([list(map(str, command)) for command in commands]))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    logs = [folder / f"process-{i}.log" for i in range(processes)]
    started = []
    for i, log in enumerate(logs):
        with log.open("a") as file:
            numbers = [str(number) for number in (i, processes, port, heartbeat)]
            command = [sys.executable, "-c", WORKER, *numbers, str(requests), hook]
            started.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))
    return Job(started, logs)


def train(config: dict, workdir: pathlib.Path, address: str | None = None) -> list[str]:
    """The arguments of `ssljax train` for a config, which is written beside the workdir; `address` is used instead."""
    file = workdir.parent / f"{workdir.name}.py"
    file.write_text(f"def get_config(arg=''):\n    return {config!r}\n")
    return ["train", "--config", str(file), "--workdir", address or str(workdir)]


def apart(caches: pathlib.Path) -> str:
    """A hook after which the processes share no folder but what is at `disk://`, and send it at short intervals.

    Args:
        caches: folder of the caches, one for each process.
    """
    return f"""
import os, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import disk
from ssljax.runs import mirror
mirror.INTERVAL, mirror.ANSWER, mirror.PATIENCE = 0.1, 0.1, 2.0
os.environ["SSLJAX_CACHE"] = {str(caches)!r} + f"/{{number}}"
"""


def killed_while_sending(step: int) -> str:
    """A hook, after `apart`, that kills process 1 with signal 9 while it sends its shards of a step.

    A checkpoint is saved once the one before, 4 steps earlier, is sent.
    """
    return f"""
import time
from ssljax.runs import recorder
save = recorder.Recorder.save
def save_once_sent(self, step, state):
    while step > 4 and self.workdir.source.bucket.read(f".complete/{{step - 4}}.json") is None:
        time.sleep(0.05)
    save(self, step, state)
recorder.Recorder.save = save_once_sent
if number == 1:
    from ssljax.base import buckets
    upload = buckets.Bucket.upload
    def killed(self, file, name):
        upload(self, file, name)
        if name.startswith("checkpoints/{step}/"): os.kill(os.getpid(), 9)
    buckets.Bucket.upload = killed
"""
