"""XLNet (Yang et al. 2019): relative positions and segments, and a second stream of queries for permuted orders."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.config import NormPosition, Part
from ssljax.layers.dense import parameter
from ssljax.layers.masks import Given, Mask, materialize
from ssljax.layers.noise import Noise, dropout
from ssljax.models.family import Preset, Published, dims
from ssljax.models.tokens import TokenConfig, TokenTransformer


@dataclasses.dataclass(frozen=True)
class XLNetConfig(TokenConfig):
    """XLNet: BERT's blocks with the relative positions of Transformer-XL (Dai et al. 2019) in the place of absolute
    ones, and with segments that only tell whether two tokens share one. Without its memory of earlier texts."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": dims(128, 2, 2),
        "base": dims(768, 12, 12, vocab_size=32_000, max_len=512),
        "large": dims(1024, 24, 16, vocab_size=32_000, max_len=512),
    }
    published: ClassVar[Published] = Published({"readout_bias": False})

    preset: str | None = "tiny"
    norm_position: NormPosition = "post"
    norm_eps: float = setting(1e-12, gt=0)
    bias_except: tuple[Part, ...] = ("q", "k", "v", "out")
    positions: Literal["learned", "sinusoidal", "none"] = "none"
    position_bias: Literal["none", "alibi", "relative", "xlnet"] = "xlnet"
    init: Literal["xavier", "normal", "gpt2"] = "normal"
    pool: Literal["first", "last", "mean"] = "last"
    readout_bias: bool = True

    def standalone(self) -> "XLNet":
        """The encoder by itself; `vocab_size` and `max_len` must be set."""
        return XLNet(self.with_preset())


class XLNet(TokenTransformer):
    """The encoder, whose call is the content stream alone, and both streams for the permutation objective."""

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
        """Contents, which know their own token, and queries, which know its place only (section 2.3, figure 1).

        Queries stand behind the contents in one sequence and are attended to by nobody.

        Args:
            tokens: int [B, T].
            targets: int [B, M], the places whose queries are wanted.
            content: which token each content may see, itself among them.
            query: the same for queries, without themselves.
            positions: int [B, T]; 0..T-1 if None.
            token_types: int [B, T] of segments; all the same if None.
            noise: for dropout and stochastic depth; None = neither.

        Returns:
            states [B, T, D] of the contents and [B, M, D] of the queries. A query that may see nothing attends to
            nothing.
        """
        batch, length = tokens.shape
        where = jnp.broadcast_to(jnp.arange(length) if positions is None else positions, tokens.shape)
        queries = jnp.broadcast_to(self.query.astype(self.config.dtype), (*targets.shape, self.width))
        if noise is not None:
            queries = dropout(queries, self.config.dropout, noise.at("query"))
        x = jnp.concatenate([self.embedded(tokens, where, None, noise), queries], axis=1)

        def at_targets(of_tokens: jax.Array) -> jax.Array:
            return jnp.concatenate([of_tokens, jnp.take_along_axis(of_tokens, targets, axis=1)], axis=1)

        masks = [jnp.broadcast_to(materialize(m, length, length), (batch, 1, length, length)) for m in (content, query)]
        seen = jnp.take_along_axis(masks[1], targets[:, None, :, None], axis=2)
        out, _ = self.stack(
            x,
            Given(jnp.concatenate([masks[0], seen], axis=2)),
            at_targets(where),
            noise,
            segments=None if token_types is None else at_targets(token_types),
            keys=length,
        )
        return out[:, :length], out[:, length:]
