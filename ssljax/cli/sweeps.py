"""Commands on many runs: sweep, runs, compare."""

import argparse
import logging
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import sys
import threading
import time
from typing import Any

from ssljax.base.errors import UserError
from ssljax.cli.arguments import Overrides, add_processes, compilation_cache

# Exit codes of a study with a failed run; launchers of jobs repeat a command that ends with another code than 2.
FAILED, FAILED_TOGETHER = 1, 2

_STUDY = (
    "`--config.a.b=VALUE` changes a key of all runs. Exit code: 0, all runs are done, diverged or stopped early; "
    "1, a run has failed; 75, stopped by a signal: the same command continues."
)


def add(commands: Any) -> None:
    """Adds the commands to the parser."""
    _add_sweep(commands)
    runs = commands.add_parser("runs", help="list the runs in a folder: state, step, loss, best metrics, differences")
    runs.set_defaults(call=_runs)
    runs.add_argument("folder", metavar="DIR", help="a store of `ssljax sweep`, or a folder with workdirs")
    runs.add_argument("--csv", metavar="FILE", help="write sizes, losses and metrics of a store, for `ssljax fit`")
    compare = commands.add_parser("compare", help="compare several runs: one table and one page of curves")
    compare.set_defaults(call=_compare)
    compare.add_argument("workdirs", metavar="RUN", nargs="+", help="workdirs, or folders with workdirs")
    compare.add_argument("--out", metavar="FILE", default="comparison.html", help="the page (default: comparison.html)")


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser("sweep", help="train the runs of a study, or continue it", epilog=_STUDY)
    sweep.set_defaults(call=_sweep, prefix="--config.")
    sweep.add_argument("--config", help="a config, or a file with a group `study`; without: studies that DIR has")
    sweep.add_argument("--workdir", required=True, metavar="DIR", help="the store: ledger.sqlite and a folder a run")
    sweep.add_argument("--name", help="name of the study (default: of the config)")
    axes = sweep.add_argument_group("runs")
    more = "; may be repeated"
    axes.add_argument("--grid", action="append", metavar="KEY=V,V,...", help=f"values of a key{more}: all combinations")
    axes.add_argument("--zip", action="append", metavar="KEY=V,V,...", help=f"keys that change together{more}")
    axes.add_argument("--random", action="append", metavar="KEY=DIST", help=f"loguniform(a,b), uniform, ...{more}")
    axes.add_argument("--runs", type=int, metavar="N", help="number of draws of --random")
    axes.add_argument("--study-seed", type=int, metavar="S", help="seed of the draws (default: 0)")
    axes.add_argument("--seeds", type=int, metavar="N", help="seeds of each run (default: 1)")
    work = sweep.add_argument_group("work")
    work.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time; on SLURM: jobs of the array")
    stack = "train up to N runs of one shape (seeds, learning rates, ...) in one program (default: 1)"
    work.add_argument("--stack", type=int, default=1, metavar="N", help=stack)
    devices = work.add_mutually_exclusive_group()
    devices.add_argument("--gpus-per-run", type=int, metavar="K", help="each run at a time sees K GPUs of its own")
    devices.add_argument("--chips-per-run", type=int, metavar="K", help="the same with TPU chips of this host")
    work.add_argument("--executor", choices=("local", "slurm"), default="local", help="slurm: needs ssljax[slurm]")
    slurm = "for submitit: timeout_min=60, slurm_partition=gpu; may be repeated"
    work.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help=slurm)
    again = "plan failed (or diverged) runs again"
    work.add_argument("--retry", nargs="?", const="failed", choices=("failed", "diverged"), help=again)
    look = sweep.add_argument_group("looking")
    look.add_argument("--dry-run", action="store_true", help="print runs, parameters, tokens, FLOPs; change nothing")
    look.add_argument("--status", action="store_true", help="print what became of each run, and end")
    look.add_argument("--watch", action="store_true", help="a live table; without --config it only watches")
    add_processes(sweep)


def _sweep(options: argparse.Namespace, overrides: Overrides) -> int:
    _check(options, overrides)
    from ssljax import report
    from ssljax.scaling.ledger import Ledger
    from ssljax.scaling.overview import status

    if options.status:
        report.print_table(status(Ledger(options.workdir), options.name))
        return 0
    if options.config is None and options.watch:
        return _watch(Ledger(options.workdir), options.name)
    compilation_cache()
    team = None if options.dry_run or options.executor == "slurm" else _team(options)
    if team is None:
        ledger, studies = _ledger(options, overrides)
        return _work(options, ledger, studies) if studies else 0
    if not team.leads:
        team.follow(pathlib.Path(options.workdir))
        return 0
    with team.leading():
        return _work(options, Ledger(options.workdir), _planned_apart(options, overrides), team)


