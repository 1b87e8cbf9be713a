"""The tables of docs/families.md: agreement of the reference models with `transformers`, and the presets.

    SSLJAX_DATA=... python docs/make_families_page.py           # run the reference models, write the tables
    python docs/make_families_page.py --presets                   # only the presets, which need no reference models
    python docs/make_families_page.py --check                   # exit code 1 if a family or a preset is not in the page

The reference models lie in the folder `hf_parity` next to the one that SSLJAX_DATA names.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ssljax.interop import hf
from ssljax.interop.families import REGISTRY
from ssljax.models.presets import list_presets

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "interop"))
import fixtures as reference

PAGE = pathlib.Path(__file__).parent / "families.md"
PARITY = "<!-- parity: python docs/make_families_page.py -->", "<!-- end of parity -->"
PRESETS = "<!-- presets: python docs/make_families_page.py -->", "<!-- end of presets -->"


def parity() -> Iterator[str]:
    """Rows of the reference models: errors of outputs, the loss among them, and of norms of its gradients."""
    yield "| reference model | `model_type` | `model.name` | outputs | largest error | gradients | error of norms |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for config in sorted(reference.FOLDER.glob("*/config.json")):
        name, kind = config.parent.name, json.loads(config.read_text())["model_type"]
        if kind not in REGISTRY:
            yield f"| {name} | `{kind}` | not yet | | | | |"
            continue
        model = hf.load(config.parent)
        inputs, expected, _ = reference.case(name)
        errors = [_error(model.forward(**inputs), reference.plain(expected), inputs)]
        for more_inputs, more_expected in reference.variants(expected, inputs).values():
            errors.append(_error(model.forward(**more_inputs), more_expected, more_inputs))
        expected_norms, got_norms = reference.norms(name, model)
        same = expected_norms.keys() & got_norms.keys()
        off = max((abs(got_norms[key] - expected_norms[key]) for key in same), default=0.0)
        cells = [
            name,
            f"`{kind}`",
            f"`{REGISTRY.get(kind).model.rpartition(':')[2]}`",
            len(expected),
            f"{max(errors):.0e}",
        ]
        cells += [len(same), f"{off:.0e}"] if same else ["", ""]
        yield f"| {' | '.join(map(str, cells))} |"


def presets() -> Iterator[str]:
    """Rows of the presets whose parameters can be counted."""
    yield "| `model.name` | `model.preset` | parameters |"
    yield "| --- | --- | --- |"
    for name, preset, count, _ in list_presets():
        if count is not None:
            yield f"| `{name}` | `{preset}` | {count:,} |"


def _error(got: Mapping[str, Any], expected: Mapping[str, Any], inputs: Mapping[str, Any]) -> float:
    """The largest difference at positions that are not padding."""
    return max(
        float(np.abs(reference.meaningful(got[key], inputs) - reference.meaningful(value, inputs)).max())
        for key, value in expected.items()
    )


def _between(page: str, ends: tuple[str, str], lines: Iterable[str]) -> str:
    head, _, rest = page.partition(ends[0])
    return "\n".join([head + ends[0], *lines, ends[1]]) + rest.partition(ends[1])[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--presets", action="store_true")
    arguments, page = parser.parse_args(), PAGE.read_text()
    if arguments.check:
        rows = list(presets())
        missing = [f"`{kind}`" for kind in REGISTRY if f"`{kind}`" not in page]
        missing += [row for row in rows if row not in page]
        print("stale:" if missing else "up to date", *missing)
        return int(bool(missing))
    page = _between(page, PRESETS, presets())
    PAGE.write_text(page if arguments.presets else _between(page, PARITY, parity()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
