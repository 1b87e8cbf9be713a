"""XLNet (Yang et al. 2019): relative positions and segments, and a query stream for permutation language modelling."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.config import Component, NormPosition
from ssljax.layers.dense import parameter
from ssljax.layers.masks import Given, Mask, materialize
from ssljax.layers.noise import Noise, dropout
from ssljax.layers.positions import Layout
from ssljax.layers.terms.registry import PositionBias
from ssljax.models.family import Preset, PublishedCount, dims
from ssljax.models.tokens import TokenConfig, TokenTransformer


@dataclasses.dataclass(frozen=True)
class XLNetConfig(TokenConfig):
    """XLNet (Yang et al. 2019): BERT's blocks with the relative positions of Transformer-XL (Dai et al. 2019).

    Segments are relative too: attention depends on whether two tokens are in the same segment. The memory of earlier
    texts is not implemented.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": dims(128, 2, 2),
        "base": dims(768, 12, 12, vocab_size=32_000, max_len=512),
        "large": dims(1024, 24, 16, vocab_size=32_000, max_len=512),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount({"readout_bias": False})

    preset: str | None = "tiny"
    norm_position: NormPosition = "post"
    norm_eps: float = setting(1e-12, gt=0)
    bias_except: tuple[Component, ...] = ("q", "k", "v", "out")
    positions: Literal["learned", "sinusoidal", "none"] = "none"
    position_bias: PositionBias = "xlnet"
    init: Literal["xavier", "normal", "gpt2"] = "normal"
    pool: Literal["first", "last", "mean"] = "last"
    readout_bias: bool = True

    def standalone(self) -> "XLNet":
        """The encoder without data; `vocab_size` and `max_len` must be set."""
        return XLNet(self.with_preset())


class XLNet(TokenTransformer):
    """The encoder: `__call__` runs the content stream; `streams` runs both streams of the permutation objective."""

    below: ClassVar[tuple[str, ...]] = (*TokenTransformer.below, "query")

    def setup(self) -> None:
        super().setup()
        self.query = parameter(self, "query", nn.initializers.normal(0.02), ("embed",), (self.width,), role="token")

    def streams(
        self,
        tokens: jax.Array,
        targets: jax.Array,
        *,
        content: Mask,
        query: Mask,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        noise: Noise | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the two streams of section 2.3: contents know their token, queries know only their position.

        Contents and queries form one sequence, queries last; no token attends to a query.

        Args:
            tokens: int [B, T].
            targets: int [B, M], indices of the tokens to predict; each gets a query.
            content: mask of the content stream, which allows the token itself.
            query: mask of the query stream, which forbids the token itself.
            positions: int [B, T]; None: 0..T-1.
            token_types: int [B, T], the segments; None: one segment.
            noise: randomness of dropout and stochastic depth; None: neither.

        Returns:
            (hidden states of the contents [B, T, D], hidden states of the queries [B, M, D]). A query that may attend
            to no token gets 0 from attention.
        """
        batch, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length) if positions is None else positions, tokens.shape)
        queries = jnp.broadcast_to(self.query.astype(self.config.dtype), (*targets.shape, self.width))
        if noise is not None:
            queries = dropout(queries, self.config.dropout, noise.at("query"))
        x = jnp.concatenate([self.embedded(tokens, positions, None, noise), queries], axis=1)

        def with_targets(x_BxT: jax.Array) -> jax.Array:
            return jnp.concatenate([x_BxT, jnp.take_along_axis(x_BxT, targets, axis=1)], axis=1)

        masks = [jnp.broadcast_to(materialize(m, length, length), (batch, 1, length, length)) for m in (content, query)]
        query_mask = jnp.take_along_axis(masks[1], targets[:, None, :, None], axis=2)
        out, _ = self.stack(
            x,
            Given(jnp.concatenate([masks[0], query_mask], axis=2)),
            Layout(with_targets(positions), None if token_types is None else with_targets(token_types)),
            noise,
        )
        return out[:, :length], out[:, length:]
