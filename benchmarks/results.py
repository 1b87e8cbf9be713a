"""The table of docs/results.md and of the README: each objective on real data, three seeds, next to its controls.

    python benchmarks/results.py            # run missing units, then write the table
    python benchmarks/results.py --table    # only write the table
    python benchmarks/results.py simclr     # only rows whose name contains "simclr"

A unit is one run of a few minutes on one CPU core; each core works on a separate unit. Finished units are lines of
docs/results.jsonl, keyed by the config file and its overrides, so an interrupted table continues. Each line holds the
commit and a hash of the code. Units of other code are run again; until then the table shows them, and the page counts
them. The page lists missing units. Needs SSLJAX_DATA and a clean working tree.
"""

import argparse
import ast
import collections
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import queue
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pages import fill, markdown

from ssljax.base.hashing import digest
from ssljax.config import read_file
from ssljax.report.table import direction

ROOT = pathlib.Path(__file__).parent.parent
RUNS = ROOT / "runs/results"
LEDGER, PAGE, README = ROOT / "docs/results.jsonl", ROOT / "docs/results.md", ROOT / "README.md"
SEEDS = (0, 1, 2)
# Parts of the package that a unit's numbers do not depend on.
NOT_RUN = ("cli", "scaling", "reference.py", "interop", "report")
STOPPED = 75  # exit code of a run that saved its state after a signal
SHOWN = {
    ("linear_100", "accuracy"): "linear probe, 100 labels a class: accuracy",
    ("retrieval", "image_to_text_r5"): "name of a picture among 200: in the first five",
    ("pseudo_perplexity", "pseudo_bits_per_byte"): "pseudo bits per byte",
    ("perplexity", "bits_per_byte"): "bits per byte",
}
LOCK = threading.Lock()  # guards the ledger
TEACHERS = threading.Lock()  # two units may need one teacher
PARSER = threading.Lock()  # ast.parse of Python 3.11 fails in two threads at once

# The configs were tuned on the test splits, so the table is measured on other data.
REST, HELD_OUT = "train[:-5000]", "train[-5000:]"
IMAGES = {"data.split": REST} | {
    f"evals.{probe}.{key}": split
    for probe in ("knn", "linear", "linear_10", "linear_100")
    for key, split in (("fit_split", REST), ("test_split", HELD_OUT))
}

TWO_VIEW = (
    *("byol", "simsiam", "moco", "nnclr", "dcl", "sup_con"),
    *("triplet", "contrastive_pairs", "n_pair"),
    *("align_uniform", "barlow_twins", "vicreg", "lejepa", "ssl_hsic"),
)
PATCHES = {
    "ibot": "ibot.py:data=mnist",
    "simmim": "simmim.py:data=mnist",
    "maskfeat": "simmim.py:data=mnist,target=hog",
}
# Objectives of images without labels, besides those of two views, on digits.
OTHERS = ("rotation", "relative_patch", "jigsaw", "autoencoder", "vae", "data2vec", "msn", "deep_cluster")
# Semi-supervised methods, and the augmentation with which their control learns from the labels alone.
FEW_LABELS = {"pseudo_label": "weak", "fixmatch": "weak", "mean_teacher": "strong"}
LABELS_ALONE = {augment: f"few_labels ({augment} augmentation), mnist" for augment in ("weak", "strong")}
CLUSTERS = {"evals.k_means.fit_split": REST, "evals.k_means.test_split": HELD_OUT}
CODES = {"evals.reconstruction.fit_split": REST, "evals.reconstruction.test_split": HELD_OUT}
MORE = {"autoencoder": CODES, "vae": CODES, "deep_cluster": CLUSTERS}  # splits of their further evaluations
PIXELS = {f"evals.{name}.test_split": HELD_OUT for name in ("loss", "perplexity")}
NUMBERS = {"data.split": REST, "evals.loss.test_split": HELD_OUT}
FEW_LABELS_DATA = {"data.streams.unlabeled.split": REST, "evals.loss.test_split": HELD_OUT}
DISTILLATION, TEACHER = "configs/vision/distillation.py", "configs/vision/classification.py:data=mnist"
STUDENT = IMAGES | {"evals.loss.test_split": HELD_OUT}
PREFIX_LM = "configs/text/prefix_lm.py:data=classic-books"
BOOKS = {"evals.loss.test_split": "valid", "evals.perplexity.test_split": "valid"}
IN_README = ("simclr", "dino", "swav", "mae", "classification", "clip", "siglip", "mlm", "causal_lm")


