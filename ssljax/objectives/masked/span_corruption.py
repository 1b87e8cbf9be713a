"""Span corruption: sentinels replace spans of tokens in the input, and the model writes the spans.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", section 3.3.4.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.objectives.base import Batch
from ssljax.objectives.sequences import SequenceObjective
from ssljax.objectives.tokens import valid


@dataclasses.dataclass(frozen=True)
class SpanCorruption(SequenceObjective):
    """Mean cross-entropy per target token, in nats.

    The sentinels are the last ids of the model's vocabulary, so `model.vocab_size` must be at least the data's
    vocabulary size plus the number of sentinels. A row of packed texts is corrupted as a single text.
    """

    heading: ClassVar[str] = "Hidden spans"
    caption: ClassVar[str] = (
        "Held-out texts with numbers in place of spans, the spans that the model writes, and the true ones."
    )

    rate: float = schema.setting(0.15, gt=0, lt=1, doc="share of tokens that sentinels replace")
    mean_span: float = schema.setting(3.0, ge=1, doc="mean length of a replaced span, in tokens")

    def check(self) -> None:
        check_room(self, int(views.span_counts(self.spec.max_len, self.rate, self.mean_span)[1]) + 1)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        corrupted = views.span_corrupt(
            keys,
            batch["tokens"],
            jnp.sum(valid(batch), axis=1),
            sentinel=self.first_sentinel,
            rate=self.rate,
            mean_span=self.mean_span,
        )
        return corrupted._asdict()

    def lengths(self, spec: Any) -> tuple[int, int]:
        return views.denoising_lengths(spec.max_len, self.rate, self.mean_span)


def check_room(objective: SequenceObjective, signs: int, kind: str = "sentinels") -> None:
    """Checks that the vocabulary of the model has ids for signs above those of the data.

    Raises:
        UserError: it has not.
    """
    least, vocab_size = objective.spec.vocab_size + signs, objective.model.config.vocab_size
    if vocab_size < least:
        raise UserError(
            f"model.vocab_size: {vocab_size} leaves no room for {signs} {kind} above the "
            f"{objective.spec.vocab_size} ids of the data (at least {least} is required)"
        )
