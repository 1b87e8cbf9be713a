"""Base class of objectives that hide tokens of a text."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax import views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.objectives.base import Batch
from ssljax.objectives.tokens import TokenObjective, check_two_sided, valid


@dataclasses.dataclass(frozen=True)
class MaskedText(TokenObjective):
    """An objective that chooses tokens, words or spans of a text, hides them, and predicts them."""

    rate: float = schema.setting(0.15, gt=0, lt=1, doc="share of tokens that are chosen for prediction")
    mask_share: float = schema.setting(0.8, ge=0, le=1, doc="share of chosen tokens that become the mask token")
    random_share: float = schema.setting(
        0.1, ge=0, le=1, doc="share of chosen tokens that become a random token; the other chosen tokens stay unchanged"
    )
    units: Literal["token", "word"] = schema.setting(
        "token", doc="what is chosen; 'word': all tokens of a word together (whole-word masking of BERT, ERNIE)"
    )
    spans: tuple[float, int] | None = schema.setting(
        None,
        doc="(p, longest): chosen units form spans of geometric lengths up to `longest`, each with one of the three "
        "fates; SpanBERT has (0.2, 10), in words; None: single units",
    )

    def validate(self) -> None:
        if self.spans is not None and not (0 < self.spans[0] < 1 and self.spans[1] >= 1):
            raise ValueError(f"spans: got {self.spans}, must be (p, longest) with 0 < p < 1 and longest at least 1")
        if self.mask_share + self.random_share > 1:
            raise ValueError(f"random_share: mask_share + random_share is {self.mask_share + self.random_share} > 1")

    def check(self) -> None:
        super().check()
        check_two_sided(self.model)
        _ = self.mask_id  # refuses a tokenizer without a mask token
        if self.units == "word" and self.spec.begins_word() is None:
            raise UserError(
                "objective.units: got 'word', but data.tokenizer does not mark the tokens that begin a word (bytes, "
                "bpe, wordpiece and SentencePiece do)"
            )

    @property
    def mask_id(self) -> int:
        if "mask" not in self.spec.special_ids:
            raise UserError("objective.name: masked tokens need a mask token, and data.tokenizer has none")
        return self.spec.special_ids["mask"]

    @property
    def _special_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self.spec.special_ids.values()))

    def scored(self, batch: Batch) -> jax.Array:
        """bool [B, T]: tokens that may be chosen for prediction, all except padding and special tokens."""
        return valid(batch) & ~jnp.isin(batch["tokens"], jnp.array(self._special_ids, batch["tokens"].dtype))

    def budget(self, length: int) -> int:
        """The largest number K of chosen tokens in a row of `length` tokens."""
        return views.mlm_budget(length, self.rate)

    def masked(self, keys: jax.Array, batch: Batch) -> tuple[dict[str, Any], jax.Array]:
        """Returns the inputs of `encode`, and the unit int32 [B, T] of each token (`views.MaskedTokens`).

        Only chosen tokens are read out: `chosen_at` [B, K] lists their positions first, `counted` [B, K] is True for
        them, and `target` [B, K] has their original tokens.
        """
        begins = None
        if self.units == "word":
            begins = jnp.asarray(self.spec.begins_word())[batch["tokens"]]
        tokens, unit = views.mlm_corrupt(
            keys,
            batch["tokens"],
            self.scored(batch),
            vocab_size=self.spec.vocab_size,
            mask_id=self.mask_id,
            rate=self.rate,
            mask_share=self.mask_share,
            random_share=self.random_share,
            special_ids=self._special_ids,
            word_starts=begins,
            spans=self.spans,
            segment_ids=batch.get("segment_ids"),
        )
        context: dict[str, Any] = {k: batch[k] for k in ("segment_ids", "positions", "token_types") if k in batch}
        chosen = unit > 0
        chosen_at = jnp.argsort(~chosen, axis=1, stable=True)[:, : self.budget(tokens.shape[1])]
        target, counted = (jnp.take_along_axis(x, chosen_at, 1) for x in (batch["tokens"], chosen))
        return {"tokens": tokens, "chosen_at": chosen_at, "target": target, "counted": counted, **context}, unit


def restored(inputs: dict[str, Any]) -> jax.Array:
    """Returns the tokens [B, T] before corruption, from the result of `MaskedText.masked`."""
    return jax.vmap(lambda row, at, to: row.at[at].set(to))(inputs["tokens"], inputs["chosen_at"], inputs["target"])
