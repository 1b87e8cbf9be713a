"""Regression of numbers, and several labels that do not exclude each other."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.layers.heads import Linear
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.encoder import EncoderObjective
from ssljax.objectives.images import unaugmented


@dataclasses.dataclass(frozen=True)
class Targets(EncoderObjective):
    """A linear map from the pooled representation to the numbers of a column."""

    column: str = schema.setting("target", doc="column of the data with the targets, one number or K of an example")
    augment: Any = schema.setting(
        {"name": "single"}, registry=views.REGISTRY.only("single"), doc="augmentation of images; none by default"
    )

    @property
    def outputs(self) -> int:
        """Number of outputs of the linear map."""
        return self.numbers

    @property
    def numbers(self) -> int:
        """Number of targets of an example."""
        shape = self.spec.elements[self.column]["shape"]
        return int(shape[0]) if shape else 1

    def check(self) -> None:
        super().check()
        known = sorted(set(self.spec.elements) - {"id"})
        if self.column not in known:
            raise UserError(
                f"objective.column: the data have no column {self.column!r} (they have: {', '.join(known)}); data.keys "
                "maps names to columns of the source"
            )
        shape = self.spec.elements[self.column]["shape"]
        if len(shape) > 1 or 0 in shape:
            raise UserError(f"objective.column: {self.column!r} has the shape {shape}, must be one number or a list")

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, head_key = jax.random.split(key)
        encoder = self.init_encoder(encoder_key, batch)
        head = self.head().init(head_key, jnp.zeros((1, self.model.width)))["params"]
        return Variables({"encoder": encoder, "head": head}, {})

    def head(self) -> Linear:
        return Linear(self.outputs, input_ratio=output_ratio(self.model))

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        target = batch[self.column].astype(jnp.float32).reshape(len(batch[self.column]), -1)
        if not self.augmented:
            return {"target": target, **self.read(batch)}
        return {"target": target, "image": self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect"))}

    def held_out(self) -> "Targets":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        pooled = self.encoded(params["encoder"], inputs, noise_of(ctx), ctx).pooled
        return apply(self.head(), params["head"], pooled)  # [B, outputs]

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        encoded = self.encoded(params["encoder"], batch, None)
        outputs = apply(self.head(), params["head"], encoded.pooled)
        return {"pooled": encoded.pooled, "tokens": encoded.tokens, "outputs": outputs}

    def flops(self, spec: Any) -> float:
        return self.encoder_flops(self.augment, spec) + 2.0 * self.model.width * self.outputs


@dataclasses.dataclass(frozen=True)
class Regression(Targets):
    """An error of predicted numbers, mean over the numbers of an example; targets are standardised first.

    "gaussian" predicts a mean and a log-variance for each number, and is the negative log-likelihood without
    log(2 pi) / 2, summed over numbers.
    """

    error: Literal["mse", "mae", "huber", "gaussian"] = schema.setting("mse", doc="error of a prediction")
    delta: float = schema.setting(1.0, gt=0, doc="error at which 'huber' becomes linear, in standard deviations")
    target_mean: float = schema.setting(0.0, doc="mean of the targets, which is subtracted")
    target_std: float = schema.setting(1.0, gt=0, doc="standard deviation of the targets, by which they are divided")

    @property
    def outputs(self) -> int:
        return 2 * self.numbers if self.error == "gaussian" else self.numbers

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        target = (inputs["target"] - self.target_mean) / self.target_std
        mean = outputs[:, : self.numbers].astype(jnp.float32)
        if self.error == "gaussian":
            values, weights = losses.gaussian_nll(mean, outputs[:, self.numbers :], target, reduce=False)
        elif self.error == "huber":
            values, weights = losses.huber(mean, target, self.delta, reduce=False)
        else:
            values, weights = getattr(losses, self.error)(mean, target, reduce=False)
        weight = jnp.sum(weights)
        wrong = self.target_std * jnp.mean(jnp.abs(mean - target), -1)
        return Loss(
            {self.error: (1.0, jnp.sum(values * weights), weight)},
            {"absolute_error": (jnp.sum(wrong * weights), weight)},
        )


@dataclasses.dataclass(frozen=True)
class MultiLabel(Targets):
    """Binary cross-entropy of labels that do not exclude each other, mean over the labels of an example."""

    label_smoothing: float = schema.setting(
        0.0, ge=0, lt=1, doc="share of the target's mass that is spread over 0 and 1"
    )

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        target = inputs["target"]
        # A target outside [0, 1] gives NaN, as a label out of range does in `classification`.
        target = jnp.where((target >= 0) & (target <= 1), target, jnp.nan)
        values, weights = losses.binary_cross_entropy(outputs, target, smoothing=self.label_smoothing, reduce=False)
        weight = jnp.sum(weights)
        right = jnp.mean((outputs > 0) == (target > 0.5), -1)
        return Loss(
            {"binary_cross_entropy": (1.0, jnp.sum(values * weights), weight)},
            {"accuracy": (jnp.sum(right * weights), weight)},
        )
