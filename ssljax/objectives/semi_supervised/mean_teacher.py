"""Mean teacher: the prediction for a view agrees with that of a moving average of the model for another view.

Tarvainen & Valpola 2017, "Mean teachers are better role models".
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.objectives.base import Batch, Ctx, Params, Variables, noise_of
from ssljax.objectives.images import unaugmented
from ssljax.objectives.semi_supervised.semi_supervised import SemiSupervised, ramp
from ssljax.objectives.supervised.classification import Classification
from ssljax.objectives.teacher import ema


@dataclasses.dataclass(frozen=True)
class _Taught(Classification):
    """Classification by the teacher."""

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> Any:
        return super().encode(extra["teacher"], extra, inputs, ctx)


@dataclasses.dataclass(frozen=True)
class MeanTeacher(SemiSupervised):
    """Squared difference of the probabilities of student and teacher on unlabelled images (section 3).

    The paper takes it on labelled images too; repeat them in the stream for that. Evaluations use the teacher.
    """

    term: ClassVar[str] = "mean_teacher"
    plain: ClassVar[type[Classification]] = _Taught
    titles: ClassVar[tuple[str, ...]] = ("student", "teacher")

    distance: Literal["mse", "kl"] = schema.setting("mse", doc="difference of the probabilities")
    weight: float = schema.setting(
        100.0, ge=0, doc="last weight of the consistency, a mean over classes as in the authors' code"
    )
    ramp: float = schema.setting(
        0.25, ge=0, le=1, doc="share of the run in which the weight rises, as exp(-5 (1 - t)^2) of the share t"
    )
    momentum: float = schema.setting(0.99, ge=0, le=1, doc="decay of the moving average during the ramp")
    momentum_after: float = schema.setting(0.999, ge=0, le=1, doc="decay of the moving average after the ramp")
    augment: Any = schema.setting(
        {"name": "single", "crop_scale": (0.8, 1.0), "augment": {"flip": 0.5}},
        registry=views.REGISTRY.only("single"),
        doc="augmentation of images, different for student and teacher; by default crops and flips",
    )

    def check(self) -> None:
        super().check()
        noise = any(getattr(self.model.config, key, 0) for key in ("dropout", "drop_path"))  # a ResNet has neither
        if self.augment == unaugmented(self.augment) and not noise:
            raise UserError("objective.augment: without augmentation and dropout, student and teacher see the same")

    @property
    def total_dependent(self) -> bool:
        return True

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        params, _ = super().init(key, batch)
        return Variables(params, {"teacher": jax.tree.map(jnp.copy, params)})

    def looks(self, keys: jax.Array, images: jax.Array, aspect: jax.Array | None) -> jax.Array:
        return jnp.stack([self.augment(views.fold_in(keys, v), images, aspect) for v in (0, 1)], 1)

    def encode_unlabelled(
        self, params: Params, extra: Any, seen: jax.Array, total: int, ctx: Ctx
    ) -> dict[str, jax.Array]:
        count = seen.shape[1]
        student = self.logits(params, seen[:, :, 0], noise_of(ctx, count, 1, total), ctx)
        # The teacher is noisy too, as in the paper.
        teacher = self.logits(extra["teacher"], seen[:, :, 1], noise_of(ctx, count, 1 + count, total))
        return {"unlabelled": student[:, :, None], "teacher": jax.lax.stop_gradient(teacher)[:, :, None]}

    def unlabelled(self, logits: jax.Array, teacher: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        values, _ = losses.mean_teacher(logits[:, 0], teacher[:, 0], distance=self.distance, reduce=False)
        agree = jnp.argmax(logits[:, 0], -1) == jnp.argmax(teacher[:, 0], -1)
        done = ramp(step, self.steps, 0.0, self.ramp)
        return self.weight * jnp.exp(-5 * jnp.square(1 - done)), values, {"agreement": agree}

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        rising = ramp(step, self.steps, 0.0, self.ramp) < 1
        decay = jnp.where(rising, self.momentum, self.momentum_after)
        return {"teacher": ema(extra["teacher"], params, decay)}

    def model_params(self, params: Params, extra: Any) -> Params:
        return extra["teacher"]["encoder"]

    def evaluated(self, params: Params, extra: Any) -> Params:
        return extra["teacher"]

    @property
    def passes(self) -> float:
        return 1 + 1 / 3
