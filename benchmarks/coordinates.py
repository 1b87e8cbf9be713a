"""Coordinate checks of muP: changes of hidden states and logits in five steps, by width; draws a picture.

    python benchmarks/coordinates.py gpt vit t5

The check is that of tests/layers/test_width.py, for the named families. Left of each pair: muP; right: the standard
parametrisation. The exponents are those with which the changes grow with the width.
"""

import argparse
import pathlib
import sys

import numpy as np
from matplotlib.figure import Figure
from pages import markdown

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/layers")]
import test_width  # noqa: E402 (found in the folder of the tests)

WIDTHS, SEEDS, STEPS, RATE = (64, 128, 256), 2, 5, 0.01


def table(family: str, base: int | None) -> dict[str, list[float]]:
    """Returns {output: mean change at each width}."""
    make = test_width.of_family(family, base)
    runs = [[test_width.changes(make(width), STEPS, seed, RATE) for seed in range(SEEDS)] for width in WIDTHS]
    return {name: [float(np.mean([run[name] for run in row])) for row in runs] for name in runs[0][0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+", help="families of transformers, such as gpt")
    families = parser.parse_args().families
    figure = Figure(figsize=(3.5 * len(families), 6), layout="constrained")
    panels = figure.subplots(2, len(families), squeeze=False, sharey="col")
    body = []
    for column, family in enumerate(families):
        for row, (title, base) in enumerate((("muP", test_width.BASE), ("standard", None))):
            changes, axes = table(family, base), panels[row, column]
            for name, values in changes.items():
                axes.loglog(WIDTHS, values, ".-", label=name)
                exponent = np.polyfit(np.log(WIDTHS), np.log(values), 1)[0]
                body.append([family, title, name, *(f"{value:.3g}" for value in values), f"{exponent:+.2f}"])
            axes.set(title=f"{family}, {title}", xlabel="width", xticks=WIDTHS, xticklabels=WIDTHS)
            axes.minorticks_off()
            axes.legend(fontsize=7)
    path = ROOT / "docs/studies/coordinates.png"
    figure.savefig(path, dpi=110)
    print(markdown(["family", "parametrisation", "output", *map(str, WIDTHS), "exponent"], body))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