class Row(NamedTuple):
    """A row of the table: its name, config file and overrides, and the name of a row that is a control.

    `teacher` is the config of a run that is trained before, from whose workdir the unit takes its teacher.
    """

    name: str
    config: str
    overrides: Mapping[str, str]
    control: str = ""
    teacher: str = ""


ROWS = [
    *(
        Row(f"{name}, {data}", f"configs/vision/{name}.py:data={data}", IMAGES)
        for name in ("simclr", "dino", "swav", "mae")
        for data in ("cifar10", "mnist")
    ),
    *(Row(f"{name}, mnist", f"configs/vision/{name}.py:data=mnist", IMAGES) for name in TWO_VIEW),
    *(Row(f"{name}, mnist", f"configs/vision/{file}", IMAGES) for name, file in PATCHES.items()),
    *(Row(f"{name}, mnist", f"configs/vision/{name}.py:data=mnist", IMAGES | MORE.get(name, {})) for name in OTHERS),
    *(
        Row(name, f"configs/vision/few_labels.py:augment={augment}", {"evals.loss.test_split": HELD_OUT})
        for augment, name in LABELS_ALONE.items()
    ),
    *(
        Row(f"{name}, mnist", f"configs/vision/{name}.py", FEW_LABELS_DATA, LABELS_ALONE[augment])
        for name, augment in FEW_LABELS.items()
    ),
    *(Row(f"{name}, cifar10", f"configs/vision/{name}.py", IMAGES) for name in ("i_jepa", "colorization")),
    *(
        Row(f"{part} (as many FLOPs as fusion), mnist", f"configs/vision/fusion.py:parts={part}", IMAGES)
        for part in ("mae", "simclr")
    ),
    Row("fusion, mnist", "configs/vision/fusion.py", IMAGES, "simclr (as many FLOPs as fusion), mnist"),
    Row("student alone, mnist", f"{DISTILLATION}:data=mnist", STUDENT | {"objective.weight": "0"}),
    Row("distillation, mnist", f"{DISTILLATION}:data=mnist", STUDENT, "student alone, mnist", TEACHER),
    *(Row(f"graph_cl, {data}", f"configs/graphs/graph_cl.py:data={data}", {}) for data in ("proteins", "mutag")),
    *(
        Row(f"regression{suffix}, mnist", f"configs/vision/regression.py{argument}", NUMBERS)
        for suffix, argument in (("", ""), (" (gaussian)", ":error=gaussian"))
    ),
    Row("multi_label, sst2", "configs/text/multi_label.py", {}),
    Row("simcse, ag-news", "configs/text/simcse.py", {}),
    *(Row(f"{name}, spoken digits", f"configs/audio/{name}.py", {}) for name in ("classification", "simclr", "mae")),
    Row("image_gpt, mnist", "configs/vision/image_gpt.py:data=mnist", IMAGES | PIXELS),
    Row("cpc, cifar10", "configs/vision/cpc.py:data=cifar10", IMAGES),
    Row("word2vec, ag-news", "configs/text/word2vec.py", {}),
    Row("xlnet, ag-news", "configs/text/xlnet.py:data=ag-news", {}, "mlm, ag-news"),
    Row("mlm, ag-news", "configs/text/mlm.py:data=ag-news", {}),
    Row("electra, classic-books", "configs/text/electra.py:data=classic-books", {"evals.loss.test_split": "valid"}),
    Row("electra, ag-news", "configs/text/electra.py:data=ag-news", {}, "mlm, ag-news"),
    Row("mlm with order (albert), ag-news", "configs/text/albert.py", {}),
    Row("span_bert, ag-news", "configs/text/span_bert.py:data=ag-news", {}, "mlm, ag-news"),
    Row(
        "text_infilling (masking), ag-news",
        "configs/text/bart.py:data=ag-news",
        {"objective.corruptions": "('masking',)"},
    ),
    Row("text_infilling, ag-news", "configs/text/bart.py:data=ag-news", {}, "text_infilling (masking), ag-news"),
    Row("classification, cifar10", "configs/vision/classification.py:data=cifar10", IMAGES),
    Row("clip, noto-emoji", "configs/multimodal/clip.py", {}),
    Row("siglip, noto-emoji", "configs/multimodal/siglip.py", {}),
    Row(
        "mlm, classic-books",
        "configs/text/mlm.py:data=classic-books",
        {"evals.pseudo_perplexity.test_split": "valid"},
    ),
    Row(
        "causal_lm, classic-books",
        "configs/text/causal_lm.py:data=classic-books",
        {"evals.perplexity.test_split": "valid"},
    ),
    *(
        Row(
            f"causal_lm ({cell}), classic-books",
            f"configs/text/causal_lm.py:data=classic-books,model={cell}",
            {"evals.perplexity.test_split": "valid"},
            "causal_lm, classic-books",
        )
        for cell in ("lstm", "gru", "rnn")
    ),
    Row(
        "masked_diffusion, classic-books",
        "configs/text/masked_diffusion.py:data=classic-books",
        {"evals.perplexity.test_split": "valid"},
        "causal_lm, classic-books",
    ),
    Row("prefix_lm (causal), classic-books", PREFIX_LM, {**BOOKS, "objective.bidirectional": "False"}),
    Row("prefix_lm, classic-books", PREFIX_LM, BOOKS, "prefix_lm (causal), classic-books"),
    *(
        Row(f"{name}, classic-books", f"configs/text/{file}.py:data=classic-books", {"evals.loss.test_split": "valid"})
        for name, file in (("gap_sentences", "pegasus"), ("mixture_of_denoisers", "ul2"))
    ),
]


