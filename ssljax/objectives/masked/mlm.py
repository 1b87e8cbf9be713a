"""Masked language modelling: masked tokens are predicted from both sides.

Devlin, Chang, Lee, Toutanova 2019, "BERT", section 3.1; new masks at every epoch, as in RoBERTa.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from ssljax import losses, parallel, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Texts
from ssljax.data.rows import first_token, last_token, pad_token
from ssljax.layers.embeddings import take_tokens
from ssljax.layers.heads import BoundaryHead
from ssljax.layers.width import output_ratio
from ssljax.models.flops import dense_flops
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of, still, views_of
from ssljax.objectives.masked.text import MaskedText, restored
from ssljax.objectives.pictures import SHOWN, TEXTS, Showing, marked
from ssljax.objectives.tokens import token_loss, token_scores, valid


@dataclasses.dataclass(frozen=True)
class MLM(MaskedText):
    """Mean cross-entropy per chosen token, in nats, and on request the losses of span boundaries and sentence pairs."""

    fills_masks: ClassVar[bool] = True

    boundary: bool = schema.setting(
        False, doc="also predict the tokens of a span from the two tokens around it (SpanBERT); needs `spans`"
    )
    masks: int | None = schema.setting(
        None,
        ge=1,
        doc="number of different masks of a text, of which each visit draws one (static masks; BERT's data had 10), "
        "the same in runs of all seeds; None: a new mask at each visit (RoBERTa)",
    )
    pairs: Literal["order", "next"] | None = schema.setting(
        None,
        doc="also classify pairs of segments; 'order': two in a row or swapped (ALBERT); 'next': two in a row or of "
        "two texts (BERT); None: rows as they are",
    )

    def validate(self) -> None:
        super().validate()
        if self.boundary and self.spans is None:
            raise ValueError("boundary: got True, but there are no spans; set spans, for example to (0.2, 10)")

    def check(self) -> None:
        super().check()
        if self.pairs is None:
            return
        if self.masks is not None and self.pairs == "next":
            raise UserError(
                "objective.masks: 'next' pairs a text with another one at each visit, so masks cannot stay the same; "
                "remove objective.masks or set objective.pairs to 'order'"
            )
        name = f"objective.pairs: {self.pairs!r}"
        if "pair" not in self.model.config.extras:
            raise UserError(f"{name} needs a head for pairs; add 'pair' to model.extras")
        if self.model.config.token_types < 2:
            raise UserError(f"{name} needs token types; set model.token_types to 2")
        ids = self.spec.special_ids
        least = 2 + (first_token(ids) is not None) + 2 * (last_token(ids) is not None)
        if self.spec.max_len < least:
            raise UserError(f"data.seq_len: got {self.spec.max_len}, but pairs need {least} tokens at least")

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        params, extra = super().init(key, batch)
        if self.boundary:
            vectors, place = jnp.zeros((1, 1, self.model.width)), jnp.zeros((1, 1), jnp.int32)
            head = self._boundary_head.init(jax.random.fold_in(key, 1), vectors, vectors, place)["params"]
            params = {**params, "boundary": head}
        return Variables(params, extra)

    @property
    def _boundary_head(self) -> BoundaryHead:
        places = self.budget(self.spec.max_len)  # no span is longer
        return BoundaryHead(places, self.model.readout_width, output_ratio(self.model))

    def mixed(self, keys: jax.Array, batch: Batch, step: jax.Array) -> Batch:
        """Returns the batch, for 'next' with the text of the row before each row; batches are in random order."""
        if self.pairs != "next" or len(batch["tokens"]) < 2:
            return batch
        return {**batch, "other": jnp.roll(self._first_text(batch), 1, axis=0)}

    def _first_text(self, batch: Batch) -> jax.Array:
        """Returns the ordinary tokens [B, T] of the first text of each row, -1 elsewhere."""
        tokens, ids = batch["tokens"], self.spec.special_ids
        ends = jnp.array([number for name, number in ids.items() if name not in ("unk", "mask")], tokens.dtype)
        inside = valid(batch) & ~jnp.isin(tokens, ends)
        # A window has several texts in a row, which special tokens separate.
        later = jnp.cumsum(inside & ~jnp.pad(inside, ((0, 0), (1, 0)))[:, :-1], axis=1) > 1
        first = batch["segment_ids"] == 1 if "segment_ids" in batch else ~later
        return jnp.where(inside & first, tokens, -1)

    @property
    def reads_other_rows(self) -> bool:
        return self.pairs == "next"

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, Any]:
        pair: dict[str, Any] = {}
        if self.masks is not None:  # of the whole text, so that each of its masks has a pair of its own
            keys = views.text_keys(batch["tokens"], views.fold_in(keys, 4), self.masks)
        if self.pairs is not None:
            batch, pair = self._paired(views.fold_in(keys, 3), batch)
        inputs, unit = self.masked(keys, batch)
        if self.boundary:
            found = views.span_boundary(unit, batch.get("segment_ids"))
            at = {name: jnp.take_along_axis(x, inputs["chosen_at"], 1) for name, x in found._asdict().items()}
            inputs["boundary"] = at
        return inputs | pair

    def _paired(self, keys: jax.Array, batch: Batch) -> tuple[Batch, dict[str, jax.Array]]:
        """Returns a batch of pairs of segments, and which are apart, and whole, bool [B] each."""
        ids, text = self.spec.special_ids, self._first_text(batch)
        other = batch.get("other", text) if self.pairs == "next" else None
        special: dict[str, Any] = {"first_id": first_token(ids), "separator_id": last_token(ids)}
        found = views.sentence_pairs(keys, text, other, **special, pad_id=pad_token(ids))._asdict()
        # A text alone, or beside a copy of itself, is followed by its own end.
        another = True if other is None else jnp.any(other != text, axis=1)
        apart = found["apart"] & another
        made = {name: found[name] for name in ("tokens", "token_types", "segment_ids")}
        return made, {"apart": apart, "whole": found["whole"]}

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        encoded = self.hidden(params, inputs, noise_of(ctx), ctx)
        out = {"chosen": take_tokens(encoded.tokens, inputs["chosen_at"])}  # [B, K, D]
        if self.boundary:
            left, right, place = (inputs["boundary"][name] for name in ("left", "right", "place"))
            around = (take_tokens(encoded.tokens, at) for at in (left, right))
            out["boundary"] = apply(self._boundary_head, params["boundary"], *around, place)  # [B, K, readout width]
        if self.pairs is not None:
            out["pair"] = apply(self.model, params["encoder"], encoded.pooled, method="pair_logits")  # [B, 2]
        return out

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        weights = inputs["counted"].reshape(-1).astype(jnp.float32)
        terms, metrics, *_ = token_loss(self.scores(params, outputs["chosen"], inputs["target"]), weights)
        if self.boundary:
            readout = apply(self.model, params["encoder"], outputs["boundary"], method="projection")
            inside = inputs["boundary"]["inside"].reshape(-1) * weights
            scores = token_scores(readout, inputs["target"])
            found = token_loss(scores, inside)
            terms, metrics = terms | {"boundary": found.terms["nll"]}, metrics | _named(found.metrics, "boundary")
        if self.pairs is not None:
            labels, whole = inputs["apart"].astype(jnp.int32), inputs["whole"].astype(jnp.float32)
            values, _ = losses.cross_entropy(outputs["pair"], labels, reduce=False)
            right, count = jnp.sum(whole * (jnp.argmax(outputs["pair"], -1) == labels)), jnp.sum(whole)
            terms = terms | {"pair": (1.0, jnp.sum(whole * values), count)}
            metrics = metrics | {"accuracy/pair": (right, count)}
        return Loss(terms, metrics)

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

    def guessed(self, params: Params, extra: Any, batch: Batch, key: jax.Array) -> tuple[Any, ...]:
        """Returns the inputs, the tokens [B, T] before corruption, and the most probable ones [B, K] at `chosen_at`."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        hidden_BxKxD = self.encode(params, extra, inputs, still(key, batch))["chosen"]
        logits = apply(self.model, params["encoder"], hidden_BxKxD, method="logits")
        return inputs, restored(inputs), jnp.argmax(logits, axis=-1)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None:
            return {}
        inputs, tokens, guesses = parallel.fetch(jax.jit(self.guessed)(params, extra, batch, show.key))
        known, examples = parallel.fetch(valid(inputs)), []
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
        predicted = self.budget(spec.max_len)
        forward = self.model.flops(tokens=spec.max_len, causal=False, predicted=predicted)
        if self.pairs is not None:
            pooler = dense_flops(1, self.model.width, self.model.width) if "pooler" in self.model.config.extras else 0.0
            forward += pooler + dense_flops(1, self.model.width, 2)
        if self.boundary:
            readout = dense_flops(predicted, self.model.readout_width, self.model.table_rows)
            forward += predicted * self._boundary_head.flops(self.model.width) + readout
        return forward


def _named(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns metrics with the name of a part after theirs."""
    return {f"{key}/{name}": value for key, value in metrics.items()}
