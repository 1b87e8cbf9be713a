"""The commands: parse, call, print. No logic of its own.

Exit codes: 0 done; 2 a mistake of the user, told in one line; 75 stopped by a signal with everything saved (a scheduler
may run the same command again, and it continues); 141 who read the output has left (`ssljax list models | head`).
"""

import argparse
import errno
import json
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from ssljax.base.errors import UserError

USER_ERROR, STOPPED, CLOSED_PIPE = 2, 75, 141  # EX_TEMPFAIL of sysexits.h; as a shell tells of SIGPIPE (128 + 13)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `ssljax` command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not debug:
        _silence_repeats()
    try:
        code = _run(arguments)
        sys.stdout.flush()  # so that a reader who left is told here
        return code
    except BrokenPipeError:
        if debug or not _reader_left():
            raise
        return CLOSED_PIPE
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if debug or error.errno != errno.ENOSPC:
            raise
        print(f"error: {error.filename or 'disk'}: no space left; free some and run the same command", file=sys.stderr)
        return USER_ERROR


def _silence_repeats() -> None:
    """What fails in a thread of orbax is raised in ours too, and told in one line; its tracebacks would bury it."""
    for repeats in ("absl", "asyncio"):  # orbax logs by absl
        logging.getLogger(repeats).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable


