"""Writes docs/gallery.md from the docstrings of the configs.

python docs/make_gallery_page.py           # write the page
python docs/make_gallery_page.py --check   # exit code 1 if the page is stale
"""

import ast
import pathlib
import re
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "gallery.md"
OTHERS = ("recipes", "scaling")  # folders of configs that have pages of their own

INTRODUCTION = """# Configs

<!-- This page is made by python docs/make_gallery_page.py from the docstrings of the configs. -->

One section for each config: what it trains, the commands, the time, and the number to expect with its controls. The models are small, so that each run takes minutes; the same files train larger models with other values of `model`, `batch_size` and `steps` ([keys](config.md#overview-of-the-groups)). [Data](data.md#the-data-of-the-shipped-configs) lists the files that the configs read; the quickstart needs none, and of the text configs only `simcse` does. [Recipes](recipes.md) are configs of another kind: those of papers, for clusters; [studies](howto/sweeps.md) are files of many runs.
"""  # noqa: E501

PICTURES = {"configs/quickstart.py": ("quickstart.png", "Features of held-out digits; colours are labels")}


def page() -> str:
    """The whole page."""
    found = (path for path in (ROOT / "configs").rglob("[!_]*.py") if path.parent.name not in OTHERS)
    paths = sorted(found, key=lambda path: (path.parent != ROOT / "configs", path))
    return "\n".join([INTRODUCTION, *(line for path in paths for line in _section(path))]).rstrip() + "\n"


def _section(path: pathlib.Path) -> Iterator[str]:
    name = str(path.relative_to(ROOT))
    yield f"## {name.removeprefix('configs/').removesuffix('.py')}\n"
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    for paragraph in docstring.split("\n\n"):
        if paragraph.startswith("    "):
            commands = [line.removeprefix("    ") for line in paragraph.splitlines()]
            yield "\n".join(["```bash", *commands, "```\n"])
        else:
            text = re.sub(r"\s*\n(Time|Result): ", r"\n\n\1: ", f"\n{paragraph}").strip()
            parts = (" ".join(part.split()) for part in text.split("\n\n"))
            yield "\n\n".join(_linked(part) for part in parts) + "\n"
    yield f"The file is `{name}`.\n"
    if name in PICTURES:
        picture, caption = PICTURES[name]
        yield f"![{caption}]({picture})\n"


def _linked(text: str) -> str:
    """Returns a paragraph with a link to the section of the results that it names."""
    headings = re.findall(r"^## ((\d+)\. .*)$", (ROOT / "docs" / "results.md").read_text(), re.MULTILINE)
    anchors = {number: re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading, number in headings}
    link = lambda match: f"[results, section {match[1]}](results.md#{anchors[match[1]]})"  # noqa: E731
    return re.sub(r"docs/results\.md, section (\d)", link, text)


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        return int(PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
