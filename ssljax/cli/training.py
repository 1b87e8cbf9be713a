"""Commands that make, train and judge runs: init, inspect, plan, train, eval, report."""

import argparse
import json
import pathlib
import sys
import textwrap
from typing import Any

from ssljax.base.errors import UserError
from ssljax.base.signals import Signals
from ssljax.cli.arguments import Overrides, add_processes, compilation_cache, start

_KEYS = "`ssljax list keys` lists all keys by group; `--config FILE --help` those of a config, with its values."


def add(commands: Any) -> None:
    """Adds the commands to the parser."""
    _add_train(commands)
    init = commands.add_parser("init", help="write a commented config to edit")
    init.set_defaults(call=_init)
    init.add_argument("name", metavar="NAME", help="NAME.py is written; it must not exist")
    init.add_argument(
        "--objective", help="objective of a shipped config (default: simclr; causal_lm for text:, graph_cl for graphs:)"
    )
    init.add_argument("--data", metavar="URI", help="the data, such as images:FOLDER (default: of the shipped config)")
    inspect = commands.add_parser("inspect", help="print a config in numbers, without training", epilog=_KEYS)
    inspect.set_defaults(call=_inspect, prefix="--config.")
    inspect.add_argument("--config", required=True, help="as for `train`")
    inspect.add_argument("--parameters", action="store_true", help="also print each parameter with its sharding")
    look = commands.add_parser("views", help="show what the step reads: views, masks, corrupted texts", epilog=_KEYS)
    look.set_defaults(call=_views, prefix="--config.")
    look.add_argument("--config", required=True, help="as for `train`")
    look.add_argument("--rows", type=int, default=8, metavar="N", help="number of examples (default: 8)")
    look.add_argument("--out", default=".", metavar="DIR", help="folder for views.png and texts.txt (default: .)")
    _add_plan(commands)
    other = "`--evals.NAME.key=VALUE` changes a key of an evaluation for this call; a new NAME is another evaluation."
    evaluate = commands.add_parser("eval", help="evaluate a workdir and its controls", epilog=other)
    evaluate.set_defaults(call=_eval, prefix="--evals.")
    evaluate.add_argument("--workdir", required=True)
    evaluate.add_argument("--evals", help="names, comma-separated (default: all of the config)")
    evaluate.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    add_processes(evaluate)
    report = commands.add_parser("report", help="write report.html of a workdir again")
    report.set_defaults(call=_report)
    report.add_argument("workdir", metavar="WORKDIR", nargs="+", help="one workdir; `ssljax compare` takes several")


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train from a config, or continue a workdir", epilog=_KEYS)
    train.set_defaults(call=_train, prefix="--config.")
    train.add_argument("--config", required=True, help="FILE.py[:key=value,...]; --config.a.b=VALUE overrides a key")
    train.add_argument("--workdir", required=True, help="folder of the run; a run in it is continued")
    train.add_argument(
        "--resume", choices=("auto", "force"), default="auto", help="force: continue although the config differs"
    )
    profile = "trace the steps after step START, up to step STOP, into WORKDIR/profile, for TensorBoard"
    train.add_argument("--profile", metavar="START:STOP", help=profile)
    train.add_argument("--hlo", action="store_true", help="write the compiled step to WORKDIR/step_hlo.txt")
    add_processes(train)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser("plan", help="compile a config for hardware that is not here", epilog=_KEYS)
    plan.set_defaults(call=_plan, prefix="--config.")
    plan.add_argument("--config", required=True, help="as for `train`")
    names = "v5e:16x16, v4:4x4x4, v5p:8x8x4, v6e:16x16; h100:8, h100:4x8 (4 hosts of 8), h200:8, a100:8; cpu:8; here"
    plan.add_argument("--topology", required=True, metavar="NAME", help=names)
    plan.add_argument("--search", action="store_true", help="try meshes, recomputation, micro-batches")
    plan.add_argument("--json", action="store_true", help="print one JSON object")


def _train(options: argparse.Namespace, overrides: Overrides) -> int:
    with Signals():  # before the imports, which take seconds
        compilation_cache()
        start(options)
        from ssljax import parallel, run
        from ssljax.config import load
        from ssljax.runs.profiling import parse_steps

        config, remarks = load(options.config, overrides)
        for remark in remarks if parallel.leads() else ():
            print(remark, file=sys.stderr)
        steps = parse_steps(options.profile) if options.profile else None
        run.train(config, options.workdir, options.resume, profile=steps, hlo=options.hlo)
    return 0


def _init(options: argparse.Namespace, overrides: Overrides) -> int:
    from ssljax.starter import write_starter

    path = write_starter(options.name, options.objective, options.data)
    print(f"{path}: edit it, then `ssljax train --config {path} --workdir runs/{path.stem}`")
    return 0


def _inspect(options: argparse.Namespace, overrides: Overrides) -> int:
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


def _views(options: argparse.Namespace, overrides: Overrides) -> int:
    folder = pathlib.Path(options.out)
    if not folder.is_dir():
        raise UserError(f"--out: the folder {options.out!r} does not exist")
    if options.rows < 1:
        raise UserError(f"--rows: got {options.rows}, must be at least 1")
    from ssljax.base.exhibits import Texts
    from ssljax.base.files import write_whole
    from ssljax.config import load
    from ssljax.report.pictures import draw
    from ssljax.runs.views import show_views

    config, remarks = load(options.config, overrides)
    for remark in remarks:
        print(remark, file=sys.stderr)
    found = show_views(config, options.rows)
    if not found:
        raise UserError("objective.name: its inputs have neither images nor texts, so there is nothing to show")
    for name, exhibit in found.items():
        path = folder / f"{name}.{'txt' if isinstance(exhibit, Texts) else 'png'}"
        if isinstance(exhibit, Texts):
            lines = [f"{label}:\n{textwrap.indent(text, '    ')}\n" for one in exhibit.examples for label, text in one]
            write_whole(path, "\n".join(lines))
        else:
            write_whole(path, draw(exhibit))
        print(path)
    return 0


def _plan(options: argparse.Namespace, overrides: Overrides) -> int:
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


def _eval(options: argparse.Namespace, overrides: Overrides) -> int:
    compilation_cache()
    start(options)
    from ssljax import runs
    from ssljax.config import parse_value

    changes = {key: parse_value(text) for key, text in overrides}
    runs.evaluate(options.workdir, options.evals.split(",") if options.evals else None, options.step, changes)
    return 0


def _report(options: argparse.Namespace, overrides: Overrides) -> int:
    from ssljax.runs.workdir import Workdir

    if len(options.workdir) > 1:
        raise UserError(f"report: got {len(options.workdir)} workdirs, must be one; `ssljax compare` compares several")
    workdir = Workdir(options.workdir[0])
    print(workdir.write_report())
    if workdir.name != str(workdir.path):
        print(f"{workdir.name}/report.html")
    return 0
