"""Writes docs/recipes.md from the recipes of papers, `configs/recipes/`.

python docs/make_recipes_page.py           # write the page
python docs/make_recipes_page.py --check   # exit code 1 if the page is stale
"""

import ast
import math
import pathlib
import re
import sys
from collections.abc import Iterator

from ssljax import data
from ssljax.base import durations
from ssljax.config import load, topologies

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "recipes.md"

INTRODUCTION = """# Recipes of papers

<!-- This page is made by python docs/make_recipes_page.py from the files of configs/recipes. -->

`configs/recipes/` has the training runs of papers, written like the appendices of the papers: sizes, batches, rates, schedules, augmentation, and the hardware that they are planned for. **None of them was run here**: there is no such hardware, and the numbers below are those of the publications. What is tested is that each config is accepted, that its model has the published number of parameters, and that initialisation and training step pass shape evaluation (`pytest -m full tests/test_recipes.py`). The docstring of each file has its source, its time and the details in which it differs from the paper.

Recipes exist for the objectives of this version. Those of data2vec, MSN, PEGASUS and DINOv2 are not written yet.

## Running one

The data are [declared](data.md#declared-data): their shapes are known and their rows are not here. So a recipe can be inspected on any machine, and training is refused until `data.source` names real data:

```bash
ssljax inspect --config configs/recipes/mae.py:arch=vit_l16
```

With the data, and a cluster (`launch/` starts the processes on it), the recipe trains as any config. Pictures come from a folder for each split, with a folder for each class; texts need the tokenizer of the paper too:

```bash
ssljax train --config configs/recipes/mae.py:arch=vit_l16 --workdir runs/mae-l16 --config.data.source=images:DIR/{split}
ssljax train --config configs/recipes/gpt2.py --workdir runs/gpt2 --config.data.source=parquet:DIR/*.parquet --config.data.tokenizer.name=file --config.data.tokenizer.path=DIR
```

`TOPOLOGIES` of a file, `ssljax.config.topologies` in Python, names the hardware that each of its arguments is planned for: `v5e:16x16` is 256 chips, `h100:4x8` four machines of 8. The axis of the mesh with -1 takes all devices, so other numbers of devices need no change as long as they divide the batch.
"""  # noqa: E501


def page() -> str:
    """The whole page."""
    names = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs" / "recipes").glob("[!_]*.py"))
    papers = "\n".join(line for name in names for line in _paper(name))
    sizes = "\n".join(line for name in names for line in _sizes(name))
    return (
        f"{INTRODUCTION}\n## Published results\n\n| recipe | published | source |\n| --- | --- | --- |\n{papers}\n\n"
        "## Sizes\n\n`examples` are those of the whole run. Rows of text have the given number of tokens.\n\n"
        "| config | planned for | devices | batch | steps | examples | tokens of a row |\n"
        f"| --- | --- | --- | --- | --- | --- | --- |\n{sizes}\n"
    )


def parts(name: str) -> dict[str, str]:
    """{"": first line, "Hardware": ..., "Result": ..., ...} of the docstring of a recipe, each on one line."""
    docstring = ast.get_docstring(ast.parse((ROOT / name).read_text())) or ""
    pieces = re.split(r"^(Hardware|Time|Result|Source|Data|Differs from the paper): ", docstring, flags=re.MULTILINE)
    named = dict(zip(pieces[1::2], pieces[2::2]))
    return {"": docstring.partition("\n")[0]} | {key: " ".join(text.split()) for key, text in named.items()}


def devices(topology: str) -> int:
    """Number of devices of a topology such as "v5e:16x16"."""
    return math.prod(int(n) for n in topology.partition(":")[2].split("x"))


def _paper(name: str) -> Iterator[str]:
    found = parts(name)
    title = found[""].partition(":")[0]
    result = found["Result"].removeprefix("published ")
    yield f"| `{name}`: {title} | {result} | {found['Source']} |"


def _sizes(name: str) -> Iterator[str]:
    for argument, topology in topologies(str(ROOT / name)).items():
        config, _ = load(f"{ROOT / name}:{argument}")
        spec = data.describe(config.data)
        steps = durations.steps(
            config.steps, durations.RunLengths(config.batch_size, spec.size, spec.max_len), f"{name}: steps"
        )
        command = f"{name.removeprefix('configs/recipes/')}{argument and ':'}{argument}"
        cells = (config.batch_size, steps, steps * config.batch_size)
        numbers = " | ".join(f"{cell:,}" for cell in cells)
        yield f"| `{command}` | `{topology}` | {devices(topology)} | {numbers} | {spec.max_len or ''} |"


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        return int(PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
