"""Base class of objectives over token sequences."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses
from ssljax.layers.masks import Full
from ssljax.layers.noise import Noise
from ssljax.objectives.base import Batch, Ctx, Loss, Objective, Params, Variables, apply


@dataclasses.dataclass(frozen=True)
class TokenObjective(Objective):
    """An objective whose model reads tokens [B, T] under the attention mask `attention`."""

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    attention: ClassVar[Any] = Full()

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder = self.model.init(key, batch["tokens"][:1], mask=self.attention, method="init_all")["params"]
        return Variables({"encoder": encoder}, {})

    def hidden(self, params: Params, inputs: Any, noise: Noise | None, ctx: Ctx | None = None) -> Any:
        """Encodes inputs["tokens"], with segments and positions if the data have them; returns `Encoded`."""
        return apply(
            self.model,
            params["encoder"],
            inputs["tokens"],
            mask=self.attention,
            segment_ids=inputs.get("segment_ids"),
            positions=inputs.get("positions"),
            noise=noise,
            ctx=ctx,
        )

    def scores(self, params: Params, hidden: jax.Array, labels: jax.Array) -> losses.TokenScores:
        """Scores of labels int [N] for hidden states [N, D], without storing logits [N, V]."""
        hidden, kernel, bias, cap = apply(self.model, params["encoder"], hidden, method="readout")
        return losses.linear_nll(hidden, kernel, bias, labels, cap=cap)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        encoded = self.hidden(params, batch, None)
        return {"pooled": encoded.pooled, "tokens": encoded.tokens}


def token_loss(scores: losses.TokenScores, weights: jax.Array) -> Loss:
    """The mean negative log-likelihood per token in nats, and the accuracy, with weights float32 [N] of the tokens."""
    count = jnp.sum(weights)
    return Loss(
        {"nll": (1.0, jnp.sum(scores.nll * weights), count)},
        {"accuracy": (jnp.sum(scores.correct * weights), count)},
    )


def valid(inputs: Any) -> jax.Array:
    """bool [B, T]: False at padding (segment 0)."""
    return inputs["segment_ids"] > 0 if "segment_ids" in inputs else jnp.ones(inputs["tokens"].shape, bool)
