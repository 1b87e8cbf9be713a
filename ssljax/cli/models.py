"""Commands that read a model or write it for others: embed, import, export."""

import argparse
import pathlib
from typing import Any

from ssljax.base.errors import UserError
from ssljax.cli.arguments import Overrides, compilation_cache


def add(commands: Any) -> None:
    """Adds the commands to the parser."""
    _add_embed(commands)
    _add_export(commands)


def _add_embed(commands: Any) -> None:
    embed = commands.add_parser("embed", help="write the features of new data as a file")
    embed.set_defaults(call=_embed)
    embed.add_argument("workdir", metavar="DIR", help="a workdir, or a model in the Hugging Face format")
    embed.add_argument("--out", required=True, metavar="FILE", help="FILE.npz, FILE.parquet or FILE.npy")
    embed.add_argument("--source", metavar="URI", help="the data, such as images:FOLDER (default: those of the run)")
    embed.add_argument("--split", default="train", help="name or slice of a split (default: train)")
    keys = "columns of the source, such as image=jpg (default: as in the run for its own source, else by their names)"
    embed.add_argument("--keys", metavar="NAME=COLUMN,...", help=keys)
    feature = "feature of the objective, or of a Hugging Face model: pooled, mean, first, last (default: pooled)"
    embed.add_argument("--feature", default="pooled", help=feature)
    embed.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    embed.add_argument("--batch-size", type=int, default=256)


def _add_export(commands: Any) -> None:
    importing = commands.add_parser("import", help="check a Hugging Face folder and write a copy of it")
    importing.set_defaults(call=_import)
    importing.add_argument("hf_folder", metavar="HF_DIR")
    importing.add_argument("folder", metavar="OUT_DIR")
    leave_out = "leave out tensors whose names match (a classifier), and read the model without heads"
    importing.add_argument("--leave-out", metavar="PATTERN", help=leave_out)
    export = commands.add_parser("export", help="write the model of a workdir in the Hugging Face format")
    export.set_defaults(call=_export)
    export.add_argument("workdir", metavar="WORKDIR")
    export.add_argument("folder", metavar="HF_DIR")
    export.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")


def _embed(options: argparse.Namespace, overrides: Overrides) -> int:
    compilation_cache()
    from ssljax import runs
    from ssljax.runs.embedding import check_out

    check_out(pathlib.Path(options.out))  # before minutes of work
    if options.batch_size < 1:
        raise UserError(f"--batch-size: got {options.batch_size}, must be at least 1")
    given = {name: getattr(options, name) for name in ("split", "feature", "step", "batch_size")}
    embedded = runs.embed(options.workdir, options.source, keys=_columns(options.keys), **given)
    path = runs.write_embedded(embedded, options.out)
    rows, width = embedded.features.shape
    print(f"{path}: {rows:,} rows of {width:,} numbers")
    return 0


def _columns(text: str | None) -> dict[str, str] | None:
    """Parses name=column,... to a mapping; None without text."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    for name, equals, column in pairs:
        if not (name and equals and column):
            raise UserError(f"--keys: got {text!r}, must be NAME=COLUMN,... such as image=jpg,label=cls")
    return {name: column for name, _, column in pairs}


def _import(options: argparse.Namespace, overrides: Overrides) -> int:
    from ssljax.interop.export import convert

    _print_model(options.folder, convert(options.hf_folder, options.folder, options.leave_out))
    return 0


def _export(options: argparse.Namespace, overrides: Overrides) -> int:
    from ssljax.runs.export import export

    model, card = export(options.workdir, options.folder, options.step)
    _print_model(options.folder, model)
    for topic, sentence in card.facts.items():
        print(f"  {topic}: {sentence}")
    if card.code:
        print(f"{options.folder}/README.md: lines of Python that give these features with transformers alone")
    return 0


def _print_model(folder: str, model: Any) -> None:
    print(f"{folder}: {model.hf_config['model_type']}, {model.parameters:,} parameters")
