"""The error of images that are restored from a code, beside that of principal components."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np
from sklearn.decomposition import PCA

from ssljax.evals.base import Direction, Evaluation, Metrics, Reader


@dataclasses.dataclass(frozen=True)
class Reconstruction(Evaluation):
    """Mean squared error of restored pixels in [0, 1].

    The control `pca` restores images from as many principal components, fitted on `fit_split`, as a code has numbers;
    no other linear map to so few numbers has a smaller error there (Baldi & Hornik 1989). The control `mean` is the
    mean image of `fit_split`.
    """

    better: ClassVar[Direction] = "lower"

    def feature_names(self) -> tuple[str, ...]:
        return ("pixels", "reconstruction", "code")

    def separate_splits(self) -> tuple[str, ...]:
        return ("fit_split", "test_split")

    def headline(self) -> tuple[str, ...]:
        return ("mse",)

    def shown(self, metrics: Mapping[str, float]) -> Sequence[str]:
        return ["mse"]

    def check(self, reader: Reader) -> Collection[str]:
        super().check(reader)
        reader.features(self.fit_split, "pixels")
        return ("mse",)

    def run(self, reader: Reader) -> Metrics:
        pixels, made = (reader.features(self.test_split, name) for name in ("pixels", "reconstruction"))
        return {"mse": float(np.mean(np.square(made.astype(np.float64) - pixels)))}

    def trivial(self, reader: Reader) -> dict[str, Metrics]:
        fit, test = (reader.features(split, "pixels") for split in (self.fit_split, self.test_split))
        components = reader.features(self.test_split, "code").shape[1]
        return {
            control: {"mse": float(np.mean(np.square(principal(fit, test, count) - test)))}
            for control, count in (("pca", components), ("mean", 0))
        }


def principal(fit_NxD: np.ndarray, x_MxD: np.ndarray, count: int) -> np.ndarray:
    """Returns x [M, D] restored from its first `count` principal components, those of `fit` [N, D], in float64."""
    fit, x = fit_NxD.astype(np.float64), x_MxD.astype(np.float64)
    if count == 0:
        return np.broadcast_to(fit.mean(0), x.shape)
    count = min(count, *fit.shape)
    components = PCA(count, svd_solver="arpack" if count < min(fit.shape) else "full", random_state=0).fit(fit)
    return components.inverse_transform(components.transform(x))