def unit(row: Row, seed: int) -> tuple[list[tuple[str, str]], str]:
    """Returns (overrides, key) of one run; the key is a hash of the config that the file gives, and the overrides."""
    overrides = [*row.overrides.items(), ("seed", str(seed)), ("log.progress", "false")]
    teacher = [read_file(str(ROOT / row.teacher))] if row.teacher else []
    return overrides, digest([read_file(str(ROOT / row.config)), overrides, *teacher])


@functools.cache
def code_hash() -> str:
    """Hash of the code that a unit runs: the package without comments, docstrings and descriptions of keys."""
    package = ROOT / "ssljax"
    paths = sorted(path.relative_to(package) for path in package.rglob("*.py"))
    with PARSER:
        return digest([[str(p), _statements((package / p).read_text())] for p in paths if p.parts[0] not in NOT_RUN])


def _statements(source: str) -> str:
    """Source code without comments, docstrings and arguments named `doc`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "doc"]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def ledger() -> dict[str, dict[str, Any]]:
    """Finished units by key; of several lines with one key, the last."""
    lines = LEDGER.read_text().splitlines() if LEDGER.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def is_done(key: str) -> bool:
    """Returns True if the ledger has this unit from the present code."""
    record = ledger().get(key)
    return record is not None and record.get("code") == code_hash()


def run(row: Row, seed: int, core: int) -> None:
    """Runs one unit from the start and appends its line to the ledger.

    Raises:
        RuntimeError: the run failed or was stopped, or its config file or the code changed meanwhile.
    """
    overrides, key = unit(row, seed)
    if is_done(key):
        return
    print(f"{row.name}, seed {seed}: core {core}, log {RUNS.relative_to(ROOT)}/{key}.log", flush=True)
    workdir, arguments = RUNS / key, [f"--config.{name}={value}" for name, value in overrides]
    shutil.rmtree(workdir, ignore_errors=True)  # an interrupted unit starts again, since its time is measured
    if row.teacher:
        arguments = [*arguments, f"--config.objective.teacher_from={_teacher(row, seed, core)}"]
    commit, before = _output("git", "rev-parse", "--short", "HEAD"), code_hash()
    command = [sys.executable, "-m", "ssljax.cli", "train", "--config", row.config, "--workdir", str(workdir)]
    with open(f"{workdir}.log", "w") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command, *arguments], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    # Processor time, which does not depend on other work of the machine.
    seconds = usage.ru_utime + usage.ru_stime
    if code:
        raise RuntimeError("stopped" if code == STOPPED else f"exit code {code}")
    code_hash.cache_clear()
    if (unit(row, seed)[1], code_hash()) != (key, before):
        raise RuntimeError("the config file or the code was changed meanwhile")
    lines = [json.loads(line) for line in (workdir / "evals.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in lines)
    kept = ("eval", "of", "metrics", "headline", "better", "directions", "summary")
    results = [{k: line[k] for k in kept if k in line} for line in lines if line["step"] == last]
    record = {
        "key": key,
        "row": row.name,
        "seed": seed,
        "commit": commit,
        "code": before,
        "cpu_seconds": round(seconds),
    }
    with LOCK, open(LEDGER, "a") as f:
        f.write(json.dumps({**record, "steps": last, "results": results}) + "\n")


def _teacher(row: Row, seed: int, core: int) -> pathlib.Path:
    """The workdir of the teacher of a unit, which is trained if it is not finished."""
    workdir = RUNS / f"teacher-{digest([read_file(str(ROOT / row.teacher)), seed, code_hash()])}"
    command = [sys.executable, "-m", "ssljax.cli", "train", "--config", row.teacher, "--workdir", str(workdir)]
    options = [f"--config.seed={seed}", "--config.log.progress=false", f"--config.data.split={REST}"]
    with TEACHERS:
        done = subprocess.run(["taskset", "-c", str(core), *command, *options, "--config.evals={}"], cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"teacher: exit code {done.returncode}")
    return workdir


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def work(todo: "queue.SimpleQueue[tuple[Row, int]]", core: int, failed: list[str]) -> None:
    """Runs units on one core until none is left; a failed one is reported and stays missing."""
    while True:
        try:
            row, seed = todo.get_nowait()
        except queue.Empty:
            return
        try:
            run(row, seed, core)
        except Exception as error:
            failed.append(f"{row.name}, seed {seed}: {error}")
            print(failed[-1], flush=True)
            if str(error) == "stopped":
                return


Line = tuple[str, str, str, dict[str, list[float]], str | None, float]


def lines(only: str = "") -> tuple[list[Line], list[str]]:
    """Returns lines (row, evaluation, metric, {trained or control: values}, better, minutes), and missing units."""
    done = ledger()
    found: dict[str, list[dict[str, Any]]] = {}
    missing = []
    rows = {row.name: row for row in ROWS}
    for row in ROWS:
        for seed in SEEDS if only in row.name else ():
            found.setdefault(row.name, [])
            key = unit(row, seed)[1]
            if key in done:
                found[row.name].append(done[key])
            else:
                missing.append(f"{row.name} (seed {seed})")
    out = []
    for name, records in found.items():
        values: dict[tuple[str, str], dict[str, list[float]]] = {}
        better: dict[tuple[str, str], str | None] = {}
        for result in (result for record in records for result in record["results"]):
            for metric in result["headline"]:
                value = result["metrics"].get(metric)
                if value is not None:
                    values.setdefault((result["eval"], metric), {}).setdefault(result["of"], []).append(value)
                    better[result["eval"], metric] = direction(result, metric)
        minutes = max((record.get("cpu_seconds", 0) for record in records), default=0) / 60
        out += [(name, *what, by, better[what], minutes) for what, by in values.items()]
    trained = {line[:3]: line[3].get("trained", []) for line in out}
    for name, evaluation, metric, by, _, _ in out:
        if own := trained.get((rows[name].control, evaluation, metric)):
            by["control run"] = own
    return out, missing


def table(only: str = "") -> str:
    """Markdown of docs/results.md: a line per row and headline metric, with mean and standard deviation over seeds."""
    found, missing = lines(only)
    controls = ("untrained", "raw", "control run", "pca", "mean", "majority", "chance", "unigram", "bigram")
    head = ["run", "evaluation", "metric", "trained", *controls, "seeds", "verdict", "minutes"]
    body = [
        [
            row,
            evaluation,
            metric,
            *(_cell(by.get(of)) for of in ("trained", *controls)),
            str(len(by.get("trained", ()))),
            _verdict(by, better),
            f"{minutes:.1f}" if minutes else "",
        ]
        for row, evaluation, metric, by, better, minutes in found
    ]
    left = f"Missing: {', '.join(missing)}." if missing else "Nothing is missing."
    return f"{markdown(head, body)}\n\n{left} {_measured(only)}"


def _measured(only: str = "") -> str:
    """Counts of units by commit, and of those whose code has changed since."""
    done = ledger()
    keys = [unit(row, seed)[1] for row in ROWS for seed in SEEDS if only in row.name]
    records = [done[key] for key in keys if key in done]
    counts = collections.Counter(record["commit"] for record in records)
    changed = sum(record.get("code") != code_hash() for record in records)
    commits = ", ".join(f"{commit} {count}" for commit, count in counts.most_common())
    return (
        f"Units by the commit that they ran at: {commits}. The code has changed since for {changed} of {len(records)}."
    )


def summary() -> str:
    """Markdown of the README: one headline metric of the first rows, next to its best control."""
    head = ["run", "measured on held-out data", "trained", "best control", "seeds"]
    body = []
    for row, evaluation, metric, by, better, _ in lines()[0]:
        if row.partition(",")[0] not in IN_README:
            continue
        controls = {of: values for of, values in by.items() if of != "trained"}
        if (evaluation, metric) in SHOWN and controls and "trained" in by:
            best = (max if better == "higher" else min)(controls, key=lambda of: statistics.mean(controls[of]))
            control = f"{_cell(controls[best])} ({best})"
            body.append([row, SHOWN[evaluation, metric], _cell(by["trained"]), control, str(len(by["trained"]))])
    return markdown(head, body)


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _verdict(by: dict[str, list[float]], better: str | None) -> str:
    """Lists unbeaten controls: the worst seed must exceed the control's best by more than the spread over seeds."""
    own = by.get("trained", [])
    if better is None:  # neither direction is better
        return ""
    if len(own) < 2:
        return "one seed" if own else ""
    sign, spread = 1 if better == "higher" else -1, statistics.stdev(own)
    margin = {
        of: min(sign * v for v in own) - max(sign * v for v in values) for of, values in by.items() if of != "trained"
    }
    unbeaten = [of for of, m in margin.items() if m <= spread]
    return "beats all" if not unbeaten else "does not beat " + ", ".join(unbeaten)


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Locks out a second process, which would start the same units and share the cores."""
    RUNS.mkdir(parents=True, exist_ok=True)
    with open(RUNS / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another {pathlib.Path(__file__).name} is running")
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="number of seeds per row")
    arguments = parser.parse_args()
    failed: list[str] = []
    if not arguments.table:
        if changed := _output("git", "status", "--porcelain", "--", "ssljax", "configs"):
            sys.exit(f"uncommitted changes, commit them first (a unit records its commit): {' '.join(changed.split())}")
        todo: queue.SimpleQueue[tuple[Row, int]] = queue.SimpleQueue()
        for seed in SEEDS[: arguments.seeds]:
            for row in ROWS:
                if arguments.only in row.name:
                    todo.put((row, seed))
        cores = sorted(os.sched_getaffinity(0))
        workers = [threading.Thread(target=work, args=(todo, core, failed)) for core in cores]
        with only_one():
            for worker in workers:
                worker.start()
            try:
                for worker in workers:
                    worker.join()
            except KeyboardInterrupt:  # the runs receive it too, save their state and exit
                while not todo.empty():
                    todo.get_nowait()
                for worker in workers:
                    worker.join()
    fill(PAGE, "benchmarks/results.py", table())
    fill(README, "benchmarks/results.py", summary())
    print(table(arguments.only))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
