"""Prefix language modelling: a text is continued from a prefix whose tokens attend to each other.

In an encoder-decoder the encoder reads the prefix, and the decoder writes the rest.

Liu et al. 2018, "Generating Wikipedia by Summarizing Long Sequences"; Raffel et al. 2020, "T5", section 3.2.1.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import views
from ssljax.base.schema import setting
from ssljax.layers.masks import Causal, Full, Mask, Prefix
from ssljax.objectives.autoregressive.causal_lm import CausalLM, at_the_end
from ssljax.objectives.base import Batch, Ctx, Loss, Objective, Params, still
from ssljax.objectives.sequences import SequenceObjective
from ssljax.objectives.tokens import prefix_flops, valid


@dataclasses.dataclass(frozen=True)
class PrefixLM(CausalLM):
    """Mean negative log-likelihood per token after the prefix, in nats.

    A row has one prefix. In a row of several texts, the split lies in one of them: the texts before it are only read,
    and those after it are predicted from their first tokens on. An encoder-decoder reads the row as one text.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens", "sequences")

    share: float | None = setting(
        None,
        gt=0,
        lt=1,
        doc="share of the tokens of a row in the prefix; None: all splits are equally likely, and likelihoods are "
        "those of the second half",
    )
    bidirectional: bool = setting(
        True, doc="the tokens of the prefix attend to each other; False: causal attention, as a control"
    )

    def reading(self, inputs: str) -> Objective:
        if inputs == "tokens":
            return self
        return Continuation(share=self.share, last=self.last, bidirectional=self.bidirectional).reading(inputs)

    @property
    def prefixed(self) -> bool:
        return self.bidirectional

    def mask(self, inputs: Any) -> Mask:
        """Returns the mask; a text without a split (`features`) is a prefix as a whole."""
        if not self.bidirectional:
            return Causal()
        return Prefix(inputs["prefix"]) if "prefix" in inputs else Full()

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        prefix = views.prefix_lengths(keys, jnp.sum(valid(batch), axis=1), self.share)
        return {**super().views(keys, batch, step), "prefix": prefix}

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return super().score(params, extra, {**batch, "prefix": self._fixed(batch)})

    def scored(self, batch: Batch) -> jax.Array:
        """bool [B, T]: the tokens after the prefix, except padding and the first of each segment."""
        prefix = batch["prefix"] if "prefix" in batch else self._fixed(batch)
        return super().scored(batch) & (jnp.arange(batch["tokens"].shape[1]) >= prefix[:, None])

    def fitted(self, batch: Batch) -> jax.Array:
        """bool [B, T]: all tokens that a causal model predicts; in training each may be after the split."""
        return super().scored(batch)

    def _fixed(self, batch: Batch) -> jax.Array:
        return fixed_prefix(batch, self.share)

    def flops(self, spec: Any) -> float:
        both = (1 / 3 if self.share is None else self.share**2) if self.bidirectional else 0.0  # mean square of shares
        return prefix_flops(self.model, spec.max_len, spec.max_len - 1, both)


@dataclasses.dataclass(frozen=True)
class Continuation(SequenceObjective):
    """Prefix language modelling of an encoder-decoder; see `PrefixLM`."""

    marked: ClassVar[bool] = False
    heading: ClassVar[str] = "Samples"
    caption: ClassVar[str] = "Held-out texts that the encoder reads up to a split, what the model writes, and the rest."

    share: float | None = None
    last: tuple[int, ...] = ()

    def lengths(self, spec: Any) -> tuple[int, int]:
        return views.prefix_sizes(spec.max_len, self.share)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        return self._split(batch, views.prefix_lengths(keys, jnp.sum(valid(batch), axis=1), self.share))

    def _split(self, batch: Batch, prefix: jax.Array) -> dict[str, jax.Array]:
        lengths = jnp.sum(valid(batch), axis=1)
        return views.split_texts(batch["tokens"], lengths, prefix, self.lengths(self.spec))._asdict()

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        scores, loss = self.scores(params, outputs, inputs)
        correct = scores.correct.reshape(inputs["counted"].shape)
        exact = {f"exact_{n}": at_the_end(correct, inputs["counted"], n) for n in self.last}
        return loss._replace(metrics={**loss.metrics, **exact})

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        inputs = self._split(batch, fixed_prefix(batch, self.share))
        outputs = self.encode(params, extra, inputs, still(jax.random.key(0), batch))
        nll = self.scores(params, outputs, inputs)[0].nll.reshape(inputs["counted"].shape)
        return -jnp.sum(nll * inputs["counted"], 1), jnp.sum(inputs["counted"], 1)

    def scored(self, batch: Batch) -> jax.Array:
        """bool [B, T]: the tokens after the prefix, except padding."""
        return self.fitted(batch) & (jnp.arange(batch["tokens"].shape[1]) >= fixed_prefix(batch, self.share)[:, None])

    def fitted(self, batch: Batch) -> jax.Array:
        """bool [B, T]: all tokens but the first and padding; in training each may be after the split."""
        return valid(batch) & (jnp.arange(batch["tokens"].shape[1]) > 0)


def fixed_prefix(batch: Batch, share: float | None) -> jax.Array:
    """The prefix of each row without chance, int32 [B]; `share` as in `PrefixLM`."""
    lengths = jnp.sum(valid(batch), axis=1)
    return views.prefix_lengths(jnp.zeros((len(lengths), 1)), lengths, share or 0.5)
