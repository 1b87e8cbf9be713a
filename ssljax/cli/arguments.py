"""Arguments that several commands share, and what commands do before their work."""

import argparse
import logging
import os
import pathlib
from typing import NoReturn

from ssljax.base.errors import UserError

Overrides = list[tuple[str, str]]  # ("a.b", "value") for each --config.a.b=value


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def add_processes(command: argparse.ArgumentParser) -> None:
    """Adds the options that number the processes of a job."""
    group = command.add_argument_group("several processes, where the environment does not tell (launch/README.md)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 connects the others")
    group.add_argument("--process-id", type=int, metavar="I", help="number of this process, from 0")
    group.add_argument("--num-processes", type=int, metavar="N", help="1: a single process in any environment")


def overrides(rest: list[str], options: argparse.Namespace) -> Overrides:
    """Parses every `--config.a.b=value` or `--config.a.b value` to ("a.b", "value"); of `eval`, `--evals.a.b`.

    Raises:
        UserError: an argument that the command does not know, or one without a value.
    """
    out: Overrides = []
    words, prefix = iter(rest), getattr(options, "prefix", None)
    for word in words:
        if prefix is None or not word.startswith(prefix):
            command = f"ssljax {options.command}"
            raise UserError(f"{word}: unknown argument of `{command}`; see `{command} --help`")
        key, equals, value = word.removeprefix(prefix).partition("=")
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise UserError(f"{word}: has no value; write {word}=VALUE") from None
        out.append((key, value))
    return out


def start(options: argparse.Namespace) -> None:
    """Connects the processes of a job; only the first one reports what all do."""
    from ssljax import parallel

    job = parallel.start(options.coordinator, options.process_id, options.num_processes)
    if job and job.process_id:
        logging.getLogger().setLevel(logging.WARNING)


def compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the environment sets another folder or threshold."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path("~/.cache/ssljax/xla").expanduser()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
