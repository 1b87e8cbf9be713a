"""Masked language modelling: masked tokens are predicted from both sides.

Devlin, Chang, Lee, Toutanova 2019, "BERT", section 3.1; new masks at every epoch, as in RoBERTa.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import parallel, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Texts
from ssljax.objectives.base import Batch, Ctx, Loss, Params, apply, noise_of, still, views_of
from ssljax.objectives.pictures import SHOWN, TEXTS, Showing, marked
from ssljax.objectives.tokens import TokenObjective, token_loss, valid


@dataclasses.dataclass(frozen=True)
class MLM(TokenObjective):
    """Mean cross-entropy per chosen token, in nats."""

    rate: float = schema.setting(0.15, gt=0, lt=1, doc="share of tokens that are chosen for prediction")
    mask_share: float = schema.setting(0.8, ge=0, le=1, doc="share of chosen tokens that become the mask token")
    random_share: float = schema.setting(
        0.1, ge=0, le=1, doc="share of chosen tokens that become a random token; the other chosen tokens stay unchanged"
    )

    spans: tuple[float, int] | None = schema.setting(
        None,
        doc="(p, longest): chosen tokens form spans of geometric lengths up to `longest`, each with one of the three "
        "fates; SpanBERT has (0.2, 10), in words; None: single tokens",
    )

    def validate(self) -> None:
        if self.spans is not None and not (0 < self.spans[0] < 1 and self.spans[1] >= 1):
            raise ValueError(f"spans: got {self.spans}, must be (p, longest) with 0 < p < 1 and longest at least 1")
        if self.mask_share + self.random_share > 1:
            raise ValueError(f"random_share: mask_share + random_share is {self.mask_share + self.random_share} > 1")

    @property
    def mask_id(self) -> int:
        if "mask" not in self.spec.special_ids:
            raise UserError("objective.name: 'mlm' needs a mask token, and data.tokenizer has none")
        return self.spec.special_ids["mask"]

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, Any]:
        tokens, chosen = views.mlm_corrupt(
            keys,
            batch["tokens"],
            self.scored(batch),
            vocab_size=self.spec.vocab_size,
            mask_id=self.mask_id,
            rate=self.rate,
            mask_share=self.mask_share,
            random_share=self.random_share,
            special_ids=self._special_ids,
            spans=self.spans,
            segment_ids=batch.get("segment_ids"),
        )
        context: dict[str, Any] = {k: batch[k] for k in ("segment_ids", "positions") if k in batch}
        # Only chosen tokens are read out: chosen_at [B, K] lists them first, K is the largest possible number of them.
        budget = views.mlm_budget(tokens.shape[1], self.rate)
        chosen_at = jnp.argsort(~chosen, axis=1, stable=True)[:, :budget]
        target, counted = (jnp.take_along_axis(x, chosen_at, 1) for x in (batch["tokens"], chosen))
        return {"tokens": tokens, "chosen_at": chosen_at, "target": target, "counted": counted, **context}

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        hidden_BxTxD = self.hidden(params, inputs, noise_of(ctx), ctx).tokens
        return jnp.take_along_axis(hidden_BxTxD, inputs["chosen_at"][..., None], axis=1)  # [B, K, D]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        scores = self.scores(params, outputs, inputs["target"])
        weights = inputs["counted"].reshape(-1).astype(jnp.float32)
        return token_loss(scores, weights)

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Pseudo-log-likelihood (Salazar et al. 2020, eq. 1): sum of the log-probabilities of the tokens.

        Each token is predicted from all others, with only this token masked. The sum is not a likelihood of the
        sequence and cannot be compared with the likelihood of a causal model.
        """
        length = batch["tokens"].shape[1]
        counted = self.scored(batch)

        def log_probability(position: jax.Array) -> jax.Array:
            masked = jnp.where(jnp.arange(length) == position, self.mask_id, batch["tokens"])
            hidden = self.hidden(params, {**batch, "tokens": masked}, None)
            scores = self.scores(params, hidden.tokens[:, position], batch["tokens"][:, position])
            return -scores.nll * counted[:, position]

        return jnp.sum(jax.lax.map(log_probability, jnp.arange(length)), 0), jnp.sum(counted, 1).astype(jnp.float32)

    def guessed(self, params: Params, extra: Any, batch: Batch, key: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        """Returns the inputs, and the most probable tokens [B, K] at their positions `chosen_at`."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        hidden_BxKxD = self.encode(params, extra, inputs, still(key, batch))
        logits = apply(self.model, params["encoder"], hidden_BxKxD, method="logits")
        return inputs, jnp.argmax(logits, axis=-1)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None:
            return {}
        inputs, guesses = parallel.fetch(jax.jit(self.guessed)(params, extra, batch, show.key))
        tokens, known, examples = parallel.fetch(batch["tokens"]), parallel.fetch(valid(batch)), []
        for row in range(min(TEXTS, len(guesses))):
            ids = tokens[row][known[row]][:SHOWN].tolist()
            chosen, counted = inputs["chosen_at"][row], inputs["counted"][row]
            places = {int(at): int(g) for at, g, ok in zip(chosen, guesses[row], counted) if ok and at < len(ids)}
            truth = {at: ids[at] for at in places}
            of = {"masked": None, "guess": places, "truth": truth}
            examples.append([(label, marked(show.decode, ids, places, made)) for label, made in of.items()])
        caption = "Held-out texts with the tokens to be predicted, the model's guesses, and the true tokens."
        return {"samples": Texts("Masked words", caption, examples)}

    def flops(self, spec: Any) -> float:
        return self.model.flops(tokens=spec.max_len, causal=False, predicted=views.mlm_budget(spec.max_len, self.rate))

    @property
    def _special_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self.spec.special_ids.values()))

    def scored(self, batch: Batch) -> jax.Array:
        """bool [B, T]: tokens that may be chosen for prediction, all except padding and special tokens."""
        return valid(batch) & ~jnp.isin(batch["tokens"], jnp.array(self._special_ids, batch["tokens"].dtype))
