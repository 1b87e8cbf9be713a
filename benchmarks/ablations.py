"""Tables and pictures of the studies in configs/ablations, from the runs of a store; writes docs/ablations.md.

    ssljax sweep --config configs/ablations/collapse.py:method=byol --workdir runs/ablations
    python benchmarks/ablations.py collapse --store runs/ablations

`--print` changes no page. Pictures are docs/studies/NAME.png.
"""

import argparse
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from pages import fill, markdown

from ssljax.report.read import EVALUATIONS, METRICS, read_lines

PAGE = pathlib.Path(__file__).parent.parent / "docs/ablations.md"
PICTURES = PAGE.parent / "studies"
COLLAPSE = ("byol", "simsiam", "vicreg", "dino", "swav")
HEALTH = ("health/feature_std", "health/effective_rank")


def variants(store: pathlib.Path, study: str) -> dict[str, list[pathlib.Path]]:
    """Returns the workdirs of the seeds of each variant of a study, by the part of their names without the seed."""
    found: dict[str, list[pathlib.Path]] = {}
    for folder in sorted((store / study).iterdir()):
        found.setdefault(folder.name.partition(",seed=")[0], []).append(folder)
    return found


def last(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the last value of each logged metric of a run."""
    values: dict[str, Any] = {}
    for line in read_lines(folder / "metrics.jsonl", METRICS):
        values |= {name: value for name, value in line.items() if value is not None}
    return values


def accuracy(folder: pathlib.Path, of: str = "trained") -> float:
    """Returns the accuracy of k-NN at the end of a run, or that of a control."""
    lines = [x for x in read_lines(folder / "evals.jsonl", EVALUATIONS) if x["eval"] == "knn" and x["of"] == of]
    return float(lines[-1]["metrics"]["accuracy"])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Returns mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def collapse(store: pathlib.Path) -> list[str]:
    """Loss, health and k-NN of each method with and without the part that prevents its collapse."""
    figure = Figure(figsize=(3 * len(COLLAPSE), 3), layout="constrained")
    panels, body = figure.subplots(1, len(COLLAPSE), sharey=True), []
    for method, axes in zip(COLLAPSE, panels):
        for name, folders in variants(store, f"collapse_{method}").items():
            ends = [last(folder) for folder in folders]
            cells = [spread([float(end[metric]) for end in ends]) for metric in ("loss", *HEALTH)]
            known = spread([accuracy(folder) for folder in folders])
            untrained = spread([accuracy(folder, "untrained") for folder in folders])
            body.append([f"`{method}`", f"`{name}`", *cells, known, untrained, str(len(folders))])
            logged = read_lines(folders[0] / "metrics.jsonl", METRICS)
            curve = [(line["step"], line[HEALTH[1]]) for line in logged if line.get(HEALTH[1]) is not None]
            axes.plot(*zip(*curve), label=name)
        axes.set(title=method, xlabel="step", ylabel="effective rank" if method == COLLAPSE[0] else None)
        axes.legend(fontsize=7)
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / "collapse.png", dpi=110)
    head = ["method", "variant", "loss", "std of features", "effective rank", "k-NN accuracy", "untrained", "seeds"]
    return [markdown(head, body), "![effective rank by steps, seed 0](studies/collapse.png)"]


STUDIES = {"collapse": collapse}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+", choices=list(STUDIES), help="names of studies")
    parser.add_argument("--store", type=pathlib.Path, required=True, help="the store of their runs")
    parser.add_argument("--print", action="store_true", help="only print")
    options = parser.parse_args(arguments)
    for name in options.study:
        text = "\n\n".join(STUDIES[name](options.store))
        print(f"{name}\n\n{text}\n")
        if not options.print:
            fill(PAGE, f"benchmarks/ablations.py {name}", text)


if __name__ == "__main__":
    main()
