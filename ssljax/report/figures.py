"""The figure of an embedding, as a data URI."""

import base64
import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

# Based on the palette of Okabe & Ito, which is safe for colour blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A800")
MARKERS = ("o", "^", "s", "D", "v", "P")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": "#666666",
}

Figure = TypeVar("Figure", bound=Callable[..., str])


def styled(figure: Figure) -> Figure:
    """Decorates a function that draws a figure: it uses the style of the report, whatever the matplotlib settings."""

    @functools.wraps(figure)
    def draw(*args: Any, **kwargs: Any) -> str:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return figure(*args, **kwargs)

    return draw  # type: ignore[return-value]


@styled
def embedding(arrays: Mapping[str, np.ndarray], classes: Sequence[str] = ()) -> str:
    """Draws representations in the plane, coloured by label. A second panel shows the images at their points.

    Args:
        arrays: "xy" [N, 2], or "features" [N, D], which are projected on their two principal components; optionally
            "label" [N] and "images" [N, H, W, C].
        classes: names of the classes.

    Returns:
        A PNG data URI.
    """
    from matplotlib.figure import Figure

    if "xy" in arrays:
        xy, names = np.asarray(arrays["xy"], np.float64), ["embedding, axis 1", "embedding, axis 2"]
    else:
        xy, shares = principal_plane(arrays["features"])
        names = [f"principal component {i + 1} ({100 * s:.0f} % of variance)" for i, s in enumerate(shares)]
    images = arrays.get("images")
    panels = 1 if images is None else 2
    figure = Figure(figsize=(5.6 * panels, 4.8), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)
    _scatter(axes[0, 0], xy, arrays.get("label"), classes)
    if images is not None:
        _thumbnails(axes[0, 1], xy, images)
    for ax in axes[0]:
        ax.set_xlabel(names[0])
        ax.set_ylabel(names[1])
    return _png(figure)


def principal_plane(features_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates [N, 2] on the two principal components, and their shares [2] of the variance."""
    x = np.asarray(features_NxD, np.float64)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    u, s = np.pad(u, ((0, 0), (0, 2)))[:, : max(2, len(s))], np.pad(s, (0, 2))[: max(2, len(s))]
    return u[:, :2] * s[:2], np.square(s[:2]) / max(float(np.sum(np.square(s))), 1e-30)


def _scatter(ax: Any, xy: np.ndarray, label: np.ndarray | None, classes: Sequence[str]) -> None:
    size = float(np.clip(9000 / max(len(xy), 1), 6, 30))
    values = np.unique(label) if label is not None else np.zeros(0)
    if label is None or len(values) > len(COLORS) * len(MARKERS):
        # More classes than distinguishable markers: one continuous scale without a legend.
        colors = {"color": COLORS[0]} if label is None else {"c": label, "cmap": "viridis"}
        ax.scatter(*xy.T, s=size, alpha=0.7, linewidths=0, **colors)
        return
    for i, value in enumerate(values):
        name = classes[int(value)] if 0 <= value < len(classes) else str(value)
        marker = MARKERS[i // len(COLORS)]
        color = COLORS[i % len(COLORS)]
        ax.scatter(*xy[label == value].T, label=name, s=size, color=color, marker=marker, alpha=0.75, linewidths=0)
    columns = math.ceil(len(values) / 16)
    ax.legend(
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=8,
        ncols=columns,
        title="class",
        markerscale=1.4,
    )


def _thumbnails(ax: Any, xy: np.ndarray, images: np.ndarray, limit: int = 120) -> None:
    """Draws images at their points, as many as fit without overlap."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    low, high = xy.min(axis=0), xy.max(axis=0)
    position = (xy - low) / np.maximum(high - low, 1e-12)
    kept: list[int] = []
    for i in range(len(position)):
        if len(kept) == limit:
            break
        if not kept or np.abs(position[kept] - position[i]).max(axis=1).min() > 0.065:
            kept.append(i)
    for i in kept:
        image = np.asarray(images[i])
        image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        box = OffsetImage(image, zoom=15 / max(image.shape[:2]), cmap="gray_r", interpolation="nearest")
        ax.add_artist(AnnotationBbox(box, xy[i], frameon=True, pad=0.05, bboxprops={"lw": 0.3, "ec": "#999999"}))
    margin = 0.06 * np.maximum(high - low, 1e-12)
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    ax.set_ylim(low[1] - margin[1], high[1] + margin[1])


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
