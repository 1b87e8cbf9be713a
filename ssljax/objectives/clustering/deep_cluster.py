"""DeepCluster: the classes are clusters of the encoder's own features, which are computed anew from time to time.

Caron, Bojanowski, Joulin, Douze 2018, "Deep Clustering for Unsupervised Learning of Visual Features".
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import k_means as clustering
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.layers.heads import Linear
from ssljax.layers.width import output_ratio
from ssljax.losses.reduction import l2_normalize
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.images import ImageObjective, unaugmented, view_flops, view_shape

EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class DeepCluster(ImageObjective):
    """Cross-entropy of an augmented view with the cluster of the whole image (eq. 1), all clusters weighted alike.

    The features of whole images wait in a queue. When it is full, and then every `refresh` steps, they are clustered,
    and the classifier begins anew. Between two clusterings the encoder of the last one assigns images to clusters, so
    that an image stays in its cluster. Before the first one, the centroids are random directions.
    """

    clusters: int = schema.setting(10_000, gt=1, doc="number of clusters (K)")
    queue: int = schema.setting(65_536, gt=1, doc="number of the last examples whose features are clustered")
    refresh: int = schema.setting(1000, gt=0, doc="steps between two clusterings, once the queue is full")
    iterations: int = schema.setting(20, gt=0, doc="updates of the centroids of a clustering")
    components: int = schema.setting(
        256, gt=0, doc="principal components of the features that are kept, whitened, then normalised to length 1"
    )
    balance: bool = schema.setting(
        True, doc="weight examples by the inverse of the size of their cluster, as if clusters were drawn uniformly"
    )
    augment: Any = schema.setting(
        {"name": "single", "crop_scale": (0.08, 1.0), "augment": {"flip": 0.5}},
        registry=views.REGISTRY.only("single"),
        doc="augmentation of the image that is classified, by default crops and flips",
    )

    def check(self) -> None:
        super().check()
        if self.clusters > self.queue:
            raise UserError(
                f"objective.clusters: got {self.clusters}, must be at most objective.queue, which is {self.queue}"
            )
        if self.steps is not None and self.refresh >= self.steps:
            raise UserError(
                f"objective.refresh: got {self.refresh}, must be less than the {self.steps} steps of the run, which "
                "otherwise has random clusters"
            )

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, head_key, centroid_key, refresh_key = jax.random.split(key, 4)
        encoder = self.model.init(encoder_key, self.prepare(batch)["image"][:1])["params"]
        head = self._head().init(head_key, jnp.zeros((1, self.model.width)))["params"]
        directions = jax.random.normal(centroid_key, (self.clusters, self._kept))
        extra = {
            "queue": nn.LogicallyPartitioned(jnp.zeros((self.queue, self.model.width)), ("queue", None)),
            "key": jax.random.key_data(refresh_key),
            "mean": jnp.zeros(self.model.width),
            "whitening": jnp.eye(self.model.width, self._kept),
            "centroids": l2_normalize(directions),
            "sizes": jnp.full(self.clusters, self.queue / self.clusters, jnp.float32),
            "start": {"encoder": jax.tree.map(jnp.copy, encoder), "head": jax.tree.map(jnp.zeros_like, head)},
        }
        return Variables({"encoder": encoder, "head": head}, extra)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        view = self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect"))
        whole = views.resize(views.centered(batch)["image"], view_shape(self.augment, self.spec)[:2])
        return {"image": view, "whole": whole}

    def held_out(self) -> "DeepCluster":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        encoder = params["encoder"]
        pooled = apply(self.model, encoder, self.pixels(inputs["image"]), noise=noise_of(ctx), ctx=ctx).pooled
        # The classifier as it differs from that of the last clustering: it begins at 0 each time.
        head = jax.tree.map(jnp.subtract, params["head"], extra["start"]["head"])
        whole = self.pixels(inputs["whole"])
        now, then = (
            apply(self.model, network, whole).pooled.astype(jnp.float32)
            for network in (encoder, extra["start"]["encoder"])
        )
        clusters = clustering.assign(reduced(then, extra["mean"], extra["whitening"]), extra["centroids"])
        features = jax.lax.stop_gradient(now)
        return {"logits": apply(self._head(), head, pooled), "clusters": clusters, "features": features}

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        logits, clusters, sizes = outputs["logits"], outputs["clusters"], extra["sizes"]
        # In the queue, the weights of the examples have a mean of 1.
        scale = jnp.sum(sizes) / jnp.sum(sizes > 0) if self.balance else 1.0
        options = {"sizes": sizes} if self.balance else {}
        values, weights = losses.deep_cluster(logits, clusters, **options, reduce=False)
        count = jnp.float32(len(logits))
        right = jnp.argmax(logits, -1) == clusters
        entropy = losses.entropy(sizes / jnp.sum(sizes))
        return Loss(
            {"deep_cluster": (1.0, scale * jnp.sum(values * weights), count)},
            {"accuracy": (jnp.sum(right), count), "cluster_entropy": (count * entropy, count)},
            rows=outputs["features"],
        )

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        queue = jnp.concatenate([rows, extra["queue"]])[: self.queue]  # newest first
        # A function of the step alone, so that runs that train together branch together.
        full = -(-self.queue // len(rows)) - 1  # the step that fills the queue
        due = (step == full) | ((step > full) & ((step + 1) % self.refresh == 0))
        extra = {**extra, "queue": queue}
        return jax.lax.cond(due, lambda: self._clustered(extra, params, step), lambda: extra)

    def flops(self, spec: Any) -> float:
        one = view_flops(self.model, self.augment, spec)
        reduction = 2.0 * self.model.width * self._kept + 2.0 * self._kept * self.clusters
        # A backward pass costs two forward passes; whole images have none.
        return one + 2.0 * self.model.width * self.clusters + (2 * one + reduction) / 3

    def _clustered(self, extra: Any, params: Params, step: jax.Array) -> Any:
        """Returns the extra state after a clustering of the queue."""
        mean, whitening = whitener(extra["queue"], self._kept)
        points = reduced(extra["queue"], mean, whitening)
        key = jax.random.fold_in(jax.random.wrap_key_data(extra["key"]), step)
        centroids, clusters = clustering.k_means(key, points, self.clusters, self.iterations)
        sizes = jax.nn.one_hot(clusters, self.clusters).sum(0)
        new = {"mean": mean, "whitening": whitening, "centroids": centroids, "sizes": sizes}
        return {**extra, **new, "start": {name: params[name] for name in ("encoder", "head")}}

    @property
    def _kept(self) -> int:
        return min(self.components, self.model.width)

    def _head(self) -> Linear:
        return Linear(self.clusters, input_ratio=output_ratio(self.model))


def whitener(x_NxD: jax.Array, components: int) -> tuple[jax.Array, jax.Array]:
    """Returns the mean [D] of features and the map [D, C] to their first principal components of variance 1.

    Variances below a millionth of the largest one are not scaled up further.
    """
    mean = jnp.mean(x_NxD, 0)
    centred = x_NxD - mean
    variance, directions = jnp.linalg.eigh(jnp.matmul(centred.T, centred, precision=EXACT) / len(x_NxD))
    variance, directions = variance[::-1][:components], directions[:, ::-1][:, :components]
    least = jnp.maximum(1e-6 * variance[0], 1e-12)
    return mean, directions / jnp.sqrt(jnp.maximum(variance, least))


def reduced(x_NxD: jax.Array, mean_D: jax.Array, whitening_DxC: jax.Array) -> jax.Array:
    """Returns whitened features of length 1, [N, C]."""
    return l2_normalize(jnp.matmul(x_NxD - mean_D, whitening_DxC, precision=EXACT))
