"""Flags that the installed XLA has: each release removes some, and a process aborts on an unknown flag."""

import os
import subprocess
import sys
from collections.abc import Sequence

START_XLA = "from jaxlib import xla_client; xla_client.make_cpu_client()"  # a third of the time of `import jax`


def known_flags(flags: Sequence[str]) -> list[str]:
    """Returns the flags with which the installed XLA starts.

    Each trial is a separate process, since XLA reads its flags once and aborts on an unknown one. The names cannot be
    looked up in the shared library, which also has the names of removed options.
    """
    if _exit_codes([flags]) == [0]:
        return list(flags)
    return [flag for flag, code in zip(flags, _exit_codes([[flag] for flag in flags])) if code == 0]


def _exit_codes(trials: Sequence[Sequence[str]]) -> list[int]:
    """Exit codes of processes that start XLA with one list of flags each; they run at the same time."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START_XLA],
            env={**environment, "XLA_FLAGS": " ".join(flags)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for flags in trials
    ]
    return [process.wait() for process in processes]
