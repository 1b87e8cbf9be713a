"""MSN: the cluster assignment of an image is predicted from other crops, of which patches are dropped.

Assran, Caron, Misra, Bojanowski, Bordes, Vincent, Joulin, Rabbat, Ballas 2022, "Masked Siamese Networks for
Label-Efficient Learning".
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit
from ssljax.layers.heads import MLPHead, Prototypes
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of, views_of
from ssljax.objectives.images import ImageObjective, crop_flops, merge, view_shape
from ssljax.objectives.masked.patches import check_masks, masked_images
from ssljax.objectives.pictures import Showing, of_views
from ssljax.objectives.projector import Projector
from ssljax.objectives.teacher import Teacher

# Section 4 and the authors' code: a target, an anchor whose patches are dropped at random, ten focal anchors.
CROPS = {
    "name": "multi_crop",
    "local_crops": 10,
    "global_scale": (0.3, 1.0),
    "local_scale": (0.05, 0.3),
    "augment": {"jitter_strength": 0.5},
    "second": None,
    "local": None,
}


@dataclasses.dataclass(frozen=True)
class MSN(ImageObjective):
    """Cross-entropy of the anchors with the target, minus the entropy of the mean prediction (eq. 1).

    The first large crop is the target. The other large crops are anchors with random patch drop, the small crops
    anchors with focal drop: nothing is left but a block. Evaluations use the teacher.
    """

    coupled: ClassVar[bool] = True

    mask_ratio: float = schema.setting(0.15, gt=0, lt=1, doc="share of the patches that large anchors drop")
    prototypes: int = schema.setting(1024, gt=0, doc="number of clusters (K)")
    temperature: float = schema.setting(0.1, gt=0, doc="temperature of the anchors' predictions (tau)")
    target_temperature: float = schema.setting(
        0.025, gt=0, doc="temperature of the targets (tau+), which sharpens them"
    )
    entropy_weight: float = schema.setting(
        1.0,
        ge=0,
        doc="weight of the entropy of the mean prediction (lambda); 0: collapses, unless targets are balanced",
    )
    sinkhorn_iterations: int = schema.setting(
        0, ge=0, doc="Sinkhorn iterations that balance the targets over the batch; the authors' code has 3; 0: none"
    )
    teacher: Teacher = schema.setting(
        Teacher(schedule="linear"), doc="moving average of encoder and projector, which makes the targets"
    )
    augment: Any = schema.setting(
        CROPS,
        registry=views.REGISTRY.only("multi_crop"),
        doc="large crops, the first of which is the target, and small crops, by default as in the authors' code",
    )
    projector: Projector = schema.setting(
        Projector(output=256, layers=3), doc="network between the encoder and the prototypes"
    )

    def check(self) -> None:
        super().check()
        check_masks(self)
        if self.augment.global_crops + self.augment.local_crops < 2:
            raise UserError(
                "objective.augment.global_crops: got 1 without local crops, must be at least 2: the first is the target"
            )

    @property
    def total_dependent(self) -> bool:
        return self.teacher.schedule != "constant"

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, projector_key, prototype_key = jax.random.split(key, 3)
        encoder = self.model.init(encoder_key, self.prepare(batch)["image"][:1])["params"]
        projector = self._projector().init(projector_key, jnp.zeros((2, self.model.width)))["params"]
        prototypes = self._prototypes().init(prototype_key, jnp.zeros((1, self.projector.output)))["params"]
        networks = {"encoder": encoder, "projector": projector}
        return Variables({**networks, "prototypes": prototypes}, {"teacher": jax.tree.map(jnp.copy, networks)})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        crops = self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect"))
        rows, columns = self.model.grid(crops["global"].shape)
        keep = [
            views.random_patch_mask(views.fold_in(keys, anchor), rows * columns, self.mask_ratio)[0]
            for anchor in range(1, self.augment.global_crops)
        ]
        return crops | ({"keep": jnp.stack(keep, 1)} if keep else {})  # [B, G - 1, K]

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        anchors, total = [], self.augment.global_crops - 1 + self.augment.local_crops
        encoder = params["encoder"]
        if "keep" in inputs:
            large = inputs["global"][:, 1:]
            noise, keep = noise_of(ctx, large.shape[1], 0, total), merge(inputs["keep"])
            pooled = apply(self.model, encoder, self.pixels(merge(large)), keep=keep, noise=noise, ctx=ctx).pooled
            anchors.append(pooled.reshape(*large.shape[:2], -1))
        if "local" in inputs:
            small = inputs["local"]
            noise = noise_of(ctx, small.shape[1], total - small.shape[1], total)
            anchors.append(self.encode_images(encoder, small, noise, ctx))
        target = self.encode_images(extra["teacher"]["encoder"], inputs["global"][:, :1], None)[:, 0]
        # [B, A, D] and [B, D]
        return {"anchors": jnp.concatenate(anchors, 1), "target": jax.lax.stop_gradient(target)}

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        score = lambda head, x: apply(  # noqa: E731
            self._prototypes(), params["prototypes"], apply(self._projector(), head, x)
        )
        scores = score(params["projector"], outputs["anchors"])  # [B, A, K]
        options: dict[str, Any] = {"epsilon": self.target_temperature, "iterations": self.sinkhorn_iterations}
        target = losses.assignments(score(extra["teacher"]["projector"], outputs["target"])[None], **options)[0]
        predicted = scores / self.temperature
        targets = jnp.broadcast_to(target[:, None], scores.shape)
        values, _ = losses.cross_entropy(merge(predicted), merge(targets), reduce=False)
        n = jnp.float32(len(target))
        entropy = losses.entropy(jnp.mean(jax.nn.softmax(predicted), (0, 1)))
        return Loss(
            {
                "cross_entropy": (1.0, jnp.sum(values) / scores.shape[1], n),
                "mean_entropy": (-self.entropy_weight, n * entropy, n),
            },
            {
                "teacher_entropy": (jnp.sum(losses.entropy(target)), n),
                "feature_std": (n * losses.feature_std(outputs["anchors"][:, 0]), n),
            },
        )

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        student = {name: params[name] for name in extra["teacher"]}
        return {"teacher": self.teacher.follow(extra["teacher"], student, step, self.steps)}

    def model_params(self, params: Params, extra: Any) -> Params:
        return extra["teacher"]["encoder"]

    def shown(self, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Returns the crops, with grey in place of dropped patches."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        if "keep" not in inputs:
            return inputs
        large = inputs["global"][:, 1:]
        rows, columns = self.model.grid(large.shape)
        dropped = ~jnp.any(merge(inputs["keep"])[..., None] == jnp.arange(rows * columns), 1)
        hidden = masked_images(merge(large), dropped, self.model.patch_size).reshape(large.shape)
        return {**inputs, "global": jnp.concatenate([inputs["global"][:, :1], hidden], 1)}

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        anchors = self.augment.global_crops - 1 + self.augment.local_crops
        titles = ("target", *(f"anchor {i + 1}" for i in range(anchors)))
        return of_views(views.centered(batch)["image"], jax.jit(self.shown)(batch, show.key), show.rows, titles)

    def flops(self, spec: Any) -> float:
        projector = self._projector()
        head = projector.flops(self.model.width) + self._prototypes().flops(self.projector.output)
        crops = crop_flops(self.model, self.augment, spec, head)
        shape = view_shape(self.augment, spec)
        rows, columns = self.model.grid(shape)
        kept = views.visible_patches(rows * columns, self.mask_ratio)
        anchors = (self.augment.global_crops - 1) * (self.model.flops(tokens=kept, image_shape=shape) + head)
        # The target has no backward pass, which costs two forward passes.
        return anchors + crops["local"] + crops["global"] / self.augment.global_crops / 3

    def _projector(self) -> MLPHead:
        return self.projector.module(output_ratio(self.model))

    def _prototypes(self) -> Prototypes:
        return Prototypes(self.prototypes)
