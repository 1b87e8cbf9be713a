"""A transformer over token sequences; `bert`, `gpt` and the text tower of `clip` are settings of it.

It does not decide who attends to whom: the objective passes the mask.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.layers.config import ACTIVATIONS, Activation, Part
from ssljax.layers.dense import Dense, parameter
from ssljax.layers.embeddings import Table
from ssljax.layers.masks import Full, Mask, Segments
from ssljax.layers.multihead import Cache
from ssljax.layers.noise import Noise, dropout
from ssljax.layers.positions import sinusoidal
from ssljax.layers.stack import Stack
from ssljax.models.family import Encoded, TransformerConfig, element_shape
from ssljax.models.flops import dense_flops, stack_flops

_NO_PROBABILITY = -1e9  # bias of the logits of padded vocabulary entries


class Readout(NamedTuple):
    """logits = cap(hidden @ kernel) + bias, with cap(x) = cap tanh(x / cap)."""

    hidden: jax.Array  # [..., D]
    kernel: jax.Array  # [D, V]
    bias: jax.Array | None  # [V]
    cap: float | None = None


@dataclasses.dataclass(frozen=True)
class TokenConfig(TransformerConfig):
    """A transformer over tokens.

    vocab_size, max_len: those of the data if None; smaller ones are refused.
    vocab_multiple: the table is padded up to a multiple of it; ids beyond the vocabulary have probability 0.
    embedding_dim: width of the embeddings, mapped to `width`, and of the read-out (ALBERT, ELECTRA); None: `width`,
        without a map.
    embedding_map: what is mapped, the sum of all embeddings, or those of tokens alone, without bias, and states are
        mapped back before the read-out ("tokens", OPT 350M).
    embedding_scale: token embeddings are multiplied by sqrt(width) (Vaswani 2017, Gemma).
    positions: a learned table, fixed sinusoids, or none (with `rope_theta`, say).
    position_offset: rows of the learned table before that of position 0 (OPT and RoBERTa: 2).
    embedding_norm: a norm after the sum of embeddings (BERT).
    token_types: how many sentence types have an embedding (BERT: 2); 0 = none.
    final_norm: a norm after the last block, where norms come before the parts.
    pool: the vector of the whole: the first token, the last that is not padding, or the mean of those.
    tied: the read-out is the transposed token table.
    readout_size: how many ids an untied read-out predicts, the first ones (Image GPT: all but the start); None: all.
    readout_transform: dense, activation and norm before the read-out (BERT).
    readout_bias: of the logits.
    extras: what is read out besides: "pooler", a tanh layer on the first token, which `pooled` then is (BERT); "pair",
        logits of two classes from it (is the second sentence the next? in order?); "replaced", a logit for each token
        (ELECTRA).
    readout_activation: of that transform; None: that of the blocks.
    readout_scale: hidden states are multiplied by it before the read-out (T5: width**-0.5).
    readout_cap: logits x become cap tanh(x / cap) (Gemma 2).
    """

    inputs: ClassVar[str] = "tokens"

    bias_except: tuple[Part, ...] = ()  # parts with a bias where `bias` is false, without one where it is true
    # of the logits; None: 1/sqrt(head_dim), of head_dim times the number of terms where attention is disentangled
    attention_scale: float | None = setting(None, gt=0)
    vocab_size: int | None = setting(None, ge=1)
    vocab_multiple: int = setting(1, ge=1)
    max_len: int | None = setting(None, ge=1)
    embedding_dim: int | None = setting(None, ge=1)
    embedding_map: Literal["sum", "tokens"] = "sum"
    embedding_scale: bool = False
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    position_offset: int = setting(0, ge=0)
    embedding_norm: bool = False
    token_types: int = setting(0, ge=0)
    final_norm: bool = True
    pool: Literal["first", "last", "mean"] = "mean"
    tied: bool = True
    readout_size: int | None = setting(None, ge=1)
    readout_transform: bool = False
    readout_bias: bool = False
    readout_activation: Activation | None = None
    extras: tuple[Literal["pooler", "pair", "replaced"], ...] = ()
    readout_scale: float | None = setting(None, gt=0)
    readout_cap: float | None = setting(None, gt=0)

    def validate(self) -> None:
        super().validate()
        width = self.with_preset().known("width")
        if self.positions == "sinusoidal" and width % 2:
            raise ValueError(f"positions: sinusoidal ones need an even width, got {width}")

    def module(self, spec: Any, path: str = "model") -> "TokenTransformer":
        """The encoder for the tokens of `spec`."""
        return self.fit_to(spec, path).standalone()

    def fit_to(self, spec: Any, path: str) -> Self:
        """The same with the vocabulary and length of the data where it has none; smaller ones are refused."""
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
        return dataclasses.replace(self, vocab_size=vocab_size, max_len=max_len)

    def standalone(self) -> "TokenTransformer":
        """The encoder by itself; `vocab_size` and `max_len` must be set."""
        return TokenTransformer(self.with_preset())


class TokenTransformer(nn.Module):
    """Tokens [B, T] to hidden states and a pooled vector, and a read-out back to the vocabulary."""

    config: TokenConfig  # resolved, with vocab_size and max_len
    table: nn.Module | None = None  # token embeddings that others share
    cross: bool = False  # also attends to a memory

    below: ClassVar[tuple[str, ...]] = ("embed", "position_embed", "type_embed", "embed_norm", "embed_project")

    @property
    def width(self) -> int:
        """Width of the hidden states and of the pooled vector."""
        return self.config.known("width")

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): embeddings lie below all blocks, read-outs above them."""
        return self.config.known("depth") + 1 if part in self.below else 0

    @property
    def table_rows(self) -> int:
        """Rows of the token table: the vocabulary, padded up to a multiple."""
        multiple = self.config.vocab_multiple
        return -(-self.config.known("vocab_size") // multiple) * multiple

    @property
    def embedding_dim(self) -> int:
        """Width of the token table, and of the read-out."""
        return self.config.embedding_dim or self.width

    @property
    def maps_tokens(self) -> bool:
        """Are token embeddings mapped to the width by themselves, and states back?"""
        return self.config.embedding_dim is not None and self.config.embedding_map == "tokens"

    def setup(self) -> None:
        c, inner = self.config, self.embedding_dim
        init = nn.initializers.normal(0.02)
        dense = functools.partial(Dense, initializer=init, dtype=c.dtype)
        self.embed = self.table or Table(self.table_rows, inner, dtype=c.dtype)
        summed = self.width if self.maps_tokens else inner
        if c.positions == "learned":
            rows = c.known("max_len") + c.position_offset
            self.position_embed = Table(rows, summed, "positions", dtype=c.dtype, role="position")
        if c.token_types:
            self.type_embed = Table(c.token_types, summed, "classes", dtype=c.dtype)
        if c.embedding_norm:
            self.embed_norm = c.new_norm()
        if c.embedding_dim is not None:
            self.embed_project = dense(self.width, ("embed", "mlp"), not self.maps_tokens)
        if self.maps_tokens:
            self.readout_project = dense(inner, ("embed", "mlp"), False)
        self.stack = Stack(c, c.known("depth"), self.cross, c.final_norm)
        if c.readout_transform:
            self.head_dense = dense(inner, ("embed", "mlp"), c.has_bias("readout"))
            self.head_norm = c.new_norm()
        if c.readout_bias:
            zeros = nn.initializers.zeros
            self.head_bias = parameter(self, "head_bias", zeros, ("vocab",), (self.table_rows,), role="bias")
        if "pooler" in c.extras:
            self.pooler = dense(self.width, ("embed", "mlp"))
        if "pair" in c.extras:
            self.pair = dense(2, ("embed", "classes"), role="head")
        if "replaced" in c.extras:
            self.replaced_dense = dense(self.width, ("embed", "mlp"))
            self.replaced_logit = dense(1, ("embed", "classes"), role="head")
        if not c.tied:
            narrow = c.readout_transform or self.maps_tokens
            shape = (inner if narrow else self.width, c.readout_size or self.table_rows)
            self.head_kernel = parameter(self, "head_kernel", init, ("embed", "vocab"), shape, role="head")

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: Mask,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        noise: Noise | None = None,
        states: bool = False,
        cache: Cache | None = None,
        start: jax.Array | None = None,
        memory: jax.Array | None = None,
        memory_mask: Mask | None = None,
        vectors: jax.Array | None = None,
        valid: jax.Array | None = None,
    ) -> Encoded:
        """Encodes tokens.

        Args:
            tokens: int [B, T], T at most `max_len`.
            mask: who attends to whom, as the objective wants it.
            segment_ids: int [B, T], 0 = padding; tokens of different segments never see each other.
            positions: int [B, T], for packed rows; 0..T-1 if None.
            token_types: int [B, T] for a model with token types; all 0 if None.
            noise: for dropout and stochastic depth; None = neither.
            states: also give the hidden states between the blocks.
            cache: what attention remembers of the tokens before; empty without `start`.
            start: int32 [B], the position in each row of the first of these tokens; `mask` then says which slots of
                the cache may be seen (of those up to each token).
            memory: [B, S, D] for cross-attention, under `memory_mask`.
            vectors: [B, T, D] in the place of what `vectors` gives for the tokens (of images, say).
            valid: bool [B, T], False = padding, which losses of routers leave out; None: segment_ids > 0.

        Returns:
            hidden states [B, T, D] after the final norm, and pooled [B, D] over the tokens that are not padding.
        """
        c = self.config
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None] + (0 if start is None else start[:, None])
        x = self.embedded(tokens, positions, token_types, noise, vectors)
        if segment_ids is not None:
            mask = mask & Segments(segment_ids)
            valid = segment_ids > 0 if valid is None else valid
        out, layers = self.stack(
            x,
            mask,
            positions,
            noise,
            memory=memory,
            memory_mask=memory_mask,
            cache=cache,
            start=start,
            states=states,
            segments=token_types,
            valid=valid,
        )
        between = None if layers.state is None else jnp.concatenate([x[None].astype(out.dtype), layers.state])
        pooled = pool(out, segment_ids, "first" if "pooler" in c.extras else c.pool)
        if "pooler" in c.extras:
            pooled = jnp.tanh(self.pooler(pooled))
        return Encoded(out, pooled, between, layers.cache, layers.router)

    def embedded(
        self,
        tokens: jax.Array,
        where: jax.Array,
        token_types: jax.Array | None = None,
        noise: Noise | None = None,
        vectors: jax.Array | None = None,
    ) -> jax.Array:
        """What the first block reads, [B, T, D]; `where` are positions int [B or 1, T]."""
        c = self.config
        if c.positions != "none" and tokens.shape[1] > c.known("max_len"):
            raise UserError(f"model.max_len: {c.max_len} positions, but a sequence has {tokens.shape[1]} tokens")
        x = self.vectors(tokens) if vectors is None else vectors
        if c.positions == "learned":
            x = x + self.position_embed(where + c.position_offset)
        elif c.positions == "sinusoidal":
            x = x + jnp.asarray(sinusoidal(np.arange(c.known("max_len")), self.width), c.dtype)[where]
        if c.token_types:
            x = x + self.type_embed(jnp.zeros_like(tokens) if token_types is None else token_types)
        if c.embedding_norm:
            x = self.embed_norm(x)
        if noise is not None:
            x = dropout(x, c.dropout, noise.at("embedding"))
        return x if c.embedding_dim is None or self.maps_tokens else self.embed_project(x)

    def vectors(self, tokens: jax.Array) -> jax.Array:
        """The embeddings of tokens alone, [B, T, D]."""
        x = self.embed(tokens)
        if self.maps_tokens:
            x = self.embed_project(x)
        return x * jnp.asarray(self.width**0.5, x.dtype) if self.config.embedding_scale else x

    def narrowed(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] as the read-out takes them: mapped back where the tokens' embeddings were mapped."""
        return self.readout_project(hidden) if self.maps_tokens else hidden

    def readout(self, hidden: jax.Array) -> "Readout":
        """The parts of the projection of hidden states [..., D], for a loss that fuses it."""
        c, hidden = self.config, self.narrowed(hidden)
        if c.readout_transform:
            hidden = self.head_norm(ACTIVATIONS[c.readout_activation or c.activation](self.head_dense(hidden)))
        if c.readout_scale is not None:
            hidden = hidden * jnp.asarray(c.readout_scale, hidden.dtype)
        bias = self.head_bias if c.readout_bias else None
        if self.table_rows != c.known("vocab_size") and not c.readout_size:
            real = jnp.arange(self.table_rows) < c.known("vocab_size")
            bias = jnp.where(real, 0.0 if bias is None else bias, _NO_PROBABILITY)
        return Readout(hidden, self.embed.embedding.T if c.tied else self.head_kernel, bias, c.readout_cap)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D]."""
        hidden, kernel, bias, cap = self.readout(hidden)
        logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        return logits if bias is None else logits + bias

    def pair_logits(self, pooled: jax.Array) -> jax.Array:
        """float32 logits [B, 2] of the extra "pair"."""
        return self.pair(pooled).astype(jnp.float32)

    def replaced_logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [B, T] of the extra "replaced"."""
        return self.replaced_logit(ACTIVATIONS[self.config.activation](self.replaced_dense(hidden)))[..., 0]

    def init_all(self, tokens: jax.Array, *, mask: Mask) -> jax.Array:
        """For `init(..., method="init_all")`: encoder and read-outs, so that every parameter is made."""
        encoded = self(tokens, mask=mask)
        if "pair" in self.config.extras:
            self.pair_logits(encoded.pooled)
        if "replaced" in self.config.extras:
            self.replaced_logits(encoded.tokens)
        # A discriminator has no read-out, whose table may have another width than its states.
        narrow = self.embedding_dim == self.width or self.config.readout_transform or self.maps_tokens
        readable = narrow or not self.config.tied
        return self.logits(encoded.tokens) if readable else encoded.tokens

    def initial(self, key: jax.Array) -> Any:
        """Variables from a key, no data needed."""
        return self.init(key, jnp.zeros((1, 1), jnp.int32), mask=Full(), method="init_all")

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
