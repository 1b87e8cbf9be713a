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

    spans: tuple[int, ...] = setting(
        (),
        ge=2,
        doc="lengths n of further metrics `accuracy_n`: share of spans of n tokens that are all predicted right; each "
        "token is predicted from its true predecessors, so it is the share that greedy decoding continues exactly",
    )

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        return {k: batch[k] for k in ("tokens", "segment_ids", "positions") if k in batch}

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        return self.hidden(params, inputs, noise_of(ctx), ctx).tokens[:, :-1]  # [B, T-1, D]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        scores, weights = self._scores(params, outputs, inputs)
        loss = token_loss(scores, weights)
        correct, counted = (x.reshape(inputs["tokens"].shape[0], -1) for x in (scores.correct, weights))
        exact = {f"accuracy_{n}": in_spans(correct, counted, n) for n in self.spans}
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


def in_spans(correct: jax.Array, weights: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Returns (number of spans of n tokens that are all correct, number of spans whose tokens all count).

    Spans follow each other from the first token of a row on; a rest of fewer than n tokens is left out.

    Args:
        correct: [B, T], 1 where a token is predicted right, else 0.
        weights: [B, T], 1 where a token counts, else 0.
        n: tokens in a span.

    Raises:
        UserError: n > T.
    """
    rows, length = weights.shape
    if n > length:
        raise UserError(f"objective.spans: got {n}, must be at most {length}, the predicted tokens of a row")
    cut = length // n * n
    right, counted = (jnp.min(x[:, :cut].reshape(rows, -1, n), -1) for x in (correct * weights, weights))
    return jnp.sum(right), jnp.sum(counted)
