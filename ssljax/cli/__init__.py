"""The command line: each command parses its arguments, calls the library and prints.

Exit codes:
0: success.
1: a run of a study has failed (`ssljax sweep`).
2: a user error, reported in one line.
75: stopped by a signal after saving. The same command continues, so a scheduler may run it again.
141: the output was piped to a program that has closed the pipe (`ssljax list models | head`).
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from ssljax import __version__
from ssljax.base.console import ConsoleHandler
from ssljax.base.errors import UserError, one_line
from ssljax.base.signals import STOPPED, Stopped
from ssljax.cli import laws, listing, models, sweeps, text, training
from ssljax.cli.arguments import Parser, overrides

USER_ERROR, CLOSED_PIPE = 2, 141  # 141: 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `ssljax` command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s", handlers=[ConsoleHandler()])
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not debug:
        _silence_repeats()
    try:
        code = _run(arguments)
        sys.stdout.flush()  # a closed pipe raises here
        return code
    except BrokenPipeError as error:
        if debug or not _reader_left():
            raise
        return _ended(error, CLOSED_PIPE)
    except Stopped as stopped:
        return _ended(stopped, STOPPED, f"stopped: {stopped}")
    except UserError as error:
        if debug:
            raise
        return _ended(error, getattr(error, "exit_code", USER_ERROR), f"error: {error}")
    except OSError as error:  # a full or read-only disk, no permission, a name that is too long
        if debug or not error.errno:
            raise
        advice = "; free some and run the same command" if error.errno == errno.ENOSPC else ""
        said = f"{error.filename or 'disk'}: {error.strerror}{advice}"
        return _ended(error, USER_ERROR, f"error: {one_line(said)}")


def _ended(error: BaseException, code: int, line: str = "") -> int:
    """Prints the line of an error and returns the exit code.

    What all processes of a job raise is said by the leading one. A process that fails alone ends at once, since the
    usual end waits for the others.
    """
    of_all, parallel = getattr(error, "of_all", False), sys.modules.get("ssljax.parallel")
    if line and (not of_all or parallel is None or parallel.leads()):
        print(line, file=sys.stderr)
    return code if of_all or parallel is None else parallel.leave(code)


def _silence_repeats() -> None:
    """Silences tracebacks from threads of orbax: the main thread raises the same error, reported in one line."""
    for logger in ("absl", "asyncio"):  # orbax logs through absl
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable


def _unraisable(event: Any) -> None:
    # When a read fails, the other reads still report to the event loop, which is closed by then.
    if str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)


def _reader_left() -> bool:
    """Returns True if stdout is a closed pipe, and then redirects it to the null device."""
    try:
        print(flush=True)  # only a write detects a closed pipe
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _run(arguments: list[str]) -> int:
    arguments = [a for a in arguments if a != "--debug"]
    parser, help_words = _parser(), {"-h", "--help"} & set(arguments)
    if help_words and arguments[:1] in (["train"], ["inspect"], ["plan"]) and _names_config(arguments):
        return _config_help(arguments)
    options, rest = parser.parse_known_args(arguments)
    return options.call(options, overrides(rest, options))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ssljax", description="Pretrain anything; one train step for all of it.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    parser.add_argument("--version", action="version", version=f"ssljax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (training, sweeps, laws, models, text):
        module.add(commands)
    listing.add(commands, parser)
    return parser


def _names_config(arguments: Sequence[str]) -> bool:
    return any(a == "--config" or a.startswith("--config=") for a in arguments)


def _config_help(arguments: Sequence[str]) -> int:
    """Prints the keys of the config that the arguments name, with its values."""
    from ssljax.config import load
    from ssljax.reference import describe_config

    words = [a for a in arguments if a not in ("-h", "--help")]
    needed = {"train": ["--workdir", ""], "plan": ["--topology", ""]}.get(words[0], [])
    options, rest = _parser().parse_known_args([*words, *needed])
    config, _ = load(options.config, overrides(rest, options))
    for line in describe_config(config):
        print(line)
    return 0
