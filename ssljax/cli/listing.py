"""Commands that describe the library: list, completion."""

import argparse
import functools
import json
import logging
from collections.abc import Iterable
from typing import Any

from ssljax.base.errors import UserError
from ssljax.cli.arguments import Overrides


def add(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Adds the commands to the parser, of which `completion` makes a script."""
    listing = commands.add_parser("list", help="list the names and the keys that a config may use")
    listing.set_defaults(call=_list)
    kinds = ("objectives", "models", "data", "evals", "optimizers", "schedules", "laws", "configs", "keys", "schema")
    meanings = "keys: type, default and meaning of the keys of a config; schema: all of them as a JSON schema"
    listing.add_argument("kind", choices=kinds, help=meanings)
    listing.add_argument("--matrix", action="store_true", help="for objectives: the inputs on which each of them runs")
    listing.add_argument("group", nargs="?", help="for keys: `objective` lists its names, `objective.simclr` its keys")
    completion = commands.add_parser("completion", help="print the script that completes commands in a shell")
    completion.set_defaults(call=functools.partial(_completion, parser))
    completion.add_argument("shell", choices=("bash", "zsh"), help='in ~/.bashrc: eval "$(ssljax completion bash)"')


def _completion(parser: argparse.ArgumentParser, options: argparse.Namespace, overrides: Overrides) -> int:
    from ssljax.completion import script

    print(script(parser, options.shell))
    return 0


def _list(options: argparse.Namespace, overrides: Overrides) -> int:
    if options.group is not None and options.kind != "keys":
        raise UserError(f"{options.group}: `ssljax list {options.kind}` takes no group (`ssljax list keys` does)")
    if options.matrix and options.kind != "objectives":
        raise UserError(f"--matrix: `ssljax list {options.kind}` has none (`ssljax list objectives` does)")
    if options.matrix:
        return _matrix()
    if options.kind == "models":
        return _list_models()
    if options.kind == "schema":
        from ssljax.json_schema import json_schema

        print(json.dumps(json_schema(), indent=2))
        return 0
    for line in _keys(options.group) if options.kind == "keys" else _names(options.kind):
        print(line)
    return 0


def _keys(group: str | None) -> Iterable[str]:
    from ssljax.reference import describe_keys

    return describe_keys(group or "")


def _matrix() -> int:
    from ssljax.objectives import modalities

    found = modalities()
    inputs = list(dict.fromkeys(name for cells in found.values() for name in cells))
    width = max(map(len, found))
    print(f"{'objective':{width}}", *inputs)
    for objective, cells in found.items():
        marks = (f"{'yes' if name in cells else '':{len(name)}}" for name in inputs)
        print(" ".join((f"{objective:{width}}", *marks)).rstrip())
    print()
    for name in inputs:
        families = next(cells[name] for cells in found.values() if name in cells)
        print(f"{name}: models {', '.join(families)}")
    return 0


def _list_models() -> int:
    from ssljax.models.presets import list_presets

    logging.getLogger("ssljax").setLevel(logging.WARNING)
    for model, preset, parameters, reason in list_presets():
        count = "-" if parameters is None else f"{parameters:,}"
        print(f"{model:12} {preset or '-':16} {count:>16} {reason}".rstrip(), flush=True)
    return 0


def _names(kind: str) -> Iterable[str]:
    if kind == "configs":
        from ssljax.config import shipped_configs

        return shipped_configs()
    if kind == "objectives":
        from ssljax.objectives import REGISTRY
    elif kind == "data":
        from ssljax.data import REGISTRY
    elif kind == "evals":
        from ssljax.evals import REGISTRY
    elif kind == "laws":
        from ssljax.scaling.laws import REGISTRY
    elif kind == "optimizers":
        from ssljax.train.optimizers import REGISTRY
    else:
        from ssljax.train.schedules import REGISTRY
    return REGISTRY
