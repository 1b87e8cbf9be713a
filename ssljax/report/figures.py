"""The figures of a report, as data URIs."""

import base64
import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ssljax.report.table import is_share, readable

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
DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 3)))

Figure = TypeVar("Figure", bound=Callable[..., str])


def styled(figure: Figure) -> Figure:
    """Decorates a function that draws a figure: it uses the style of the report, whatever the matplotlib settings."""

    @functools.wraps(figure)
    def draw(*args: Any, **kwargs: Any) -> str:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return figure(*args, **kwargs)

    return draw  # type: ignore[return-value]


# Metrics that are not health metrics: counters, and metrics with a separate figure.
COUNTERS = ("step", "examples", "tokens", "flops", "seconds")
SPEED = ("examples_per_second", "tokens_per_second", "model_flops_per_second", "mfu", "data_wait_share")
UNITS = {
    "learning_rate": "learning rate",
    "examples_per_second": "examples / s",
    "tokens_per_second": "tokens / s",
    "model_flops_per_second": "model FLOP / s",
    "mfu": "share of peak FLOP / s (MFU)",
    "data_wait_share": "share of time without data",
    "effective_rank": "effective rank (dimensions)",
    "feature_std": "feature std",
    "alignment": "alignment (squared distance)",
    "uniformity": "uniformity (log potential)",
    "teacher_entropy": "teacher entropy (nats)",
    "grad_norm": "gradient norm",
    "logit_scale": "logit scale",
}


@styled
def curves(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Draws each metric over steps in a separate panel. Returns an SVG data URI."""
    figure, axes = _grid(len(names))
    for ax, name in zip(axes, names):
        factor, unit = (100, " (%)") if is_share(name) else (1, "")
        points = [(line["step"], factor * line[name]) for line in lines if _finite(line.get(name))]
        _line(ax, points, COLORS[0], name)
        _label(ax, UNITS.get(name, readable(name)) + unit)
    return _svg(figure)


@styled
def losses(lines: Sequence[Mapping[str, Any]]) -> str:
    """Draws the loss over steps, and its terms if it has several. Returns an SVG data URI."""
    names = ["loss", *sorted({k for line in lines for k in line if k.startswith("loss/")})]
    figure, (ax,) = _grid(1, width=8.0, height=3.4)
    for i, name in enumerate(names):
        points = [(line["step"], line[name]) for line in lines if _finite(line.get(name))]
        _line(ax, points, COLORS[i % len(COLORS)], name.removeprefix("loss/"), ("-", *DASHES)[i % 6])
    _label(ax, "loss")
    if len(names) > 1:
        ax.legend(frameon=False, fontsize=8)
    return _svg(figure)


@styled
def evaluations(records: Sequence[Mapping[str, Any]]) -> str:
    """Draws every shown metric of each evaluation over steps, with controls as level lines.

    Returns an SVG data URI.
    """
    panels = list(dict.fromkeys((r["eval"], m) for r in records if r["of"] == "trained" for m in r["headline"]))
    controls = list(dict.fromkeys(r["of"] for r in records if r["of"] != "trained"))
    styles = {of: (COLORS[(i + 1) % len(COLORS)], DASHES[i % len(DASHES)]) for i, of in enumerate(controls)}
    figure, axes = _grid(len(panels))
    for ax, (name, metric) in zip(axes, panels):
        own = [r for r in records if r["eval"] == name]
        factor = 100 if is_share(metric) else 1
        values_of: dict[str, dict[int, float]] = {}
        for r in own:
            if _finite(r["metrics"].get(metric)):
                values_of.setdefault(r["of"], {})[r["step"]] = factor * r["metrics"][metric]
        _line(ax, sorted(values_of.pop("trained", {}).items()), COLORS[0], "trained")
        for of, values in values_of.items():
            ax.axhline(values[max(values)], color=styles[of][0], linestyle=styles[of][1], label=of, lw=1.3)
        _label(ax, readable(metric) + (" (%)" if is_share(metric) else ""), title=name)
        ax.margins(y=0.12)
    # One legend for all panels, above them, so that it covers no line.
    handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=8)
    return _svg(figure)


@styled
def compared(panels: Mapping[str, Sequence[tuple[str, Sequence[tuple[int, float]]]]]) -> str:
    """Draws curves of several runs over each other, a panel for each metric. Returns an SVG data URI.

    Args:
        panels: metric -> [(label, [(step, value), ...]), ...]; curves of one label have one colour.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label, _ in lines))
    figure, axes = _grid(len(panels), width=4.4, height=3.0)
    for ax, (name, lines) in zip(axes, panels.items()):
        for label, points in lines:
            _line(ax, points, COLORS[labels.index(label) % len(COLORS)], label)
        _label(ax, name)
    handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return _svg(figure)


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


def _grid(panels: int, width: float = 3.7, height: float = 2.3) -> tuple[Any, list[Any]]:
    """Returns a figure and its axes, in rows of at most three panels."""
    from matplotlib.figure import Figure

    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    flat = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in flat[panels:]:
        ax.set_visible(False)
    return figure, flat[:panels]


def _line(ax: Any, points: Sequence[tuple[int, float]], color: str, label: str, dash: Any = "-") -> None:
    x, y = zip(*points) if points else ((), ())
    ax.plot(x, y, color=color, label=label, linestyle=dash, lw=1.6, marker="o" if len(points) < 15 else None, ms=3.5)


def _label(ax: Any, y: str, title: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("step")
    ax.set_ylabel(y)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if title:
        ax.set_title(title, fontsize=10, loc="left")


def _svg(figure: Any) -> str:
    return _uri(figure, "svg", "image/svg+xml")


def _png(figure: Any) -> str:
    return _uri(figure, "png", "image/png")


def _uri(figure: Any, kind: str, mime: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
