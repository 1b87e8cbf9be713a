"""Completion of commands in a shell: a script that the package shtab makes of the parser, for `ssljax completion`."""

import argparse
from collections.abc import Iterator

from ssljax.base.errors import UserError
from ssljax.config import shipped_configs

_FOLDERS = ("workdir", "workdirs", "folder", "hf_folder")
_FILES = ("out", "file")
# Functions of the shells that complete the argument of --config: folders, Python files, and shipped configs.
_PREAMBLE = {
    "bash": """_ssljax_config() {
  compgen -d -- "$1"
  compgen -f -X '!*.py' -- "$1"
  compgen -W "%s" -- "$1"
}""",
    "zsh": """_ssljax_config() {
  _alternative 'files:file:_files -g "*.py"' 'configs:shipped config:(%s)'
}""",
}
SHELLS = tuple(_PREAMBLE)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Returns the script that completes the commands, options and arguments of a parser.

    Args:
        parser: the parser; attributes for shtab are added to its arguments.
        shell: one of SHELLS.

    Raises:
        UserError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs the package shtab: pip install 'ssljax[completion]'") from error
    for action in _actions(parser):
        if action.dest in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest == "config":
            action.complete = dict.fromkeys(SHELLS, "_ssljax_config")  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell, preamble=_PREAMBLE[shell] % " ".join(shipped_configs()))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yields the arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
