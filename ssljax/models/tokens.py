"""A transformer over token sequences; `bert`, `gpt` and the text tower of `clip` are settings of it.

It does not decide who attends to whom: the objective passes the mask.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.layers.block import Stack
from ssljax.layers.dense import Dense, Norm, parameter
from ssljax.layers.embeddings import Table
from ssljax.layers.masks import Mask, Segments
from ssljax.layers.noise import Noise, dropout
from ssljax.layers.positions import sinusoidal
from ssljax.models.family import Encoded, TransformerConfig, element_shape
from ssljax.models.flops import dense_flops, stack_flops

_NO_PROBABILITY = -1e9  # bias of the logits of padded vocabulary entries


@dataclasses.dataclass(frozen=True)
class TokenConfig(TransformerConfig):
    """A transformer over tokens.

    vocab_size, max_len: those of the data if None; smaller ones are refused.
    vocab_multiple: the table is padded up to a multiple of it; ids beyond the vocabulary have probability 0.
    positions: a learned table, fixed sinusoids, or none (with `rope_theta`, say).
    embedding_norm: a norm after the sum of embeddings (BERT).
    token_types: how many sentence types have an embedding (BERT: 2); 0 = none.
    pool: the vector of the whole: the first token, the last that is not padding, or the mean of those.
    tied: the read-out is the transposed token table.
    readout_transform: dense, GELU and norm before the read-out, and a bias after it (BERT).
    """

    inputs: ClassVar[str] = "tokens"

    vocab_size: int | None = setting(None, ge=1)
    vocab_multiple: int = setting(1, ge=1)
    max_len: int | None = setting(None, ge=1)
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    embedding_norm: bool = False
    token_types: int = setting(0, ge=0)
    pool: Literal["first", "last", "mean"] = "mean"
    tied: bool = True
    readout_transform: bool = False

    def validate(self) -> None:
        super().validate()
        width = self.resolved().known("width")
        if self.positions == "sinusoidal" and width % 2:
            raise ValueError(f"positions: sinusoidal ones need an even width, got {width}")

    def module(self, spec: Any, path: str = "model") -> "TokenTransformer":
        """The encoder for the tokens of `spec`."""
        (length,) = element_shape(spec, "tokens", f"{path}.name")
        vocab_size, max_len = self.vocab_size or spec.vocab_size, self.max_len or length
        if vocab_size < spec.vocab_size:
            raise UserError(
                f"{path}.vocab_size: {vocab_size} is less than the {spec.vocab_size} token ids of the data "
                f"(at least {spec.vocab_size} is required)"
            )
        if max_len < length:
            raise UserError(
                f"{path}.max_len: {max_len} is less than the {length} tokens of an example (data.seq_len) "
                f"(at least {length} is required)"
            )
        return TokenTransformer(dataclasses.replace(self.resolved(), vocab_size=vocab_size, max_len=max_len))


class TokenTransformer(nn.Module):
    """Tokens [B, T] to hidden states and a pooled vector, and a read-out back to the vocabulary."""

    config: TokenConfig  # resolved, with vocab_size and max_len

    @property
    def width(self) -> int:
        """Width of the hidden states and of the pooled vector."""
        return self.config.known("width")

    @property
    def table_rows(self) -> int:
        """Rows of the token table: the vocabulary, padded up to a multiple."""
        multiple = self.config.vocab_multiple
        return -(-self.config.known("vocab_size") // multiple) * multiple

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(0.02)
        self.embed = Table(self.table_rows, self.width, dtype=c.dtype)
        if c.positions == "learned":
            self.position_embed = Table(c.known("max_len"), self.width, "positions", dtype=c.dtype)
        if c.token_types:
            self.type_embed = Table(c.token_types, self.width, "classes", dtype=c.dtype)
        if c.embedding_norm:
            self.embed_norm = Norm(c.norm, c.norm_eps, c.bias)
        self.stack = Stack(c, c.known("depth"))
        if c.readout_transform:
            self.head_dense = Dense(self.width, ("embed", "mlp"), initializer=init, dtype=c.dtype)
            self.head_norm = Norm(c.norm, c.norm_eps, c.bias)
            self.head_bias = parameter(self, "head_bias", nn.initializers.zeros, ("vocab",), (self.table_rows,))
        if not c.tied:
            shape = (self.width, self.table_rows)
            self.head_kernel = parameter(self, "head_kernel", init, ("embed", "vocab"), shape)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: Mask,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        noise: Noise | None = None,
    ) -> Encoded:
        """Encodes tokens.

        Args:
            tokens: int [B, T], T at most `max_len`.
            mask: who attends to whom, as the objective wants it.
            segment_ids: int [B, T], 0 = padding; tokens of different segments never see each other.
            positions: int [B, T], for packed rows; 0..T-1 if None.
            token_types: int [B, T] for a model with token types; all 0 if None.
            noise: for dropout and stochastic depth; None = neither.

        Returns:
            hidden states [B, T, D] after the final norm, and pooled [B, D] over the tokens that are not padding.
        """
        c = self.config
        if c.positions != "none" and tokens.shape[1] > c.known("max_len"):
            raise UserError(f"model.max_len: {c.max_len} positions, but a sequence has {tokens.shape[1]} tokens")
        x = self.embed(tokens)
        where = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        if c.positions == "learned":
            x = x + self.position_embed(where)
        elif c.positions == "sinusoidal":
            x = x + jnp.asarray(sinusoidal(np.arange(c.known("max_len")), self.width), c.dtype)[where]
        if c.token_types:
            x = x + self.type_embed(jnp.zeros_like(tokens) if token_types is None else token_types)
        if c.embedding_norm:
            x = self.embed_norm(x)
        if noise is not None:
            x = dropout(x, c.dropout, noise.at("embedding"))
        if segment_ids is not None:
            mask = mask & Segments(segment_ids)
        x = self.stack(x, mask, positions, noise)
        return Encoded(x, pool(x, segment_ids, c.pool))

    def readout(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The parts of the projection, for a loss that fuses it: logits = hidden' @ kernel + bias.

        Returns:
            hidden' [..., D], kernel [D, V] and bias [V] or None, for hidden states [..., D].
        """
        c = self.config
        bias = None
        if c.readout_transform:
            hidden = self.head_norm(nn.gelu(self.head_dense(hidden), approximate=c.activation == "gelu_tanh"))
            bias = self.head_bias
        if self.table_rows != c.known("vocab_size"):
            real = jnp.arange(self.table_rows) < c.known("vocab_size")
            bias = jnp.where(real, 0.0 if bias is None else bias, _NO_PROBABILITY)
        return hidden, (self.embed.embedding.T if c.tied else self.head_kernel), bias

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D]."""
        hidden, kernel, bias = self.readout(hidden)
        logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return logits if bias is None else logits + bias

    def init_all(self, tokens: jax.Array, *, mask: Mask) -> jax.Array:
        """For `init(..., method="init_all")`: encoder and read-out, so that every parameter is made."""
        return self.logits(self(tokens, mask=mask).tokens)

    def flops(self, tokens: int | None = None, *, causal: bool = False, predicted: int = 0) -> float:
        """Forward FLOPs of a sequence of `tokens` (max_len if None), `predicted` of them read out."""
        c = self.config
        length = c.known("max_len") if tokens is None else tokens
        head = dense_flops(predicted, self.width, self.table_rows)
        if c.readout_transform:
            head += dense_flops(predicted, self.width, self.width)
        return stack_flops(c, c.known("depth"), length, causal) + head


def pool(x_BxTxD: jax.Array, segment_ids: jax.Array | None, kind: str) -> jax.Array:
    """One vector [B, D] of hidden states: "first", "last" that is not padding, or "mean" of those; in float32."""
    valid = jnp.ones(x_BxTxD.shape[:2], bool) if segment_ids is None else segment_ids > 0
    if kind == "first":
        return x_BxTxD[:, 0]
    if kind == "last":
        index = jnp.max(jnp.where(valid, jnp.arange(valid.shape[1]), 0), axis=1)
        return jnp.take_along_axis(x_BxTxD, index[:, None, None], axis=1)[:, 0]
    weights = valid.astype(jnp.float32) / jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    return jnp.einsum("btd,bt->bd", x_BxTxD.astype(jnp.float32), weights).astype(x_BxTxD.dtype)
