"""Pictures of evaluations: the confusion matrix of a classifier, and the neighbours of examples in feature space."""

from collections.abc import Sequence

import numpy as np

from ssljax.base.exhibits import Grid, Matrix, Tile


def confusion(labels_N: np.ndarray, predicted_N: np.ndarray, classes: int, names: Sequence[str] = ()) -> Matrix:
    """Returns the confusion matrix: entry (i, j) counts the examples of class i that are predicted as class j.

    Args:
        labels_N, predicted_N: true and predicted classes.
        classes: number of classes.
        names: their names; empty: their numbers.
    """
    counts = np.bincount(labels_N * classes + predicted_N, minlength=classes**2).reshape(classes, classes)
    right = float(np.mean(labels_N == predicted_N))
    caption = f"True and predicted classes of {len(labels_N):,} held-out examples; {right:.1%} are right."
    return Matrix("Confusion matrix", caption, counts, list(names) or [str(i) for i in range(classes)])


def neighbours(
    features_NxD: np.ndarray,
    images: np.ndarray,
    labels_N: np.ndarray | None = None,
    names: Sequence[str] = (),
    *,
    queries: int = 8,
    count: int = 5,
) -> Grid:
    """Returns some examples, each beside those with the most similar features, with frames by the agreement of labels.

    Args:
        features_NxD: features of the examples.
        images: [N, H, W, C], integers in 0..255 or floats in [0, 1].
        labels_N: classes; None: no frames.
        names: names of the classes; empty: their numbers.
        queries: number of examples, of as many classes as possible.
        count: number of neighbours.
    """
    chosen = _spread(len(features_NxD), labels_N, queries)
    scale = 255 if np.issubdtype(images.dtype, np.integer) else 1
    tile = lambda i, title, same=None: Tile(np.asarray(images[i], np.float32) / scale, title, same)  # noqa: E731
    known = [] if labels_N is None else [names[i] if len(names) else str(i) for i in labels_N.tolist()]
    titles = known or [""] * len(features_NxD)
    rows = []
    for i, near in zip(chosen, nearest(features_NxD, chosen, count)):
        agree = [None if labels_N is None else bool(labels_N[i] == labels_N[j]) for j in near]
        rows.append([tile(i, titles[i]), *(tile(j, titles[j], same) for j, same in zip(near, agree))])
    of = f"of {len(features_NxD):,} held-out examples by the cosine similarity of features"
    caption = f"Held-out examples and their nearest neighbours {of}" + (
        "." if labels_N is None else "; green: the same class, orange: another one."
    )
    return Grid("Nearest neighbours", caption, rows, ["example", *(str(k + 1) for k in range(len(rows[0]) - 1))])


def nearest(features_NxD: np.ndarray, queries: Sequence[int], count: int) -> np.ndarray:
    """Returns the rows [Q, count] of the nearest examples by cosine similarity, nearest first, without the query."""
    x = np.asarray(features_NxD, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    similarity = x[queries] @ x.T
    similarity[np.arange(len(queries)), queries] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")[:, : min(count, len(x) - 1)]


def _spread(size: int, labels: np.ndarray | None, count: int) -> list[int]:
    """Returns rows in the order of their number within their class: first the first row of each class."""
    if labels is None:
        return list(range(min(size, count)))
    seen: dict[int, int] = {}
    turn = []
    for label in labels.tolist():
        turn.append(seen.get(label, 0))
        seen[label] = turn[-1] + 1
    return sorted(range(size), key=lambda i: (turn[i], labels[i]))[:count]
