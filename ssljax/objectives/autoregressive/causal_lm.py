"""Causal language modelling: each token is predicted from its predecessors (Radford et al. 2018, "GPT-1", eq. 1)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Texts
from ssljax.base.schema import setting
from ssljax.layers.masks import Causal
from ssljax.objectives.base import Batch, Ctx, Loss, Params, noise_of
from ssljax.objectives.pictures import TEXTS, Showing, first_text
from ssljax.objectives.tokens import TokenObjective, token_loss


@dataclasses.dataclass(frozen=True)
class CausalLM(TokenObjective):
    """Mean negative log-likelihood per predicted token, in nats.

    Every token except the first of its segment is predicted: T - 1 tokens in a row of T tokens with one segment. With
    `data.overlap = 1` consecutive windows share a token, so every token of a text except its first is predicted once.
    """

    attention: ClassVar[Any] = Causal()

    last: tuple[int, ...] = setting(
        (),
        ge=1,
        doc="numbers n of further metrics `exact_n`: share of texts whose last n tokens are all predicted right; each "
        "is predicted from the true tokens before it, so that greedy decoding ends these texts exactly; of several "
        "texts in a row, the last one counts",
    )

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        return {k: batch[k] for k in ("tokens", "segment_ids", "positions") if k in batch}

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        return self.hidden(params, inputs, noise_of(ctx), ctx).tokens[:, :-1]  # [B, T-1, D]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        scores, weights = self._scores(params, outputs, inputs)
        loss = token_loss(scores, weights)
        correct, counted = (x.reshape(inputs["tokens"].shape[0], -1) for x in (scores.correct, weights))
        if "segment_ids" in inputs:
            segments = inputs["segment_ids"]
            counted = counted * (segments == jnp.max(segments, 1, keepdims=True))[:, 1:]
        exact = {f"exact_{n}": at_the_end(correct, counted, n) for n in self.last}
        return loss._replace(metrics={**loss.metrics, **exact})

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        scores, weights = self._scores(params, self.hidden(params, batch, None).tokens[:, :-1], batch)
        shape = (batch["tokens"].shape[0], -1)
        return -jnp.sum((scores.nll * weights).reshape(shape), 1), jnp.sum(weights.reshape(shape), 1)

    def scored(self, batch: Batch) -> jax.Array:
        """bool [B, T]: all tokens except padding and the first of each segment."""
        if "segment_ids" not in batch:
            return jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1]) > 0, batch["tokens"].shape)
        segment_BxT = jnp.asarray(batch["segment_ids"])
        before_BxT = jnp.pad(segment_BxT, ((0, 0), (1, 0)))[:, :-1]  # segment 0 before the first token
        return (segment_BxT > 0) & (segment_BxT == before_BxT)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        texts = [text for row in range(len(batch["tokens"])) if len(text := first_text(batch, row)) > 3][:TEXTS]
        if show.decode is None or show.generate is None or not texts:
            return {}
        count = min(batch["tokens"].shape[1] // 2, 128)
        cuts = [min(len(text) // 2, count) for text in texts]
        made = show.generate([text[:cut] for text, cut in zip(texts, cuts)], count, ())
        examples = [
            [
                ("prompt", show.decode(text[:cut])),
                ("continuation", show.decode(new)),
                ("true continuation", show.decode(text[cut : cut + count])),
            ]
            for text, cut, new in zip(texts, cuts, made)
        ]
        return {"samples": Texts("Samples", "Held-out texts that the model continues.", examples)}

    def flops(self, spec: Any) -> float:
        return self.model.flops(tokens=spec.max_len, causal=True, predicted=spec.max_len - 1)

    def _scores(self, params: Params, hidden: jax.Array, inputs: Any) -> tuple[losses.TokenScores, jax.Array]:
        """Returns (scores [B (T-1)] of all tokens but the first, weights: 1 if the segment has an earlier token)."""
        weights = self.scored(inputs)[:, 1:]
        scores = self.scores(params, hidden, inputs["tokens"][:, 1:])
        return scores, weights.reshape(-1).astype(jnp.float32)


def at_the_end(correct: jax.Array, weights: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Returns (number of rows whose last n tokens are all correct, number of rows with n tokens that count).

    Args:
        correct: [B, T], 1 where a token is predicted right, else 0.
        weights: [B, T], 1 where a token counts, else 0.
        n: tokens at the end of a row.

    Raises:
        UserError: n > T.
    """
    if n > weights.shape[1]:
        raise UserError(f"objective.last: got {n}, must be at most {weights.shape[1]}, the predicted tokens of a row")
    left = jnp.cumsum(weights[:, ::-1], 1)[:, ::-1]  # tokens from here to the end
    read = (weights > 0) & (left <= n)
    long = jnp.sum(weights, 1) >= n
    return jnp.sum(long & jnp.all((correct > 0) | ~read, 1)), jnp.sum(long)
