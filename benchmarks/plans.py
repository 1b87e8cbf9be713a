"""Plans of all recipes on the hardware that they name; writes docs/plans.md.

    python benchmarks/plans.py              # plan what is missing, then write the page
    python benchmarks/plans.py --again      # also what other code has planned
    python benchmarks/plans.py --table      # only write the page
    python benchmarks/plans.py gpt2         # only recipes whose name contains "gpt2"

A unit is one recipe with one argument, compiled by a process of its own. Finished units are lines of docs/plans.jsonl,
keyed by the config that the file gives and the topology, so an interrupted table continues. Needs the extras plan-tpu
and plan-gpu; no TPU, no GPU.
"""

import argparse
import functools
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

from pages import fill, markdown

from ssljax.base.hashing import digest
from ssljax.config import read_file, shipped_configs, topologies
from ssljax.runs.plans import size_text, time_text

ROOT = pathlib.Path(__file__).parent.parent
LEDGER, PAGE = ROOT / "docs/plans.jsonl", ROOT / "docs/plans.md"
SECONDS = 3600  # longest time of a unit
COLUMNS = (
    *("recipe", "topology", "mesh", "parameters", "memory of a device", "of it temporaries", "sent by a device"),
    *("time of a step", "bound by", "MFU at most", "compiled in"),
)


def units(part: str) -> list[tuple[str, str, str]]:
    """(config, topology, key) of each recipe whose name contains `part`."""
    out = []
    for name in shipped_configs():
        if name.startswith("configs/recipes/"):
            for argument, topology in topologies(name).items():
                config = f"{name}:{argument}" if argument else name
                if part in config:
                    out.append((config, topology, digest([read_file(config), topology])))
    return out


@functools.cache
def code() -> str:
    """The version of the package, a hash of its folder in git."""
    return subprocess.check_output(["git", "rev-parse", "HEAD:ssljax"], cwd=ROOT, text=True).strip()


def ledger() -> dict[str, dict[str, Any]]:
    """Finished units by key; of several lines with one key, the last."""
    lines = LEDGER.read_text().splitlines() if LEDGER.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def planned(config: str, topology: str, key: str) -> dict[str, Any]:
    """The line of a unit, with its plan or its error."""
    command = [sys.executable, "-m", "ssljax.cli", "plan", "--config", config, "--topology", topology, "--json"]
    line: dict[str, Any] = {"key": key, "code": code(), "config": config, "topology": topology}
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {**line, "error": f"not compiled within {SECONDS} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        named = [text for text in lines if re.match(r"[\w.]+(Error|Exception): ", text)]  # notes may follow it
        return {**line, "error": (named or lines)[-1]}
    return {**line, "plan": json.loads(done.stdout)}


def cells(line: dict[str, Any]) -> list[str]:
    """The row of a unit."""
    name = f"`{line['config'].removeprefix('configs/recipes/')}`"
    if "plan" not in line:
        return [name, line["topology"], f"failed: {line['error']}", *[""] * (len(COLUMNS) - 3)]
    plan, times = line["plan"], line["plan"]["roofline"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    mesh += f"; {plan['microbatches']} slices" if plan["microbatches"] > 1 else ""
    needed = "unknown" if plan["needed"] is None else size_text(plan["needed"])
    memory = f"{needed} of {size_text(plan['available'])}" + ("" if plan["fits"] else ": **does not fit**")
    row = [name, line["topology"], mesh, f"{plan['parameters'] / 1e6:,.0f}M", memory]
    if times is None:
        return [*row, *[""] * (len(COLUMNS) - len(row))]
    sent = sum(collective["sent"] for collective in plan["collectives"])
    share = "" if times["mfu_ceiling"] is None else f"{100 * times['mfu_ceiling']:.0f} %"
    step = f"{time_text(times['overlapped'])} to {time_text(times['serial'])}"
    row += [size_text(plan["memory"].get("activations, gradients", 0)), size_text(sent), step, times["bound"], share]
    return [*row, f"{plan['compile_seconds']:.0f} s"]


def written(lines: dict[str, dict[str, Any]]) -> str:
    """The table of all units, with what is missing."""
    rows, missing, stale = [], [], 0
    for config, topology, key in units(""):
        if key in lines:
            rows.append(cells(lines[key]))
            stale += lines[key]["code"] != code()
        else:
            missing.append(f"`{config}` on {topology}")
    text = markdown(COLUMNS, rows) + "\n"
    if stale:
        text += f"\n{stale} rows were planned by other code.\n"
    return text + (f"\nNot planned yet: {', '.join(missing)}.\n" if missing else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="", help="part of the name of recipes")
    parser.add_argument("--table", action="store_true", help="only write the page")
    parser.add_argument("--again", action="store_true", help="plan again what other code has planned")
    options = parser.parse_args()
    for config, topology, key in [] if options.table else units(options.part):
        known = ledger().get(key)
        if known is None or "error" in known or (options.again and known["code"] != code()):
            line = planned(config, topology, key)
            with LEDGER.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(" | ".join(cells(line)), flush=True)
    fill(PAGE, "benchmarks/plans.py", written(ledger()))


if __name__ == "__main__":
    main()
