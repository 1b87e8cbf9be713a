"""The table of docs/results.md and of the README: every objective on real data, three seeds, beside its controls.

    python benchmarks/results.py            # run what is missing, then write the table
    python benchmarks/results.py --table    # only write the table
    python benchmarks/results.py simclr     # only rows whose name contains this

A unit is one run of at most five minutes on one CPU core; every core works on its own unit. Finished units are lines
of docs/results.jsonl, keyed by the identity hash of the run and the version of the package, so an interrupted table
goes on where it stopped; the table says what is still missing. Needs SSLJAX_DATA.
"""

import argparse
import json
import os
import pathlib
import queue
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import ssljax
from ssljax.config import load

ROOT = pathlib.Path(__file__).parent.parent
LEDGER, PAGE, README = ROOT / "docs/results.jsonl", ROOT / "docs/results.md", ROOT / "README.md"
START, END = "<!-- table: python benchmarks/results.py -->", "<!-- end of table -->"
SEEDS = (0, 1, 2)
SHOWN = {
    ("linear_100", "accuracy"): "linear probe, 100 labels a class: accuracy",
    ("retrieval", "image_to_text_r5"): "retrieval of the name among 200: R@5",
    ("pseudo_perplexity", "pseudo_bits_per_byte"): "pseudo bits per byte",
    ("perplexity", "bits_per_byte"): "bits per byte",
}
LOCK = threading.Lock()  # of the ledger
VISION = [
    (f"{name}, {data}", f"configs/vision/{name}.py:data={data}")
    for name in ("simclr", "dino", "swav", "mae")
    for data in ("cifar10", "mnist")
]
ROWS: list[tuple[str, str]] = [
    *VISION,
    ("classification, cifar10", "configs/vision/classification.py:data=cifar10"),
    ("clip, noto-emoji", "configs/multimodal/clip.py"),
    ("mlm, classic-books", "configs/text/mlm.py:data=classic-books"),
    ("causal_lm, classic-books", "configs/text/causal_lm.py:data=classic-books"),
]


def units(only: str) -> Iterator[tuple[str, str, int, str]]:
    """(row, config, seed, key) of every unit."""
    for row, path in ROWS:
        if only in row:
            for seed in SEEDS:
                config, _ = load(str(ROOT / path), [("seed", str(seed))])
                yield row, path, seed, f"{config.hash()}-{ssljax.__version__}"


