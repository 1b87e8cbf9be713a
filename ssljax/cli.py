"""The command line: each command parses its arguments, calls the library and prints.

Exit codes:
0: success.
2: a user error, reported in one line.
75: stopped by a signal after saving. The same command continues, so a scheduler may run it again.
141: the output was piped to a program that has closed the pipe (`ssljax list models | head`).
"""

import argparse
import errno
import functools
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from ssljax import __version__
from ssljax.base.console import ConsoleHandler
from ssljax.base.errors import UserError, one_line
from ssljax.base.signals import STOPPED, Signals, Stopped

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
        text = f"{error.filename or 'disk'}: {error.strerror}{advice}"
        return _ended(error, USER_ERROR, f"error: {one_line(text)}")


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
    if (
        arguments[:1] in (["train"], ["inspect"], ["plan"])
        and {"-h", "--help"} & set(arguments)
        and _names_config(arguments)
    ):
        return _config_help(arguments)
    options, rest = _parser().parse_known_args(arguments)
    overrides = _overrides(rest, options.command)
    calls = {"train": _train, "eval": _eval, "import": _import, "export": _export, "report": _report, "list": _list}
    calls |= {
        "completion": _completion,
        "init": _init,
        "generate": _generate,
        "fill-mask": _fill_mask,
        "embed": _embed,
        "inspect": _inspect,
        "plan": _plan,
    }
    return calls[options.command](options, overrides)