def _team(options: argparse.Namespace) -> Any:
    """Returns the other processes of the job of this one; None: it is alone."""
    from ssljax import parallel
    from ssljax.scaling.team import join

    team = join(options.coordinator, options.process_id, options.num_processes)
    given = ("jobs", "stack", "gpus_per_run", "chips_per_run")
    if team and (wrong := [key for key in given if getattr(options, key) not in (1, None)]):
        raise parallel.agreed(
            UserError(
                f"--{wrong[0].replace('_', '-')}: the processes of a job train one run at a time, on all of their "
                f"devices; start several jobs, or single processes with --num-processes 1"
            )
        )
    return team


def _planned_apart(options: argparse.Namespace, overrides: Overrides) -> list[str]:
    """Returns the names of the studies to work on, planned by a process that is no part of the job.

    Whatever planning computes, it must not wait for the other processes of the job.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_plan_and_send, args=(sending, options, overrides), daemon=True)
    child.start()
    sending.close()
    try:
        studies, error = receiving.recv()
    except EOFError:
        child.join()
        raise UserError(f"--config: the process that planned the study ended with code {child.exitcode}") from None
    if error is not None:
        raise error
    return studies


def _plan_and_send(sending: Any, options: argparse.Namespace, overrides: Overrides) -> None:
    """Plans studies, and sends (their names, None) or ([], the error). It ends with its parent."""
    parent = multiprocessing.parent_process()
    assert parent
    watch = threading.Thread(target=lambda: (multiprocessing.connection.wait([parent.sentinel]), os._exit(1)))
    watch.daemon = True
    watch.start()
    try:
        sending.send((_ledger(options, overrides)[1], None))
    except (UserError, OSError) as error:
        sending.send(([], error))


def _ledger(options: argparse.Namespace, overrides: Overrides) -> "tuple[Any, list[str]]":
    """Returns the ledger and the names of the studies to work on; a dry run has none."""
    from ssljax.scaling.ledger import Ledger

    if options.config is not None:
        return _planned(options, overrides) or (None, [])
    ledger = Ledger(options.workdir)
    return ledger, ledger.studies() if options.name is None else [options.name]


def _check(options: argparse.Namespace, overrides: Overrides) -> None:
    """Raises UserError if options do not fit each other."""
    axes = ("grid", "zip", "random", "runs", "study_seed", "seeds")
    given = [f"--{key.replace('_', '-')}" for key in axes if getattr(options, key) is not None]
    given += [f"--config.{key}" for key, _ in overrides] + ["--dry-run"] * options.dry_run
    if options.config is None and given:
        raise UserError(f"--config: missing; {given[0]} needs the config whose runs it makes")
    for key in ("jobs", "runs", "stack", "gpus_per_run", "chips_per_run"):
        if getattr(options, key) is not None and getattr(options, key) < 1:
            raise UserError(f"--{key.replace('_', '-')}: got {getattr(options, key)}, must be at least 1")
    if options.slurm and options.executor != "slurm":
        raise UserError("--slurm: is for --executor slurm")
    if options.watch and options.executor == "slurm":
        raise UserError("--watch: after the submission, `ssljax sweep --workdir DIR --watch` watches the jobs")


def _group(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the keys of the group `study` that the options give."""
    from ssljax.scaling.axes import parse_values

    group: dict[str, Any] = {}
    for key in ("grid", "zip"):
        if getattr(options, key):
            group[key] = tuple(parse_values(text, f"--{key}") for text in getattr(options, key))
    if options.random:
        pairs = [text.partition("=") for text in options.random]
        for text, (key, equals, rest) in zip(options.random, pairs):
            if not (key and equals and rest):
                raise UserError(f"--random: got {text!r}, must be KEY=loguniform(a,b)")
        group["random"] = tuple((key.removeprefix("config."), rest) for key, _, rest in pairs)
    for key in ("name", "runs", "study_seed", "seeds"):
        if getattr(options, key) is not None:
            group[key] = getattr(options, key)
    return group


