"""Clusters of features by k-means, compared with the labels."""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base import k_means as clustering
from ssljax.base.schema import setting
from ssljax.evals.base import Metrics, Probe, Reader, standardizer


@dataclasses.dataclass(frozen=True)
class KMeans(Probe):
    """Normalised mutual information of labels and clusters (Caron et al. 2018, section 4.1); no label is fitted.

    Features are standardised on `fit_split`, centroids are those of the run of k-means with the smallest squared
    distance there, and the nearest one is the cluster of an example of `test_split`.
    """

    clusters: int | None = setting(None, ge=1, doc="number of clusters; None: the number of classes")
    iterations: int = setting(50, ge=1, doc="updates of the centroids of a run of k-means")
    restarts: int = setting(5, ge=1, doc="runs of k-means from other first centroids, by k-means++")
    seed: int = setting(0, ge=0, doc="seed of the first centroids")

    def headline(self) -> tuple[str, ...]:
        return ("nmi",)

    def summary(self) -> str:
        return f"{self.clusters or 'one'} cluster{'s' if self.clusters else ' a class'}, {self.restarts} restarts"

    def check(self, reader: Reader) -> Collection[str]:
        super().check(reader)
        return ("nmi",)

    def run(self, reader: Reader) -> Metrics:
        given = [reader.features(split, self.feature) for split in (self.fit_split, self.test_split)]
        mean, std = standardizer(given[0])
        fit, test = (jnp.asarray((x - mean) / std, jnp.float32) for x in given)
        keys = jax.random.split(jax.random.key(self.seed), self.restarts)
        runs = [clustering.k_means(key, fit, self._count(reader), self.iterations)[0] for key in keys]
        found = np.asarray(jax.jit(clustering.assign)(test, min(runs, key=lambda centroids: _error(fit, centroids))))
        return {"nmi": mutual_information(found, reader.labels(self.test_split))}

    def trivial(self, reader: Reader) -> dict[str, Metrics]:
        labels = reader.labels(self.test_split)
        drawn = np.random.default_rng(self.seed).integers(0, self._count(reader), len(labels))
        return {"random": {"nmi": mutual_information(drawn, labels)}}

    def _count(self, reader: Reader) -> int:
        return self.clusters or len(np.unique(reader.labels(self.fit_split)))


@jax.jit
def _error(x_NxD: jax.Array, centroids_KxD: jax.Array) -> jax.Array:
    return jnp.mean(clustering.squared_distances(x_NxD, centroids_KxD).min(-1))


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the normalised mutual information I(a; b) / sqrt(H(a) H(b)) of two partitions, int [N] each.

    0 if they are independent, or one of them has a single part; 1 if they are equal up to names.
    """
    _, a = np.unique(a, return_inverse=True)
    _, b = np.unique(b, return_inverse=True)
    joint = np.zeros((a.max() + 1, b.max() + 1))
    if min(joint.shape) < 2:
        return 0.0
    np.add.at(joint, (a, b), 1 / len(a))
    rows, columns = joint.sum(1), joint.sum(0)
    entropies = [-(p * np.log(p)).sum() for p in (rows, columns)]
    there = joint > 0
    information = (joint[there] * np.log(joint[there] / np.outer(rows, columns)[there])).sum()
    return float(np.clip(information / np.sqrt(entropies[0] * entropies[1]), 0, 1))