def ledger() -> dict[str, dict[str, Any]]:
    lines = LEDGER.read_text().splitlines() if LEDGER.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def run(row: str, path: str, seed: int, key: str, core: int) -> None:
    workdir = ROOT / "runs/results" / key
    shutil.rmtree(workdir, ignore_errors=True)  # a unit that was cut off begins again: its minutes count
    workdir.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    command = [sys.executable, "-m", "ssljax.cli", "train", "--config", path, "--workdir", str(workdir)]
    with open(f"{workdir}.log", "w") as log:
        subprocess.run(
            [*command, f"--config.seed={seed}", "--config.log.progress=false"],
            cwd=ROOT,
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    seconds = time.perf_counter() - began
    lines = [json.loads(line) for line in (workdir / "evals.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in lines)
    kept = ("eval", "of", "metrics", "headline", "better", "summary")
    results = [{k: line[k] for k in kept} for line in lines if line["step"] == last]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    record = {"key": key, "row": row, "seed": seed, "seconds": round(seconds), "commit": commit.strip()}
    with LOCK, open(LEDGER, "a") as f:
        f.write(json.dumps({**record, "steps": last, "results": results}) + "\n")


def work(todo: "queue.SimpleQueue[tuple[str, str, int, str]]", core: int) -> None:
    """Runs units on one core until none is left; one that fails is told and left missing."""
    while True:
        try:
            row, path, seed, key = todo.get_nowait()
        except queue.Empty:
            return
        print(f"{row}, seed {seed}: on core {core}, log in runs/results/{key}.log", flush=True)
        try:
            run(row, path, seed, key, core)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{row}, seed {seed}: failed: {error}", flush=True)


Line = tuple[str, str, str, dict[str, list[float]], str, float]


def lines(only: str = "") -> tuple[list[Line], list[str]]:
    """Lines (row, evaluation, metric, {trained or control: values over seeds}, better, minutes), and missing units."""
    done = ledger()
    found: dict[str, list[dict[str, Any]]] = {}
    missing = []
    for row, _, seed, key in units(only):
        found.setdefault(row, [])
        if key in done:
            found[row].append(done[key])
        else:
            missing.append(f"{row} (seed {seed})")
    out = []
    for row, records in found.items():
        values: dict[tuple[str, str], dict[str, list[float]]] = {}
        better: dict[tuple[str, str], str] = {}
        for result in (result for record in records for result in record["results"]):
            for metric in result["headline"]:
                value = result["metrics"].get(metric)
                if value is not None:
                    values.setdefault((result["eval"], metric), {}).setdefault(result["of"], []).append(value)
                    better[result["eval"], metric] = result["better"]
        minutes = max((record["seconds"] for record in records), default=0) / 60
        out += [(row, *name, by, better[name], minutes) for name, by in values.items()]
    return out, missing


def table(only: str = "") -> str:
    """Markdown of docs/results.md: a line for each row and headline metric, mean and standard deviation over seeds."""
    found, missing = lines(only)
    controls = ("untrained", "raw", "majority", "chance", "unigram", "bigram")
    head = ["run", "evaluation", "metric", "trained", *controls, "seeds", "verdict", "minutes"]
    body = [
        [
            row,
            evaluation,
            metric,
            *(_cell(by.get(of)) for of in ("trained", *controls)),
            str(len(by.get("trained", ()))),
            _verdict(by, better),
            f"{minutes:.1f}",
        ]
        for row, evaluation, metric, by, better, minutes in found
    ]
    left = f"Missing: {', '.join(missing)}." if missing else "Nothing is missing."
    return f"{_markdown(head, body)}\n\n{left}"


def summary() -> str:
    """Markdown of the README: the one line of each row that says most, beside its best control."""
    head = ["run", "measured on held-out data", "trained", "best control", "seeds"]
    body = []
    for row, evaluation, metric, by, better, _ in lines()[0]:
        controls = {of: values for of, values in by.items() if of != "trained"}
        if (evaluation, metric) in SHOWN and controls and "trained" in by:
            best = (max if better == "higher" else min)(controls, key=lambda of: statistics.mean(controls[of]))
            control = f"{_cell(controls[best])} ({best})"
            body.append([row, SHOWN[evaluation, metric], _cell(by["trained"]), control, str(len(by["trained"]))])
    return _markdown(head, body)


def _markdown(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def write(page: pathlib.Path, text: str) -> None:
    """Put `text` between the marks of a page."""
    before, _, rest = page.read_text().partition(START)
    page.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _verdict(by: dict[str, list[float]], better: str) -> str:
    """A control is beaten when the worst seed is better than the control's best by more than the spread over seeds."""
    own = by.get("trained", [])
    if not own:
        return ""
    sign = 1 if better == "higher" else -1
    spread = statistics.stdev(own) if len(own) > 1 else 0.0
    margin = {
        of: min(sign * v for v in own) - max(sign * v for v in values) for of, values in by.items() if of != "trained"
    }
    lost = [of for of, m in margin.items() if m <= spread]
    return "beats all" if not lost else "does not beat " + ", ".join(lost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="run only so many seeds of each row")
    known = parser.parse_args()
    if not known.table:
        done = ledger()
        todo: queue.SimpleQueue[tuple[str, str, int, str]] = queue.SimpleQueue()
        for unit in sorted(units(known.only), key=lambda u: u[2]):
            if unit[2] < known.seeds and unit[3] not in done:
                todo.put(unit)
        workers = [threading.Thread(target=work, args=(todo, core)) for core in sorted(os.sched_getaffinity(0))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    write(PAGE, table())
    write(README, summary())
    print(table(known.only))


if __name__ == "__main__":
    main()
