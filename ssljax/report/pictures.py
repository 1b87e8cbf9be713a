"""Drawing of the pictures of a run as PNG files, and their reading for the page."""

import base64
import io
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Grid, Matrix, Texts
from ssljax.report.figures import styled

TEXTS = "samples.json"
_SIDE, _GAP, _LINE = 96, 10, 15  # height of a tile, space between tiles, height of a line of text; pixels
_FRAMES = {True: (0, 158, 115), False: (213, 94, 0)}  # of the colours of the report


class Shown(NamedTuple):
    """The pictures of a run.

    Attributes:
        figures: (heading, data URI, caption) of each.
        texts: {"heading", "caption", "examples": [[[label, text], ...], ...]} of each.
    """

    figures: list[tuple[str, str, str]]
    texts: list[dict[str, Any]]


def files(exhibits: Mapping[str, Exhibit]) -> dict[str, bytes]:
    """Draws pictures; returns {name of the file: content}: NAME.png with heading and caption, and samples.json."""
    texts = {name: exhibit._asdict() for name, exhibit in exhibits.items() if isinstance(exhibit, Texts)}
    out = {f"{name}.png": draw(exhibit) for name, exhibit in exhibits.items() if not isinstance(exhibit, Texts)}
    return out | ({TEXTS: json.dumps(texts, indent=2, ensure_ascii=False).encode()} if texts else {})


def read(folder: pathlib.Path) -> Shown:
    """Reads the pictures of a run; without a folder there are none.

    Raises:
        UserError: a file is damaged.
    """
    from PIL import Image

    figures, texts, path = [], [], folder
    try:
        for path in sorted(folder.glob("*.png")):
            content = path.read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                heading, caption = image.info["Title"], image.info["Description"]
            figures.append((heading, f"data:image/png;base64,{base64.b64encode(content).decode()}", caption))
        if (path := folder / TEXTS).exists():
            texts = list(json.loads(path.read_text(encoding="utf-8")).values())
    except (OSError, KeyError, ValueError, AttributeError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable picture or text of a run ({error}); remove it") from error
    return Shown(figures, texts)


def pixels(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the pictures of a run as {name: uint8 [H, W, 3]}."""
    from PIL import Image

    found = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found[path.stem] = np.asarray(image.convert("RGB"))
    return found


def draw(exhibit: Grid | Matrix) -> bytes:
    """Draws a picture as a PNG file that holds its heading and caption."""
    return _matrix(exhibit) if isinstance(exhibit, Matrix) else _grid(_paired(exhibit))


def _paired(grid: Grid) -> Grid:
    """Puts two examples into a row if they have few tiles."""
    half = -(-len(grid.rows) // 2)
    if not 1 < len(grid.columns) < 5 or half < 2:
        return grid
    rows = [
        [*first, *second] for first, second in itertools.zip_longest(grid.rows[:half], grid.rows[half:], fillvalue=())
    ]
    return grid._replace(rows=rows, columns=[*grid.columns, *grid.columns])


def _grid(grid: Grid) -> bytes:
    from PIL import Image, ImageDraw

    scaled = [[_scaled(tile.image) for tile in row] for row in grid.rows]
    widths = [max(row[i].width for row in scaled if i < len(row)) for i in range(max(map(len, scaled)))]
    if any(tile.text for row in grid.rows for tile in row):
        widths = [max(width, 168 if len(grid.columns) == 0 else _SIDE) for width in widths]
    lines = [[_wrapped(tile.text, width) for tile, width in zip(row, widths)] for row in grid.rows]
    heights = [_SIDE + _LINE * max(map(len, row)) for row in lines]
    top = _GAP + (_LINE + 4 if grid.columns else 0)
    size = sum(widths) + _GAP * (len(widths) + 1), top + sum(heights) + _GAP * len(heights)
    canvas = Image.new("RGB", size, "white")
    brush, font = ImageDraw.Draw(canvas), _font(11)
    lefts = np.cumsum([_GAP, *(width + _GAP for width in widths)]).tolist()
    for left, title in zip(lefts, grid.columns):
        brush.text((left, _GAP - 2), title, fill="#555555", font=font)
    for row, images, texts, height in zip(grid.rows, scaled, lines, heights):
        for left, tile, image, text in zip(lefts, row, images, texts):
            canvas.paste(image, (left, top))
            if tile.right is not None:
                box = (left - 3, top - 3, left + image.width + 2, top + image.height + 2)
                brush.rectangle(box, outline=_FRAMES[tile.right], width=3)
            for i, line in enumerate(text):
                brush.text((left, top + _SIDE + 3 + _LINE * i), line, fill="#1a1a1a", font=font)
        top += height + _GAP
    return _png(canvas, grid)


def _scaled(image: np.ndarray) -> Any:
    """Returns an RGB image of the height of a tile; small images keep their sharp pixels."""
    from PIL import Image

    channels = np.asarray(image, np.float32)
    channels = channels[..., :3] if channels.shape[-1] >= 3 else np.repeat(channels[..., :1], 3, axis=-1)
    rgb = Image.fromarray(np.round(255 * np.clip(np.nan_to_num(channels), 0, 1)).astype(np.uint8))
    size = max(1, round(_SIDE * rgb.width / rgb.height)), _SIDE
    return rgb.resize(size, Image.Resampling.NEAREST if rgb.height < _SIDE else Image.Resampling.LANCZOS)


def _wrapped(text: str, width: int, most: int = 5) -> list[str]:
    """Cuts a text into lines of a width in pixels, the last of which ends in dots if there are too many."""
    lines: list[str] = []
    font = _font(11)
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    lines = lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " ..."]
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: Any) -> str:
    while len(line) > 1 and font.getlength(line) > width:
        line = line.removesuffix("…")[:-1] + "…"
    return line


def _font(size: int) -> Any:
    """Returns the font of matplotlib's figures, which has Latin, Greek and Cyrillic letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


@styled
def _matrix(matrix: Matrix) -> Any:
    """Draws shares of each true class in colour; counts and names as far as they are readable."""
    from matplotlib.figure import Figure
    from PIL import Image

    counts, classes = np.asarray(matrix.counts), len(matrix.names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.42 * classes, 3.2, 9))
    figure = Figure(figsize=(side + 1.6, side + 0.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    ax = figure.subplots()
    drawn = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    ax.grid(False)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    if classes <= 50:
        ax.set_xticks(range(classes), matrix.names, rotation=0 if max(map(len, matrix.names)) < 4 else 90, fontsize=8)
        ax.set_yticks(range(classes), matrix.names, fontsize=8)
    if classes <= 20:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[i, j] > 0.5 else "black"
                ax.text(j, i, f"{count:,}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(drawn, ax=ax, shrink=0.7, label="share of the true class")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return _png(Image.open(content).convert("RGB"), matrix)


def _png(image: Any, exhibit: Grid | Matrix) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info, content = PngInfo(), io.BytesIO()
    info.add_itxt("Title", exhibit.heading)
    info.add_itxt("Description", exhibit.caption)
    image.save(content, "PNG", pnginfo=info)
    return content.getvalue()