def _planned(options: argparse.Namespace, overrides: Overrides) -> "tuple[Any, list[str]] | None":
    """Makes the study and adds it to the store; a dry run prints it and returns None."""
    import jax

    from ssljax import report
    from ssljax.scaling.cost import Costs
    from ssljax.scaling.driver import plan, study_costs
    from ssljax.scaling.ledger import NAME, Ledger
    from ssljax.scaling.overview import planned
    from ssljax.scaling.study import read_study

    jax.config.update("jax_platforms", "cpu")  # the devices belong to the trainers
    costs = Costs()
    study = read_study(options.config, overrides, _group(options), costs)
    for remark in study.remarks:
        print(remark, file=sys.stderr)
    if options.dry_run:
        store = pathlib.Path(options.workdir)
        known = Ledger(store).rows() if (store / NAME).exists() else []
        report.print_table(planned(study, study_costs(study, costs), known))
        return None
    ledger, _ = plan(study, options.workdir, costs)
    return ledger, [study.name]


def _work(options: argparse.Namespace, ledger: Any, studies: list[str], team: Any = None) -> int:
    """Trains the runs of studies, one study after the other, and prints what became of them."""
    from ssljax import report
    from ssljax.scaling.driver import Worker
    from ssljax.scaling.executors import chips_of_jobs, gpus_of_jobs, submit
    from ssljax.scaling.overview import Live, status

    for study in studies:
        if options.retry:
            print(f"{study}: {ledger.retry(study, options.retry)} {options.retry} runs are planned again")
        if options.executor == "slurm":
            ids = submit(ledger.store, study, options.jobs, _parameters(options.slurm), stack=options.stack)
            print(f"{study}: jobs {', '.join(ids)}; `ssljax sweep --workdir {ledger.store} --status` shows them")
            continue
        devices = gpus_of_jobs(options.jobs, options.gpus_per_run) if options.gpus_per_run else None
        if options.chips_per_run:
            devices = chips_of_jobs(options.jobs, options.chips_per_run)
        worker = Worker(ledger, study, options.jobs, devices, options.stack, team)
        if options.watch:
            logging.getLogger("ssljax").setLevel(logging.WARNING)
            with Live(ledger, study) as live:
                worker.work(live.refresh)
        else:
            worker.work()
            report.print_table(status(ledger, study))
    failed = any(row.state == "failed" for study in studies for row in ledger.rows(study))
    if not failed or options.executor != "local":
        return 0
    return FAILED if team is None else FAILED_TOGETHER


def _parameters(texts: list[str]) -> dict[str, Any]:
    from ssljax.config import parse_value

    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (key, equals, _) in zip(texts, pairs) if not (key and equals)]:
        raise UserError(f"--slurm: got {wrong[0]!r}, must be KEY=VALUE such as timeout_min=60")
    return {key: parse_value(value) for key, _, value in pairs}


def _watch(ledger: Any, study: str | None) -> int:
    """Shows a live table until no run is left, or until Ctrl-C."""
    from ssljax.scaling.overview import Live

    with Live(ledger, study) as live:
        try:
            while any(ledger.is_open(name) for name in ([study] if study else ledger.studies())):
                live.refresh()
                time.sleep(0.5)
        except KeyboardInterrupt:
            pass
    return 0


def _runs(options: argparse.Namespace, overrides: Overrides) -> int:
    from ssljax import report
    from ssljax.scaling.listing import list_runs, write_csv

    if options.csv is not None:
        print(f"{options.csv}: {write_csv(options.folder, options.csv)} runs")
        return 0
    report.print_table(list_runs(options.folder))
    return 0


def _compare(options: argparse.Namespace, overrides: Overrides) -> int:
    from ssljax import report
    from ssljax.base.buckets import is_address
    from ssljax.base.files import replacing
    from ssljax.runs.workdir import Workdir
    from ssljax.scaling.listing import is_workdir, workdirs

    folders: list[str | pathlib.Path] = []
    for name in options.workdirs:
        path = pathlib.Path(name)
        inside = [] if is_address(name) or is_workdir(path) or not path.is_dir() else workdirs(path)
        folders += [Workdir(name).path] if is_address(name) else inside or [name]
    found, out = report.compare(folders), pathlib.Path(options.out)
    if not out.parent.is_dir():
        raise UserError(f"--out: the folder {str(out.parent)!r} does not exist")
    report.print_table(found.table)
    with replacing(out) as temporary:
        temporary.write_text(found.page(), encoding="utf-8")
    print(out)
    return 0
