"""k nearest neighbours by cosine similarity, votes weighted by exp(similarity / temperature)."""

import dataclasses
import functools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.schema import setting
from ssljax.evals.base import DrawnProbe, Metrics, Reader, mean_and_std


@dataclasses.dataclass(frozen=True)
class Knn(DrawnProbe):
    """Weighted k-NN classification (Wu et al. 2018, section 3.4; k = 20 as in Caron et al. 2021)."""

    k: int = setting(20, ge=1, doc="number of neighbours that vote")
    temperature: float = setting(0.07, gt=0, doc="temperature of the votes, exp(cosine / temperature)")

    def summary(self) -> str:
        return f"k {self.k}, temperature {self.temperature:g}{self.label_summary()}"

    def check(self, reader: Reader) -> Collection[str]:
        super().check(reader)
        return mean_and_std("accuracy", [0.0] * self.draws)

    def run(self, reader: Reader) -> Metrics:
        fit_x, fit_y = reader.features(self.fit_split, self.feature), reader.labels(self.fit_split)
        test_x, test_y = reader.features(self.test_split, self.feature), reader.labels(self.test_split)
        accuracies = []
        for draw in range(self.draws):
            rows = self.draw_rows(fit_y, np.random.default_rng((self.seed, draw)), reader.path)
            predicted = knn_predict(fit_x[rows], fit_y[rows], test_x, k=self.k, temperature=self.temperature)
            accuracies.append(float(np.mean(predicted == test_y)))
        return mean_and_std("accuracy", accuracies)


def knn_predict(
    bank_NxD: np.ndarray,
    labels_N: np.ndarray,
    query_MxD: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    block: int = 256,
) -> np.ndarray:
    """Returns the class [M] with the largest weighted vote; ties go to the smaller class index.

    The largest array is the similarities of one block of queries, [block, N].
    """
    k, classes = min(k, len(bank_NxD)), int(labels_N.max()) + 1
    bank, labels = _normalize(jnp.asarray(bank_NxD, jnp.float32)), jnp.asarray(labels_N, jnp.int32)
    padded = np.pad(query_MxD, ((0, -len(query_MxD) % block), (0, 0)))
    out = [
        np.asarray(_vote(padded[i : i + block], bank, labels, temperature, k=k, classes=classes))
        for i in range(0, len(padded), block)
    ]
    return np.concatenate(out)[: len(query_MxD)]


@functools.partial(jax.jit, static_argnames=("k", "classes"))
def _vote(query_BxD, bank_NxD, labels_N, temperature, *, k, classes):
    query = _normalize(query_BxD.astype(jnp.float32))
    similarity_BxN = jnp.matmul(query, bank_NxD.T, precision=jax.lax.Precision.HIGHEST)
    top_Bxk, index_Bxk = jax.lax.top_k(similarity_BxN, k)
    # The maximum is subtracted so that a small temperature cannot overflow. Not as `top_Bxk[:, :1]`: XLA merges the
    # slice into top_k and then sorts the whole row.
    weight_Bxk = jnp.exp((top_Bxk - top_Bxk.max(axis=-1, keepdims=True)) / temperature)
    rows = jnp.arange(len(query))[:, None]
    return jnp.zeros((len(query), classes)).at[rows, labels_N[index_Bxk]].add(weight_Bxk).argmax(axis=-1)


def _normalize(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
