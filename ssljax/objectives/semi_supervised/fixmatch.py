"""FixMatch: where the model is confident of an unlabelled image, a strongly augmented view must agree.

Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel 2020, "FixMatch: Simplifying Semi-Supervised Learning
with Consistency and Confidence".
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.objectives.base import Ctx, Params, noise_of
from ssljax.objectives.images import view_shape
from ssljax.objectives.semi_supervised.semi_supervised import SemiSupervised


@dataclasses.dataclass(frozen=True)
class FixMatch(SemiSupervised):
    """Cross-entropy of strong views with the classes of weak views of at least `threshold` probability (eq. 4)."""

    term: ClassVar[str] = "fixmatch"
    titles: ClassVar[tuple[str, ...]] = ("weak", "strong")

    threshold: float = schema.setting(0.95, ge=0, le=1, doc="least probability of a pseudo-label (tau)")
    weight: float = schema.setting(1.0, ge=0, doc="weight of the unlabelled loss (lambda_u)")
    augment: Any = schema.setting(
        {"name": "single", "crop_scale": (0.8, 1.0), "augment": {"flip": 0.5}},
        registry=views.REGISTRY.only("single"),
        doc="weak augmentation, of labelled and unlabelled images; by default crops and flips",
    )
    strong: Any = schema.setting(
        {
            "name": "single",
            "crop_scale": (0.5, 1.0),
            "augment": {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "solarize": 0.2, "cutout": 1.0},
        },
        registry=views.REGISTRY.only("single"),
        doc="strong augmentation; by default crops, colour operations and cutout, where the paper has RandAugment and "
        "cutout",
    )

    def check(self) -> None:
        super().check()
        weak, strong = (view_shape(augment, self.spec) for augment in (self.augment, self.strong))
        if weak != strong:
            raise UserError(f"objective.strong.size: its views are {strong}, but those of objective.augment are {weak}")

    def looks(self, keys: jax.Array, images: jax.Array, aspect: jax.Array | None) -> jax.Array:
        made = [
            self.augment(views.fold_in(keys, 0), images, aspect),
            self.strong(views.fold_in(keys, 1), images, aspect),
        ]
        return jnp.stack(made, 1)

    def encode_unlabelled(
        self, params: Params, extra: Any, seen: jax.Array, total: int, ctx: Ctx
    ) -> dict[str, jax.Array]:
        """Encodes weak views without a backward pass, since they give classes alone."""
        count = seen.shape[1]
        weak = self.logits(jax.lax.stop_gradient(params), seen[:, :, 0], noise_of(ctx, count, 1, total))
        strong = self.logits(params, seen[:, :, 1], noise_of(ctx, count, 1 + count, total), ctx)
        return {"unlabelled": jnp.stack([weak, strong], 2)}

    def unlabelled(self, logits: jax.Array, teacher: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        values, _ = losses.fixmatch(logits[:, 0], logits[:, 1], threshold=self.threshold, reduce=False)
        confident = jax.nn.softmax(logits[:, 0].astype(jnp.float32)).max(-1) >= self.threshold
        return jnp.float32(self.weight), values, {"confident": confident}

    @property
    def passes(self) -> float:
        return 1 + 1 / 3  # weak views have no backward pass
