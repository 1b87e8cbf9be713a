"""The table of docs/results.md: every objective on real data, three seeds, beside its controls.

    python benchmarks/results.py            # run what is missing, then write the table
    python benchmarks/results.py --table    # only write the table
    python benchmarks/results.py simclr     # only rows whose name contains this

A unit is one run of at most five minutes on two CPU cores. Finished units are lines of docs/results.jsonl, keyed by
the identity hash of the run and the version of the package, so an interrupted table goes on where it stopped; the
table says what is still missing. Needs SSLJAX_DATA.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import ssljax
from ssljax.config import load

ROOT = pathlib.Path(__file__).parent.parent
LEDGER, PAGE = ROOT / "docs/results.jsonl", ROOT / "docs/results.md"
START, END = "<!-- table: python benchmarks/results.py -->", "<!-- end of table -->"
SEEDS = (0, 1, 2)
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


def run(row: str, path: str, seed: int, key: str) -> None:
    workdir = ROOT / "runs/results" / key
    began = time.perf_counter()
    command = [sys.executable, "-m", "ssljax.cli", "train", "--config", path, "--workdir", str(workdir)]
    subprocess.run([*command, f"--config.seed={seed}", "--config.log.progress=false"], cwd=ROOT, check=True)
    seconds = time.perf_counter() - began
    lines = [json.loads(line) for line in (workdir / "evals.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in lines)
    kept = ("eval", "of", "metrics", "headline", "better", "summary")
    results = [{k: line[k] for k in kept} for line in lines if line["step"] == last]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    record = {"key": key, "row": row, "seed": seed, "seconds": round(seconds), "commit": commit.strip()}
    LEDGER.parent.mkdir(exist_ok=True)
    with open(LEDGER, "a") as f:
        f.write(json.dumps({**record, "steps": last, "results": results}) + "\n")


def table(only: str = "") -> str:
    """Markdown: a line for each row and headline metric, mean and standard deviation over seeds."""
    done = ledger()
    found: dict[str, list[dict[str, Any]]] = {}
    missing = []
    for row, _, seed, key in units(only):
        found.setdefault(row, [])
        if key in done:
            found[row].append(done[key])
        else:
            missing.append(f"{row} (seed {seed})")
    controls = ("untrained", "raw", "majority", "chance", "unigram", "bigram")
    lines = [
        "| run | evaluation | metric | trained | " + " | ".join(controls) + " | verdict | minutes |",
        "|" + " --- |" * (6 + len(controls)),
    ]
    for row, records in found.items():
        if not records:
            continue
        minutes = f"{max(r['seconds'] for r in records) / 60:.1f}"
        values: dict[tuple[str, str], dict[str, list[float]]] = {}
        better: dict[tuple[str, str], str] = {}
        for record in records:
            for result in record["results"]:
                for metric in result["headline"]:
                    value = result["metrics"].get(metric)
                    if value is not None:
                        values.setdefault((result["eval"], metric), {}).setdefault(result["of"], []).append(value)
                        better[result["eval"], metric] = result["better"]
        for (evaluation, metric), by in values.items():
            cells = [_cell(by.get(of)) for of in ("trained", *controls)]
            verdict = _verdict(by, better[evaluation, metric])
            lines.append(f"| {row} | {evaluation} | {metric} | {' | '.join(cells)} | {verdict} | {minutes} |")
    lines += ["", f"Missing: {', '.join(missing)}." if missing else "Nothing is missing."]
    return "\n".join(lines)


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
        for row, path, seed, key in sorted(units(known.only), key=lambda u: u[2]):
            if seed < known.seeds and key not in ledger():
                print(f"== {row}, seed {seed}", flush=True)
                run(row, path, seed, key)
    text = PAGE.read_text() if PAGE.exists() else f"{START}\n{END}\n"
    before, _, rest = text.partition(START)
    PAGE.write_text(f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}")
    print(table(known.only))


if __name__ == "__main__":
    main()
