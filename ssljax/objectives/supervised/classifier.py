"""Base class of objectives with an encoder and a linear classifier."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.layers.heads import Linear
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Params, Variables, apply, noise_of
from ssljax.objectives.encoder import EncoderObjective


@dataclasses.dataclass(frozen=True)
class Classifier(EncoderObjective):
    """A linear classifier on the pooled representation."""

    @property
    def classes(self) -> int:
        if not self.spec.num_classes:
            raise UserError("objective.name: this objective needs labels, and data.source has none")
        return self.spec.num_classes

    def check(self) -> None:
        super().check()
        if self.classes < 2:
            raise UserError("objective.name: the data have a single class, so there is nothing to tell apart")

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, head_key = jax.random.split(key)
        encoder = self.init_encoder(encoder_key, batch)
        head = self.head().init(head_key, jnp.zeros((1, self.model.width)))["params"]
        return Variables({"encoder": encoder, "head": head}, {})

    def head(self) -> Linear:
        return Linear(self.classes, input_ratio=output_ratio(self.model))

    def target(self, label: jax.Array) -> jax.Array:
        """Returns target distributions [B, C] of labels [B].

        Labels out of range give NaN, as in `losses.cross_entropy`; zeros from one_hot would silently give loss 0.
        """
        in_range = (label >= 0) & (label < self.classes)
        return jnp.where(in_range[:, None], jax.nn.one_hot(label, self.classes), jnp.nan)

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> Any:
        pooled = self.encoded(params["encoder"], inputs, noise_of(ctx), ctx).pooled
        return apply(self.head(), params["head"], pooled)  # [B, C]

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        evaluated = self.evaluated(params, extra)
        encoded = self.encoded(evaluated["encoder"], batch, None)
        logits = apply(self.head(), evaluated["head"], encoded.pooled)
        return {"pooled": encoded.pooled, "tokens": encoded.tokens, "logits": logits}

    def evaluated(self, params: Params, extra: Any) -> Params:
        """The parameters of encoder and classifier that evaluations use."""
        return params

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        log_probs = jax.nn.log_softmax(self.features(params, extra, batch)["logits"].astype(jnp.float32))
        value = jnp.take_along_axis(log_probs, batch["label"][:, None], 1)[:, 0]
        return value, jnp.ones_like(value)
