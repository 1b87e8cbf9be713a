"""Prefix language modelling: a text is continued from a prefix whose tokens attend to each other.

Liu et al. 2018, "Generating Wikipedia by Summarizing Long Sequences"; Raffel et al. 2020, "T5", section 3.2.1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import views
from ssljax.base.schema import setting
from ssljax.layers.masks import Causal, Full, Mask, Prefix
from ssljax.objectives.autoregressive.causal_lm import CausalLM
from ssljax.objectives.base import Batch, Params
from ssljax.objectives.tokens import prefix_flops, valid


@dataclasses.dataclass(frozen=True)
class PrefixLM(CausalLM):
    """Mean negative log-likelihood per token after the prefix, in nats.

    A row has one prefix. In a row of several texts, the split lies in one of them: the texts before it are only read,
    and those after it are predicted from their first tokens on.
    """

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
        """The prefix of each row, int32 [B], without chance."""
        lengths = jnp.sum(valid(batch), axis=1)
        return views.prefix_lengths(jnp.zeros((len(lengths), 1)), lengths, self.share or 0.5)

    def flops(self, spec: Any) -> float:
        both = (1 / 3 if self.share is None else self.share**2) if self.bidirectional else 0.0  # mean square of shares
        return prefix_flops(self.model, spec.max_len, spec.max_len - 1, both)
