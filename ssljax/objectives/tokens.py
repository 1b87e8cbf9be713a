"""Base class of objectives over token sequences."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, parallel
from ssljax.base.errors import UserError
from ssljax.layers.masks import Full, Mask
from ssljax.layers.noise import Noise
from ssljax.models.tokens import Readout
from ssljax.objectives.base import Batch, Ctx, Loss, Objective, Params, Variables, apply


@dataclasses.dataclass(frozen=True)
class TokenObjective(Objective):
    """An objective whose model reads tokens [B, T] under the attention mask `attention`."""

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    attention: ClassVar[Any] = Full()
    fills_masks: ClassVar[bool] = False  # True: the model learns to predict mask tokens from all other tokens

    @property
    def prefixed(self) -> bool:
        """True if a model with causal attention reads a prompt in both directions (prefix language models)."""
        return False

    def mask(self, inputs: Any) -> Mask:
        """Returns the attention mask for inputs of `encode` or a batch."""
        return self.attention

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder = self.model.init(key, batch["tokens"][:1], mask=self.attention, method="init_all")["params"]
        return Variables({"encoder": encoder}, {})

    def hidden(self, params: Params, inputs: Any, noise: Noise | None, ctx: Ctx | None = None) -> Any:
        """Encodes inputs["tokens"], with segments, positions and types if they are there; returns `Encoded`."""
        return apply(
            self.model,
            params["encoder"],
            inputs["tokens"],
            mask=self.mask(inputs),
            segment_ids=inputs.get("segment_ids"),
            positions=inputs.get("positions"),
            token_types=inputs.get("token_types"),
            noise=noise,
            ctx=ctx,
        )

    def scores(self, params: Params, hidden: jax.Array, labels: jax.Array) -> losses.TokenScores:
        """Scores [B T] of labels int [B, T] for hidden states [B, T, D], without storing logits."""
        return token_scores(apply(self.model, params["encoder"], hidden, method="readout"), labels)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        encoded = self.hidden(params, batch, None)
        return {"pooled": encoded.pooled, "tokens": encoded.tokens}


def check_two_sided(model: Any) -> None:
    """Refuses a model that does not read the tokens on both sides of one, for objectives that predict it from these.

    Raises:
        UserError: the model reads one side or none.
    """
    if not model.two_sided:
        raise UserError(
            f"model.name: {type(model).__name__} reads no later tokens, but the objective predicts tokens from both "
            "sides (a transformer is required)"
        )


def token_scores(readout: Readout, labels: jax.Array) -> losses.TokenScores:
    """Scores [B T] of labels int [B, T] for the read-out of hidden states [B, T, D]; see `losses.linear_nll`."""
    hidden, kernel, bias, cap = readout
    # On CPUs small slabs stay in the cache. Elsewhere each slab reads the kernel from memory and adds to its gradient,
    # so slabs are as large as 256 MB of logits.
    chunk = 512 if parallel.platform() == "cpu" else max(512, 2**26 // kernel.shape[1] // 128 * 128)

    def own_scores(axis_name: Any, rows: Any, shared: Any) -> losses.TokenScores:
        (hidden, labels), (kernel, bias) = rows, shared
        flat = hidden.reshape(-1, hidden.shape[-1])
        scores = losses.linear_nll(flat, kernel, bias, labels.reshape(-1), cap=cap, chunk=chunk)
        return jax.tree.map(lambda x: x.reshape(labels.shape), scores)

    # Each device loops over its own tokens. Left to XLA, devices with a part of the vocabulary would gather the tokens
    # of every slab, and the gradient of the kernel would be summed over devices in every slab.
    scores = parallel.over_batch(own_scores, (hidden, labels), (kernel, bias), splits_shared=True)
    return jax.tree.map(lambda x: x.reshape(-1), scores)


def token_loss(scores: losses.TokenScores, weights: jax.Array) -> Loss:
    """The mean negative log-likelihood per token in nats, and the accuracy, with weights float32 [N] of the tokens."""
    count = jnp.sum(weights)
    return Loss(
        {"nll": (1.0, jnp.sum(scores.nll * weights), count)},
        {"accuracy": (jnp.sum(scores.correct * weights), count)},
    )


def prefix_flops(model: Any, tokens: int, predicted: int, both: float) -> float:
    """Returns forward FLOPs of a model of `tokens` tokens, of which a part is a prefix that is read both ways.

    Args:
        model: the model.
        tokens: number of tokens of a row.
        predicted: number of logits of a row.
        both: square of the share of the tokens that are in the prefix; 0: causal attention.
    """
    causal, full = (model.flops(tokens, causal=c, predicted=predicted) for c in (True, False))
    return float((1 - both) * causal + both * full)


def valid(inputs: Any) -> jax.Array:
    """bool [B, T]: False at padding (segment 0)."""
    return inputs["segment_ids"] > 0 if "segment_ids" in inputs else jnp.ones(inputs["tokens"].shape, bool)