def _names_config(arguments: Sequence[str]) -> bool:
    return any(a == "--config" or a.startswith("--config=") for a in arguments)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ssljax", description="Pretrain anything; one train step for all of it.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    parser.add_argument("--version", action="version", version=f"ssljax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands)
    _add_embed(commands)
    _add_text(commands)
    _add_export(commands)
    report = commands.add_parser("report", help="write report.html again, or compare several runs")
    report.add_argument("workdirs", metavar="WORKDIR", nargs="+")
    report.add_argument("--out", metavar="FILE", help="page of a comparison (default: comparison.html)")
    listing = commands.add_parser("list", help="list the names and the keys that a config may use")
    kinds = ("objectives", "models", "data", "evals", "optimizers", "schedules", "configs", "keys", "schema")
    meanings = "keys: type, default and meaning of the keys of a config; schema: all of them as a JSON schema"
    listing.add_argument("kind", choices=kinds, help=meanings)
    listing.add_argument("group", nargs="?", help="for keys: `objective` lists its names, `objective.simclr` its keys")
    completion = commands.add_parser("completion", help="print the script that completes commands in a shell")
    completion.add_argument("shell", choices=("bash", "zsh"), help='in ~/.bashrc: eval "$(ssljax completion bash)"')
    return parser


def _add_train(commands: Any) -> None:
    keys = "`ssljax list keys` lists all keys by group; `--config FILE --help` those of a config, with its values."
    train = commands.add_parser("train", help="train from a config, or continue a workdir", epilog=keys)
    train.add_argument("--config", required=True, help="FILE.py[:key=value,...]; --config.a.b=VALUE overrides a key")
    train.add_argument("--workdir", required=True, help="folder of the run; a run in it is continued")
    train.add_argument(
        "--resume", choices=("auto", "force"), default="auto", help="force: continue although the config differs"
    )
    profile = "trace the steps after step START, up to step STOP, into WORKDIR/profile, for TensorBoard"
    train.add_argument("--profile", metavar="START:STOP", help=profile)
    train.add_argument("--hlo", action="store_true", help="write the compiled step to WORKDIR/step_hlo.txt")
    _add_processes(train)
    init = commands.add_parser("init", help="write a commented config to edit")
    init.add_argument("name", metavar="NAME", help="NAME.py is written; it must not exist")
    init.add_argument("--objective", help="objective of a shipped config (default: simclr; causal_lm for text: data)")
    init.add_argument("--data", metavar="URI", help="the data, such as images:FOLDER (default: of the shipped config)")
    inspect = commands.add_parser("inspect", help="print a config in numbers, without training", epilog=keys)
    inspect.add_argument("--config", required=True, help="as for `train`")
    inspect.add_argument("--parameters", action="store_true", help="also print each parameter with its sharding")
    plan = commands.add_parser("plan", help="compile a config for hardware that is not here", epilog=keys)
    plan.add_argument("--config", required=True, help="as for `train`")
    names = "v5e:16x16, v4:4x4x4, v5p:8x8x4, v6e:16x16; h100:8, h100:4x8 (4 hosts of 8), h200:8, a100:8; cpu:8; here"
    plan.add_argument("--topology", required=True, metavar="NAME", help=names)
    plan.add_argument("--search", action="store_true", help="try meshes, recomputation, micro-batches")
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    other = "`--evals.NAME.key=VALUE` changes a key of an evaluation for this call; a new NAME is another evaluation."
    evaluate = commands.add_parser("eval", help="evaluate a workdir and its controls", epilog=other)
    evaluate.add_argument("--workdir", required=True)
    evaluate.add_argument("--evals", help="names, comma-separated (default: all of the config)")
    evaluate.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    _add_processes(evaluate)


def _add_processes(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("several processes, where the environment does not tell (launch/README.md)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 connects the others")
    group.add_argument("--process-id", type=int, metavar="I", help="number of this process, from 0")
    group.add_argument("--num-processes", type=int, metavar="N", help="1: a single process in any environment")


def _start(options: argparse.Namespace) -> None:
    """Connects the processes of a job; only the first one reports what all do."""
    from ssljax import parallel

    job = parallel.start(options.coordinator, options.process_id, options.num_processes)
    if job and job.process_id:
        logging.getLogger().setLevel(logging.WARNING)


def _add_embed(commands: Any) -> None:
    embed = commands.add_parser("embed", help="write the features of new data as a file")
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


def _add_text(commands: Any) -> None:
    generate = commands.add_parser("generate", help="continue prompts of text")
    fill_mask = commands.add_parser("fill-mask", help="predict the masked words of a text")
    for command in (generate, fill_mask):
        command.add_argument("folder", metavar="DIR", help="a workdir, or a model in the Hugging Face format")
        command.add_argument("--prompt", action="append", default=[], help="a prompt; may be repeated")
        command.add_argument("--file", help="file with one prompt per line")
        command.add_argument("--step", type=int, help="step of the checkpoint of a workdir (default: the newest)")
        command.add_argument("--json", action="store_true", help="print one JSON object per line")
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 (the default): the most probable token")
    generate.add_argument("--top-k", type=int, help="sample from the K most probable tokens only")
    generate.add_argument("--top-p", type=float, help="sample from the fewest tokens whose probabilities sum to P")
    generate.add_argument("--repetition-penalty", type=float, default=1.0)
    generate.add_argument("--stop", action="append", default=[], help="text that ends the output; may be repeated")
    generate.add_argument(
        "--special-tokens", action="store_true", help="special tokens that a prompt spells (</s>) are these tokens"
    )
    generate.add_argument("--seed", type=int, default=0)
    fill_mask.add_argument("--top", type=int, default=5, help="number of words per mask")


def _add_export(commands: Any) -> None:
    importing = commands.add_parser("import", help="check a Hugging Face folder and write a copy of it")
    importing.add_argument("hf_folder", metavar="HF_DIR")
    importing.add_argument("folder", metavar="OUT_DIR")
    leave_out = "leave out tensors whose names match (a classifier), and read the model without heads"
    importing.add_argument("--leave-out", metavar="PATTERN", help=leave_out)
    export = commands.add_parser("export", help="write the model of a workdir in the Hugging Face format")
    export.add_argument("workdir", metavar="WORKDIR")
    export.add_argument("folder", metavar="HF_DIR")
    export.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")


_PREFIXES = {"train": "--config.", "inspect": "--config.", "plan": "--config.", "eval": "--evals."}


def _overrides(rest: list[str], command: str) -> list[tuple[str, str]]:
    """Parses every `--config.a.b=value` or `--config.a.b value` to ("a.b", "value"); of `eval`, `--evals.a.b`."""
    out: list[tuple[str, str]] = []
    words, prefix = iter(rest), _PREFIXES.get(command)
    for word in words:
        if prefix is None or not word.startswith(prefix):
            raise UserError(f"{word}: unknown argument of `ssljax {command}`; see `ssljax {command} --help`")
        key, equals, value = word.removeprefix(prefix).partition("=")
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise UserError(f"{word}: has no value; write {word}=VALUE") from None
        out.append((key, value))
    return out


def _train(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    with Signals():  # before the imports, which take seconds
        _compilation_cache()
        _start(options)
        from ssljax import parallel, run
        from ssljax.config import load
        from ssljax.runs.profiling import parse_steps

        config, remarks = load(options.config, overrides)
        for remark in remarks if parallel.leads() else ():
            print(remark, file=sys.stderr)
        steps = parse_steps(options.profile) if options.profile else None
        run.train(config, options.workdir, options.resume, profile=steps, hlo=options.hlo)
    return 0


def _config_help(arguments: Sequence[str]) -> int:
    """Prints the keys of the config that the arguments name, with its values."""
    from ssljax.config import load
    from ssljax.reference import describe_config

    words = [a for a in arguments if a not in ("-h", "--help")]
    needed = {"train": ["--workdir", ""], "plan": ["--topology", ""]}.get(words[0], [])
    options, rest = _parser().parse_known_args([*words, *needed])
    config, _ = load(options.config, _overrides(rest, options.command))
    for line in describe_config(config):
        print(line)
    return 0


def _completion(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from ssljax.completion import script

    print(script(_parser(), options.shell))
    return 0


def _init(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from ssljax.starter import write_starter

    path = write_starter(options.name, options.objective, options.data)
    print(f"{path}: edit it, then `ssljax train --config {path} --workdir runs/{path.stem}`")
    return 0


def _inspect(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from ssljax import report
    from ssljax.config import load
    from ssljax.runs.inspection import inspect

    config, remarks = load(options.config, overrides)
    for remark in remarks:
        print(remark, file=sys.stderr)
    found = inspect(config)
    for table in (found.run, found.memory, *([found.parameters] if options.parameters else [])):
        report.print_table(table)
    return 0


def _plan(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from ssljax import report
    from ssljax.config import load
    from ssljax.parallel.topology import topology
    from ssljax.runs.plan_search import search
    from ssljax.runs.plans import plan

    target = topology(options.topology)  # first: it chooses the platform
    config, remarks = load(options.config, overrides)
    for remark in remarks:
        print(remark, file=sys.stderr)
    planned = search(config, target) if options.search else plan(config, target)
    if options.json:
        print(json.dumps(planned.to_json()))
        return 0
    for table in planned.tables():
        if table.rows:
            report.print_table(table)
    return 0


def _eval(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    _compilation_cache()
    _start(options)
    from ssljax import runs
    from ssljax.config import parse_value

    changes = {key: parse_value(text) for key, text in overrides}
    runs.evaluate(options.workdir, options.evals.split(",") if options.evals else None, options.step, changes)
    return 0


def _embed(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    _compilation_cache()
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


def _generate(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    _compilation_cache()
    from ssljax import runs
    from ssljax.base import schema
    from ssljax.evals.generation import Sampling

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty")
    sampling = schema.build(Sampling, {name: getattr(options, name) for name in names}, "generate")
    texts = _prompts(options)
    given = {name: getattr(options, name) for name in ("stop", "special_tokens", "seed", "step")}
    shown = _Shown() if sys.stdout.isatty() and not options.json else None
    watch = functools.partial(shown.so_far, texts[0]) if shown and len(texts) == 1 else None
    made = runs.generate(options.folder, texts, sampling, watch=watch, **given)
    for prompt, text in zip(texts, made):
        if shown:
            shown.finish(prompt, text)
        else:
            print(json.dumps({"prompt": prompt, "text": text}) if options.json else text)
    return 0


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class _Shown:
    """A generated text on a terminal: the prompt dimmed, after "> ", then the text, as it comes."""

    def __init__(self) -> None:
        self._printed: str | None = None  # of the text of this prompt; None: not even the prompt

    def so_far(self, prompt: str, text: str) -> None:
        """Prints what is new in a text. Characters that would control the terminal are printed as escapes."""
        prompt, text = _visible(prompt), _visible(text)
        if self._printed is None:
            from rich.console import Console
            from rich.text import Text

            Console(highlight=False).print(Text("> " + prompt.replace("\n", "\n> "), "dim"), soft_wrap=True)
            self._printed = ""
        if text.startswith(self._printed):  # a tokenizer may change the spacing of its last word
            print(text[len(self._printed) :], end="", flush=True)
            self._printed = text

    def finish(self, prompt: str, text: str) -> None:
        """Prints the rest of a text; the next prompt follows after an empty line."""
        self.so_far(prompt, text)
        if self._printed != _visible(text):  # the beginning has changed
            print(f"\n{_visible(text)}", end="")
        print("\n")
        self._printed = None


def _fill_mask(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    _compilation_cache()
    from ssljax import runs

    texts = _prompts(options)
    for prompt, masks in zip(texts, runs.fill_mask(options.folder, texts, options.top, options.step)):
        if options.json:
            print(json.dumps({"prompt": prompt, "masks": [[guess._asdict() for guess in mask] for mask in masks]}))
            continue
        print(prompt)
        for number, mask in enumerate(masks, 1):
            for guess in mask:
                print(f"  {number}  {guess.probability:.4f}  {guess.token}")
    return 0


def _prompts(options: argparse.Namespace) -> list[str]:
    """The prompts of --prompt, then the lines of --file."""
    lines: list[str] = []
    if options.file is not None:
        try:
            lines = pathlib.Path(options.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--file: cannot read {options.file!r} ({error})") from error
    texts = [*options.prompt, *(line for line in lines if line.strip())]
    if not texts:
        raise UserError("--prompt: missing; give --prompt TEXT, or --file with one prompt per line")
    return texts


def _import(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from ssljax.interop.export import convert

    _print_model(options.folder, convert(options.hf_folder, options.folder, options.leave_out))
    return 0


def _export(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
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


def _report(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from ssljax import report
    from ssljax.base.buckets import is_address
    from ssljax.base.files import replacing
    from ssljax.runs.workdir import Workdir

    if len(options.workdirs) == 1:
        if options.out is not None:
            raise UserError(f"--out: got {options.out!r}, which is for several workdirs; one has its report inside")
        workdir = Workdir(options.workdirs[0])
        print(workdir.write_report())
        if workdir.name != str(workdir.path):
            print(f"{workdir.name}/report.html")
        return 0
    folders = [Workdir(path).path if is_address(path) else path for path in options.workdirs]
    found, out = report.compare(folders), pathlib.Path(options.out or "comparison.html")
    if not out.parent.is_dir():
        raise UserError(f"--out: the folder {str(out.parent)!r} does not exist")
    report.print_table(found.table)
    with replacing(out) as temporary:
        temporary.write_text(found.page(), encoding="utf-8")
    print(out)
    return 0


def _list(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    if options.group is not None and options.kind != "keys":
        raise UserError(f"{options.group}: `ssljax list {options.kind}` takes no group (`ssljax list keys` does)")
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
    elif kind == "optimizers":
        from ssljax.train.optimizers import REGISTRY
    else:
        from ssljax.train.schedules import REGISTRY
    return REGISTRY


def _compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the environment sets another folder or threshold."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path("~/.cache/ssljax/xla").expanduser()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


if __name__ == "__main__":
    sys.exit(main())
