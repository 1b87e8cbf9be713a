"""Masked diffusion: a language model that restores masked tokens at all rates, with a bound on its likelihood.

Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models"; Ou et al. 2025, "Your Absorbing Discrete
Diffusion Secretly Models the Conditional Distributions of Clean Data", for the form with numbers of masked tokens.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Texts
from ssljax.objectives.base import Batch, Ctx, Loss, Params, apply, noise_of, still, views_of
from ssljax.objectives.pictures import SHOWN, TEXTS, Showing, marked
from ssljax.objectives.tokens import TokenObjective, check_two_sided, token_loss, valid
from ssljax.views import example_keys
from ssljax.views.keys import uniforms


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion(TokenObjective):
    """The variational bound on the negative log-likelihood, in nats per token.

    Of the n tokens of a text, k are masked, k uniform in 1 to n and all subsets equally likely. The mean of n / k times
    the cross-entropy of the masked tokens is the bound of masked diffusion with continuous time; it is also the mean,
    over all orders of the tokens, of their autoregressive likelihood. It is a bound on a likelihood, so it may stand
    beside the perplexity of causal models, and is too large rather than too small.
    """

    fills_masks: ClassVar[bool] = True

    samples: int = schema.setting(
        32, ge=1, doc="masks of each text from which evaluations estimate the bound; their numbers are spread evenly"
    )

    def check(self) -> None:
        super().check()
        check_two_sided(self.model)
        if "mask" not in self.spec.special_ids:
            raise UserError("data.tokenizer: masked diffusion needs a mask token, and the tokenizer has none")

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        return int(self.spec.special_ids["mask"])

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, Any]:
        share = uniforms(views.fold_in(keys, 1), 1)[:, 0]
        chosen, weight = views.diffusion_mask(keys, self.scored(batch), share)
        tokens = batch["tokens"]
        more: dict[str, Any] = {name: batch[name] for name in ("segment_ids", "positions") if name in batch}
        return {
            "tokens": jnp.where(chosen, self.mask_id, tokens),
            "target": tokens,
            "weight": chosen * weight[:, None],
            "count": jnp.sum(self.scored(batch), 1),
            **more,
        }

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        return self.hidden(params, inputs, noise_of(ctx), ctx).tokens  # [B, T, D]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        scores = self.scores(params, outputs, inputs["target"])
        weights = inputs["weight"].reshape(-1).astype(jnp.float32)
        count = jnp.sum(inputs["count"]).astype(jnp.float32)
        metrics = token_loss(scores, (weights > 0).astype(jnp.float32)).metrics
        return Loss({"bound": (1.0, jnp.sum(scores.nll * weights), count)}, metrics)

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The negative bound of each text, estimated from `samples` masks that depend on its tokens alone."""
        counted, tokens = self.scored(batch), batch["tokens"]
        # The key of a text does not depend on its batch: a weighted sum of its tokens.
        factors = np.random.RandomState(0).randint(1, 2**31, tokens.shape[1]).astype(np.uint32)
        content = jnp.sum(tokens.astype(jnp.uint32) * factors, 1)
        keys = example_keys(jax.random.key(0), content)
        start = uniforms(views.fold_in(keys, 1), 1)[:, 0]

        def bound(sample: jax.Array) -> jax.Array:
            share = (sample + start) / self.samples
            chosen, weight = views.diffusion_mask(views.fold_in(keys, 2 + sample), counted, share)
            hidden = self.hidden(params, {**batch, "tokens": jnp.where(chosen, self.mask_id, tokens)}, None)
            nll = self.scores(params, hidden.tokens, tokens).nll.reshape(tokens.shape)
            return jnp.sum(nll * chosen, 1) * weight

        found = jax.lax.map(bound, jnp.arange(self.samples))
        return -jnp.mean(found, 0), jnp.sum(counted, 1).astype(jnp.float32)

    def scored(self, batch: Batch) -> jax.Array:
        """bool [B, T]: all tokens except padding and special tokens."""
        special = jnp.array(sorted(self.spec.special_ids.values()), batch["tokens"].dtype)
        return valid(batch) & ~jnp.isin(batch["tokens"], special)

    def guessed(self, params: Params, extra: Any, batch: Batch, key: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        """Returns the inputs, and the most probable tokens [B, T]."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        hidden = self.encode(params, extra, inputs, still(key, batch))
        return inputs, jnp.argmax(apply(self.model, params["encoder"], hidden, method="logits"), -1)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None:
            return {}
        few = {name: batch[name][:TEXTS] for name in ("tokens", "segment_ids", "positions") if name in batch}
        inputs, guesses = parallel.fetch(jax.jit(self.guessed)(params, extra, few, show.key))
        known, examples = parallel.fetch(valid(few)), []
        for row in range(len(guesses)):
            ids = inputs["target"][row][known[row]][:SHOWN].tolist()
            hidden = [at for at in range(len(ids)) if inputs["weight"][row][at] > 0]
            of = {"masked": None, "guess": {at: int(guesses[row][at]) for at in hidden}, "truth": dict(enumerate(ids))}
            examples.append([(label, marked(show.decode, ids, hidden, made)) for label, made in of.items()])
        caption = "Held-out texts with masked tokens, the model's guesses, and the true tokens."
        return {"samples": Texts("Masked words", caption, examples)}

    def flops(self, spec: Any) -> float:
        return self.model.flops(tokens=spec.max_len, causal=False, predicted=spec.max_len)
