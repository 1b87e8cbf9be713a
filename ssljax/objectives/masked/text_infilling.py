"""Text infilling and the other corruptions of BART: an encoder-decoder restores the whole text.

Lewis et al. 2020, "BART: Denoising Sequence-to-Sequence Pre-training", section 2.2.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax

from ssljax import views
from ssljax.base import schema
from ssljax.objectives.base import Batch
from ssljax.objectives.sequences import SequenceObjective
from ssljax.objectives.tokens import valid

Corruption = Literal["permutation", "rotation", "deletion", "masking", "infilling"]
ORDER = ("permutation", "rotation", "deletion", "masking", "infilling")


@dataclasses.dataclass(frozen=True)
class TextInfilling(SequenceObjective):
    """Mean cross-entropy per token of the original text, in nats.

    The corruptions are applied in the order of ORDER. Special tokens stay, at their places.
    """

    marked: ClassVar[bool] = False
    heading: ClassVar[str] = "Corrupted texts"
    caption: ClassVar[str] = "Held-out texts as the encoder reads them, the texts that the model writes, the originals."

    corruptions: tuple[Corruption, ...] = schema.setting(
        ("infilling", "permutation"),
        doc="'infilling': a mask token replaces each of some spans, of which some are empty; 'permutation': sentences "
        "in random order; 'masking': a mask token replaces each of some tokens; 'deletion': tokens are left out; "
        "'rotation': the text begins at a random token",
    )
    rate: float = schema.setting(0.3, gt=0, lt=1, doc="share of tokens that infilling, masking or deletion hides")
    mean_span: float = schema.setting(
        3.0, gt=0, doc="mean of the Poisson distribution of the lengths of infilled spans"
    )

    def validate(self) -> None:
        if not self.corruptions or len(set(self.corruptions)) < len(self.corruptions):
            raise ValueError(f"corruptions: got {self.corruptions}, must be one or several different names")

    def check(self) -> None:
        if not {"infilling", "masking"}.isdisjoint(self.corruptions):
            _ = self.mask_id
        if "permutation" in self.corruptions:
            _ = self.sentence_ends

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        tokens, counted = batch["tokens"], valid(batch)
        kept, options = counted, {"special_ids": self.special_ids}
        own = {name: views.fold_in(keys, i) for i, name in enumerate(ORDER) if name in self.corruptions}
        if "permutation" in own:
            tokens = views.permute_sentences(own["permutation"], tokens, kept, ends=self.sentence_ends, **options)
        if "rotation" in own:
            tokens = views.rotate_text(own["rotation"], tokens, kept, **options)
        if "deletion" in own:
            tokens, kept = views.delete_tokens(own["deletion"], tokens, kept, rate=self.rate, **options)
        if "masking" in own:
            fates: dict[str, Any] = {"mask_share": 1.0, "random_share": 0.0, "vocab_size": self.spec.vocab_size}
            fates |= {"mask_id": self.mask_id, "rate": self.rate, **options}
            tokens, _ = views.mlm_corrupt(own["masking"], tokens, kept, **fates)
        if "infilling" in own:
            spans: dict[str, Any] = {"mask_id": self.mask_id, "rate": self.rate, "mean_span": self.mean_span, **options}
            tokens, kept = views.infill_spans(own["infilling"], tokens, kept, **spans)
        return {"tokens": tokens, "valid": kept, "target": batch["tokens"], "counted": counted}

    def lengths(self, spec: Any) -> tuple[int, int]:
        filled = "infilling" in self.corruptions
        longest = views.infilled_length(spec.max_len, self.rate, self.mean_span) if filled else spec.max_len
        return longest, spec.max_len
