"""Gap sentences: an encoder-decoder writes the sentences that masks replace in its input.

Zhang, Zhao, Saleh, Liu 2020, "PEGASUS: Pre-training with Extracted Gap-sentences for Abstractive Summarization".
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax

from ssljax import views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.data.rows import last_token
from ssljax.objectives.base import Batch
from ssljax.objectives.sequences import SequenceObjective
from ssljax.objectives.tokens import valid


@dataclasses.dataclass(frozen=True)
class GapSentences(SequenceObjective):
    """Mean cross-entropy per token of the gap sentences and of the token that ends them, in nats.

    Texts of one sentence have no gap and no weight.
    """

    heading: ClassVar[str] = "Gap sentences"
    caption: ClassVar[str] = (
        "Held-out texts with lines in place of sentences, the sentences that the model writes, and the true ones."
    )

    rate: float = schema.setting(0.3, gt=0, lt=1, doc="share of sentences that are gap sentences")
    unmasked: float = schema.setting(
        0.0, ge=0, lt=1, doc="share of gap sentences that stay in the input (PEGASUS Large: 0.2, with `rate` 0.45)"
    )
    choice: Literal["rouge", "random", "lead"] = schema.setting(
        "rouge",
        doc="the gap sentences; 'rouge': those with the highest ROUGE-1 F1 to the rest of the text, in tokens; "
        "'random': random ones; 'lead': the first ones",
    )
    target_len: int | None = schema.setting(
        None, ge=1, doc="largest number of target tokens, at which targets are cut; None: `data.seq_len`"
    )

    def check(self) -> None:
        _ = self.mask_id, self.sentence_ends, self.end_id
        if self.target_len is not None and self.target_len > self.spec.max_len:
            raise UserError(
                f"objective.target_len: got {self.target_len}, must be at most the {self.spec.max_len} tokens of a row"
            )

    @property
    def end_id(self) -> int:
        """The id of the token that ends a target."""
        end = last_token(self.spec.special_ids)
        if end is None:
            raise UserError("objective.name: 'gap_sentences' needs an end token, and data.tokenizer has none")
        return end

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        hidden = views.gap_sentences(
            keys,
            batch["tokens"],
            valid(batch),
            ends=self.sentence_ends,
            mask_id=self.mask_id,
            end_id=self.end_id,
            rate=self.rate,
            unmasked=self.unmasked,
            choice=self.choice,
            special_ids=self.special_ids,
            longest=self.target_len,
        )
        return hidden._asdict()

    def lengths(self, spec: Any) -> tuple[int, int]:
        return spec.max_len, self.target_len or spec.max_len
