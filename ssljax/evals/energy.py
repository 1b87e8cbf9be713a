"""Energies of compatible and of incompatible pairs, and how well they are told apart.

LeCun & Misra 2021, "Self-supervised learning: The dark matter of intelligence": a model is an energy that is low for
pairs that belong together and high for pairs that do not.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
from scipy.stats import rankdata

from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.evals.base import Direction, Evaluation, Metrics, Reader


@dataclasses.dataclass(frozen=True)
class Energy(Evaluation):
    """Energies of compatible and incompatible pairs of held-out examples.

    The first of these that the objective offers is the energy:

    - scores: -log p for each predicted element. Incompatible: a wrong label, drawn evenly, if it predicts labels; else
      the predicted tokens of each row, or the pixels of each image, in random order.
    - features of images and of texts: -cosine. Incompatible: the image and the text of the next example.
    - reconstructions of images: mean squared error of the pixels in [0, 1]. Incompatible: the reconstruction of the
      next example.
    - two random views: -cosine of the pooled features. Images have the augmentation of the objective, or crops of 30
      to 100 % if it has none; a view of a text leaves out a fifth of its tokens. Incompatible: the second view of the
      next example.

    `gap` is (mean incompatible - mean compatible) / sqrt((v + w) / 2) with the variances v and w (n - 1) of the two;
    `auroc` is the probability that an incompatible pair has the higher energy, ties counted half.
    """

    seed: int = setting(0, doc="seed of the views, the orders and the labels")

    def headline(self) -> tuple[str, ...]:
        return ("auroc", "gap")

    def direction(self, metric: str) -> Direction | None:
        return "higher" if metric in self.headline() else None

    def feature_names(self) -> tuple[str, ...]:
        return ("pooled", "image", "text", "pixels", "reconstruction")

    def check(self, reader: Reader) -> Collection[str]:
        reader.example(self.test_split)
        energies = reader.energies(self.test_split, self.seed)
        if len(energies[0]) < 2:
            raise UserError(f"{reader.path}.test_split: split {self.test_split!r} has one example, needs 2")
        return ("compatible", "incompatible", "gap", "auroc")

    def run(self, reader: Reader) -> Metrics:
        compatible, incompatible = reader.energies(self.test_split, self.seed)
        return {
            "compatible": float(np.mean(compatible)),
            "incompatible": float(np.mean(incompatible)),
            "gap": gap(compatible, incompatible),
            "auroc": auroc(compatible, incompatible),
        }


def gap(compatible_N: np.ndarray, incompatible_M: np.ndarray) -> float:
    """Returns the difference of the means, incompatible - compatible, in units of the pooled standard deviation.

    It is 0 if both are equal constants, and infinite if they are different constants.
    """
    difference = float(np.mean(incompatible_M) - np.mean(compatible_N))
    spread = np.sqrt((np.var(compatible_N, ddof=1) + np.var(incompatible_M, ddof=1)) / 2)
    return difference / float(spread) if spread > 0 else (float(np.sign(difference)) * np.inf if difference else 0.0)


def auroc(compatible_N: np.ndarray, incompatible_M: np.ndarray) -> float:
    """Returns the share of the N M pairs in which the incompatible energy is the higher one; ties count half.

    Computed from mean ranks (Mann & Whitney 1947) in O((N + M) log(N + M)).
    """
    n, m = len(compatible_N), len(incompatible_M)
    ranks = rankdata(np.concatenate([compatible_N, incompatible_M]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def cosine_energies(x_NxD: np.ndarray, y_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns -cosine [N] of x_i and y_i, and of x_i and y_(i+1) with the last paired with the first; float64."""
    x, y = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12) for a in map(np.float64, (x_NxD, y_NxD)))
    return -np.sum(x * y, 1), -np.sum(x * np.roll(y, -1, axis=0), 1)


def error_energies(x_NxD: np.ndarray, y_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean squared error [N] of x_i and y_i, and of x_i and y_(i+1), as `cosine_energies`; float64."""
    x, y = np.float64(x_NxD), np.float64(y_NxD)
    return np.mean((x - y) ** 2, 1), np.mean((x - np.roll(y, -1, axis=0)) ** 2, 1)


def shuffled(x_NxT: np.ndarray, moved_NxT: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns x [N, T, ...] with the elements of each row where `moved` is True in random order."""
    # Both orders have the elements that stay last, and as they were.
    places = np.argsort(~moved_NxT, axis=1, kind="stable")
    random = np.argsort(np.where(moved_NxT, rng.random(moved_NxT.shape), 2.0), axis=1, kind="stable")
    row, out = np.arange(len(x_NxT))[:, None], np.array(x_NxT)
    out[row, places] = out[row, random]
    return out


def corrupted(
    arrays: Mapping[str, np.ndarray], scored_NxT: np.ndarray | None, classes: int | None, seed: int
) -> dict[str, np.ndarray]:
    """Returns what makes scored examples incompatible, to replace arrays of the same names.

    Args:
        arrays: the arrays of a split.
        scored_NxT: the tokens that are scored; None: pixels are.
        classes: number of classes if labels are scored.
        seed: seed of the random orders and labels.
    """
    rng = np.random.default_rng(seed)
    if classes is not None:
        label = np.asarray(arrays["label"])
        return {"label": ((label + rng.integers(1, max(classes, 2), label.shape)) % classes).astype(label.dtype)}
    if scored_NxT is not None:
        return {"tokens": shuffled(np.asarray(arrays["tokens"]), scored_NxT, rng)}
    image = np.asarray(arrays["image"])
    pixels = image.reshape(len(image), -1, image.shape[-1])  # [N, H W, C]
    return {"image": shuffled(pixels, np.ones(pixels.shape[:2], bool), rng).reshape(image.shape)}