def _unraisable(what: Any) -> None:
    # When a read fails, the others that were under way still report to the event loop, which is closed by then.
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def _reader_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more; what is left of it then goes nowhere."""
    try:
        print(flush=True)  # only a write tells
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="ssljax", description="Pretrain anything; one train step for all of it.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train from a config, or continue a workdir")
    train.add_argument("--config", required=True, help="FILE.py[:key=value,...]; --config.a.b=VALUE overrides a key")
    train.add_argument("--workdir", required=True)
    train.add_argument("--resume", choices=("auto", "force"), default="auto", help="force: though the config differs")
    evaluate = commands.add_parser("eval", help="evaluate a workdir beside its controls")
    evaluate.add_argument("--workdir", required=True)
    evaluate.add_argument("--evals", help="names, comma-separated (default: all of the config)")
    evaluate.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    generate = commands.add_parser("generate", help="continue prompts of text")
    fill_mask = commands.add_parser("fill-mask", help="put words in the place of masks")
    for command in (generate, fill_mask):
        command.add_argument("folder", metavar="DIR", help="a workdir, or a model in the Hugging Face format")
        command.add_argument("--prompt", action="append", default=[], help="may be given again")
        command.add_argument("--file", help="with a prompt a line")
        command.add_argument("--step", type=int, help="of the checkpoint of a workdir (default: the newest)")
        command.add_argument("--json", action="store_true", help="a JSON object a line")
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 (the default): the most probable token")
    generate.add_argument("--top-k", type=int, help="draw from so many tokens only")
    generate.add_argument("--top-p", type=float, help="draw from the fewest tokens with this probability together")
    generate.add_argument("--repetition-penalty", type=float, default=1.0)
    generate.add_argument("--stop", action="append", default=[], help="text that ends it; may be given again")
    generate.add_argument("--seed", type=int, default=0)
    fill_mask.add_argument("--top", type=int, default=5, help="how many words for each mask")
    importing = commands.add_parser("import", help="check a Hugging Face folder and write it anew")
    importing.add_argument("source", metavar="HF_DIR")
    importing.add_argument("folder", metavar="OUT_DIR")
    export = commands.add_parser("export", help="write the model of a workdir as transformers opens it")
    export.add_argument("workdir", metavar="WORKDIR")
    export.add_argument("folder", metavar="HF_DIR")
    export.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    report = commands.add_parser("report", help="draw report.html again from what a run wrote")
    report.add_argument("workdir", metavar="DIR")
    listing = commands.add_parser("list", help="what can be named in a config")
    listing.add_argument(
        "kind", choices=("objectives", "models", "data", "evals", "optimizers", "schedules", "configs")
    )
    arguments = [a for a in arguments if a != "--debug"]
    known, rest = parser.parse_known_args(arguments)
    overrides = _overrides(rest, known.command)
    calls = {"train": _train, "eval": _eval, "import": _import, "export": _export, "report": _report, "list": _list}
    calls |= {"generate": _generate, "fill-mask": _fill_mask}
    return calls[known.command](known, overrides)


def _overrides(rest: list[str], command: str) -> list[tuple[str, str]]:
    """("a.b", "value") of every `--config.a.b=value` or `--config.a.b value`."""
    out: list[tuple[str, str]] = []
    words = iter(rest)
    for word in words:
        if command != "train" or not word.startswith("--config."):
            raise UserError(f"{word}: unknown argument of `ssljax {command}`; see `ssljax {command} --help`")
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise UserError(f"{word}: has no value; write {word}=VALUE") from None
        out.append((key, value))
    return out


def _train(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    _compilation_cache()
    from ssljax import run
    from ssljax.config import load
    from ssljax.train.loop import Stopped

    config, remarks = load(known.config, overrides)
    for remark in remarks:
        print(remark, file=sys.stderr)
    try:
        run.train(config, known.workdir, known.resume)
    except Stopped as stopped:
        print(f"stopped: step {stopped.step} is saved; the same command continues", file=sys.stderr)
        return STOPPED
    return 0


def _eval(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    _compilation_cache()
    from ssljax import runs

    runs.evaluate(known.workdir, known.evals.split(",") if known.evals else None, known.step)
    return 0


def _generate(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    _compilation_cache()
    from ssljax import runs
    from ssljax.base import schema
    from ssljax.evals.generation import Sampling

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty")
    sampling = schema.build(Sampling, {name: getattr(known, name) for name in names}, "generate")
    texts = _prompts(known)
    made = runs.generate(known.folder, texts, sampling, stop=known.stop, seed=known.seed, step=known.step)
    for prompt, text in zip(texts, made):
        print(json.dumps({"prompt": prompt, "text": text}) if known.json else text)
    return 0


def _fill_mask(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    _compilation_cache()
    from ssljax import runs

    texts = _prompts(known)
    for prompt, masks in zip(texts, runs.fill_mask(known.folder, texts, known.top, known.step)):
        if known.json:
            print(json.dumps({"prompt": prompt, "masks": [[guess._asdict() for guess in mask] for mask in masks]}))
            continue
        print(prompt)
        for number, mask in enumerate(masks, 1):
            for guess in mask:
                print(f"  {number}  {guess.probability:.4f}  {guess.token}")
    return 0


def _prompts(known: argparse.Namespace) -> list[str]:
    """Those of --prompt, then the lines of --file."""
    lines: list[str] = []
    if known.file is not None:
        try:
            lines = pathlib.Path(known.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--file: cannot read {known.file!r} ({error})") from error
    texts = [*known.prompt, *(line for line in lines if line.strip())]
    if not texts:
        raise UserError("--prompt: missing; give --prompt TEXT, or --file with a prompt a line")
    return texts


def _import(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from ssljax.interop.export import convert

    _print_model(known.folder, convert(known.source, known.folder))
    return 0


def _export(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from ssljax.runs.export import export

    _print_model(known.folder, export(known.workdir, known.folder, known.step))
    return 0


def _print_model(folder: str, model: Any) -> None:
    print(f"{folder}: {model.config['model_type']}, {model.parameters:,} parameters")


def _report(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from ssljax.runs.workdir import Workdir

    print(Workdir(known.workdir).write_report())
    return 0


def _list(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    if known.kind == "models":
        return _list_models()
    for name in _names(known.kind):
        print(name)
    return 0


def _list_models() -> int:
    from ssljax.models.presets import list_presets

    logging.getLogger("ssljax").setLevel(logging.WARNING)
    for model, preset, parameters, reason in list_presets():
        count = "-" if parameters is None else f"{parameters:,}"
        print(f"{model:12} {preset or '-':16} {count:>16} {reason}".rstrip(), flush=True)
    return 0


def _names(kind: str) -> Any:
    if kind == "configs":
        found = sorted(str(p) for p in pathlib.Path("configs").rglob("[!_]*.py"))
        if not found:
            raise UserError(f"no configs in {pathlib.Path('configs').absolute()}; run this in a checkout of ssljax")
        return found
    if kind == "objectives":
        from ssljax.objectives import REGISTRY
    elif kind == "data":
        from ssljax.data import REGISTRY
    elif kind == "evals":
        from ssljax.evals import REGISTRY
    elif kind == "optimizers":
        from ssljax.train.optimizers import REGISTRY
    else:
        from ssljax.train.schedules import REGISTRY
    return REGISTRY


def _compilation_cache() -> None:
    """Compiled programs are kept between runs, unless the environment says otherwise."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path("~/.cache/ssljax/xla").expanduser()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


if __name__ == "__main__":
    sys.exit(main())
