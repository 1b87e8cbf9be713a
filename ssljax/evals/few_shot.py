"""Few-shot classification: closed-form ridge regression on one-hot targets, from a few labels of each class."""

import dataclasses
from collections.abc import Collection

import numpy as np

from ssljax.base.schema import setting
from ssljax.evals.base import Metrics, Probe, Reader, draw_per_class, mean_and_std, standardizer

L2 = tuple(10.0**e for e in range(-4, 4))


@dataclasses.dataclass(frozen=True)
class FewShot(Probe):
    """Accuracy of ridge regression on one-hot targets (as in big_vision, Beyer et al. 2022), from few labels.

    Features are standardised with the statistics of the whole fitting split, which needs no labels. The regulariser
    is selected on the drawn labels alone, by the leave-one-out squared error in closed form.
    """

    shots: tuple[int, ...] = setting((1, 5, 10), ge=1, doc="numbers of labels per class; each gives one accuracy")
    draws: int = setting(5, ge=1, doc="repetitions with other random labels; mean and standard deviation are reported")
    l2: float | None = setting(
        None, gt=0, doc="regulariser, relative to the mean squared norm of the centred shots; None: by leave-one-out"
    )
    seed: int = setting(0, doc="seed of the draws")

    def headline(self) -> tuple[str, ...]:
        return tuple(f"accuracy_{n}_shot" for n in self.shots)

    def summary(self) -> str:
        return f"ridge, {self.draws} draws"

    def check(self, reader: Reader) -> Collection[str]:
        super().check(reader)
        labels, rng = reader.labels(self.fit_split), np.random.default_rng(self.seed)
        for shots in self.shots:
            draw_per_class(labels, shots, rng, f"{reader.path}.shots")
        return [metric for name in self.headline() for metric in mean_and_std(name, [0.0] * self.draws)]

    def run(self, reader: Reader) -> Metrics:
        fit_x, fit_y = reader.features(self.fit_split, self.feature), reader.labels(self.fit_split)
        test_x, test_y = reader.features(self.test_split, self.feature), reader.labels(self.test_split)
        mean, scale = standardizer(fit_x)
        test_x = (test_x - mean) / scale
        metrics: Metrics = {}
        for name, shots in zip(self.headline(), self.shots):
            accuracies = []
            for draw in range(self.draws):
                rng = np.random.default_rng((self.seed, shots, draw))
                rows = draw_per_class(fit_y, shots, rng, f"{reader.path}.shots")
                x, classes = (fit_x[rows] - mean) / scale, np.unique(fit_y)
                targets = 2.0 * (fit_y[rows][:, None] == classes) - 1.0
                weight, bias = ridge(x, targets, L2 if self.l2 is None else (self.l2,))
                accuracies.append(float(np.mean(classes[(test_x @ weight + bias).argmax(axis=1)] == test_y)))
            metrics |= mean_and_std(name, accuracies)
        return metrics


def ridge(x_NxD: np.ndarray, y_NxC: np.ndarray, l2s: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression with an unpenalised bias: argmin |XW + b - Y|^2 + l2 s |W|^2, in float64.

    s is the mean squared norm of the centred rows of X, so that l2 has no unit. Among several `l2s`, the one with the
    smallest leave-one-out squared error is used: e_i = (y_i - f(x_i)) / (1 - h_ii) (PRESS, Allen 1974).

    Returns:
        Weight [D, C] and bias [C].
    """
    x, y = x_NxD.astype(np.float64), y_NxC.astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - x_mean, full_matrices=False)
    uty = u.T @ (y - y_mean)
    scale = max(float(np.mean(np.sum(np.square(x - x_mean), axis=1))), 1e-12)

    def press(l2: float) -> float:
        shrink = s**2 / (s**2 + l2 * scale)
        residual = y - y_mean - u @ (shrink[:, None] * uty)
        leverage = np.square(u) @ shrink + 1 / len(x)
        return float(np.sum(np.square(residual / np.maximum(1 - leverage, 1e-12)[:, None])))

    best = l2s[0] if len(l2s) == 1 else min(l2s, key=press)
    weight = vt.T @ ((s / (s**2 + best * scale))[:, None] * uty)
    return weight, y_mean - x_mean @ weight
