"""Permutation language modelling: the last tokens of a random order are predicted from those before them.

Yang, Dai, Yang, Carbonell, Salakhutdinov, Le 2019, "XLNet: Generalized Autoregressive Pretraining for Language
Understanding", sections 2.2 and 2.3.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax import parallel, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Texts
from ssljax.layers.masks import Given, Mask, Segments
from ssljax.layers.noise import Noise
from ssljax.models.xlnet import XLNet
from ssljax.objectives.base import Batch, Ctx, Loss, Params, apply, noise_of, still, views_of
from ssljax.objectives.pictures import SHOWN, TEXTS, Showing, marked
from ssljax.objectives.tokens import TokenObjective, token_loss, valid


@dataclasses.dataclass(frozen=True)
class PermutationLM(TokenObjective):
    """Mean over predicted tokens of -log p(token | tokens before it in a random order), in nats (eq. 5).

    Texts keep their positions; the order is a matter of attention alone. Special tokens come before all others. A row
    of several texts has one order, of which each text sees its own tokens.
    """

    share: float = schema.setting(
        1 / 6, gt=0, le=1, doc="share of the tokens of a row, the last ones of the order, that are predicted (1 / K)"
    )
    context: Literal["ordered", "full"] = schema.setting(
        "ordered",
        doc="what tokens see that are not predicted; 'ordered': those before them in the order (eq. 5); 'full': each "
        "other (the code of the authors)",
    )

    def check(self) -> None:
        super().check()
        if not isinstance(self.model, XLNet):
            raise UserError("model.name: permutation language modelling needs the two streams of 'xlnet'")

    def predicted(self, length: int) -> int:
        """The largest number of predicted tokens in a row of `length` tokens."""
        return max(1, math.floor(self.share * length + 1e-6))

    def scored(self, batch: Batch) -> jax.Array:
        """bool [B, T]: tokens that may be predicted, all except padding and special tokens."""
        ids = jnp.array(sorted(self.spec.special_ids.values()), batch["tokens"].dtype)
        return valid(batch) & ~jnp.isin(batch["tokens"], ids)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        """Returns the rows with the rank [B, T] of each token, and the places `chosen_at` [B, M] of predicted tokens.

        `counted` [B, M] is True for them, and `target` [B, M] has their tokens.
        """
        rank, last = views.factorization_order(keys, self.scored(batch), self.share)
        if self.context == "full":
            rank = jnp.where(last, rank, -1)
        return self._inputs(batch, rank, last, self.predicted(rank.shape[1]))

    def _inputs(self, batch: Batch, rank: jax.Array, predicted: jax.Array, places: int) -> dict[str, jax.Array]:
        at = jnp.argsort(~predicted, axis=1, stable=True)[:, :places]
        target, counted = (jnp.take_along_axis(x, at, 1) for x in (batch["tokens"], predicted))
        rows: dict[str, Any] = {k: batch[k] for k in ("tokens", "segment_ids", "positions") if k in batch}
        return {**rows, "rank": rank, "chosen_at": at, "target": target, "counted": counted}

    def queries(self, params: Params, inputs: Any, noise: Noise | None, ctx: Ctx | None = None) -> jax.Array:
        """The hidden states [B, M, D] of the query stream at the predicted tokens."""
        rank = inputs["rank"]
        masks: dict[str, Mask] = {
            "content": Given((rank[:, None, :] <= rank[:, :, None])[:, None]),  # a token sees itself
            "query": Given((rank[:, None, :] < rank[:, :, None])[:, None]),
        }
        if "segment_ids" in inputs:
            masks = {name: mask & Segments(inputs["segment_ids"]) for name, mask in masks.items()}
        options: dict[str, Any] = {"positions": inputs.get("positions"), "noise": noise, "ctx": ctx, **masks}
        both = (inputs["tokens"], inputs["chosen_at"])
        return apply(self.model, params["encoder"], *both, **options, method="streams")[1]

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        return self.queries(params, inputs, noise_of(ctx), ctx)

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        scores = self.scores(params, outputs, inputs["target"])
        return token_loss(scores, inputs["counted"].reshape(-1).astype(jnp.float32))

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The likelihood of each text from left to right, one of the orders in which the model can factorise it.

        It is conditional on the places of special tokens, the end of the text among them. If `share` is small, training
        has few short contexts, and the likelihood of the first tokens is low.
        """
        scored = self.scored(batch)
        rank = jnp.where(scored, jnp.arange(scored.shape[1]), -1)
        inputs = self._inputs(batch, rank, scored, scored.shape[1])
        scores = self.scores(params, self.queries(params, inputs, None), inputs["target"])
        return -jnp.sum(scores.nll.reshape(scored.shape) * inputs["counted"], 1), jnp.sum(scored, 1).astype(jnp.float32)

    def guessed(self, params: Params, extra: Any, batch: Batch, key: jax.Array) -> tuple[Any, jax.Array]:
        """Returns the inputs, and the most probable tokens [B, M] at `chosen_at`."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        hidden = self.encode(params, extra, inputs, still(key, batch))
        return inputs, jnp.argmax(apply(self.model, params["encoder"], hidden, method="logits"), axis=-1)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None:
            return {}
        inputs, guesses = parallel.fetch(jax.jit(self.guessed)(params, extra, batch, show.key))
        known, examples = parallel.fetch(valid(batch)), []
        for row in range(min(TEXTS, len(guesses))):
            ids = inputs["tokens"][row][known[row]][:SHOWN].tolist()
            chosen, counted = inputs["chosen_at"][row], inputs["counted"][row]
            places = {int(at): int(g) for at, g, ok in zip(chosen, guesses[row], counted) if ok and at < len(ids)}
            of = {"hidden": None, "guess": places, "truth": {at: ids[at] for at in places}}
            examples.append([(label, marked(show.decode, ids, places, made)) for label, made in of.items()])
        caption = (
            "Held-out texts with the last tokens of a random order, the model's guesses of each from the tokens before "
            "it in the order, and the true tokens."
        )
        return {"samples": Texts("Last tokens of an order", caption, examples)}

    def flops(self, spec: Any) -> float:
        """Forward FLOPs of both streams; a query costs as much as a token that sees the whole text."""
        queries, ordered = self.predicted(spec.max_len), self.context == "ordered"
        content = self.model.flops(tokens=spec.max_len, causal=ordered, predicted=queries)
        return content + queries / spec.max_len * self.model.flops(tokens=spec.max_len, causal=False, predicted=0)
