"""The transformer over token sequences behind `bert`, `gpt`, `llama`, the text tower of `clip`, and others.

The caller (an objective, an evaluation) passes the attention mask.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.schema import fixed, setting
from ssljax.layers.config import ACTIVATIONS, Activation, Component
from ssljax.layers.dense import EXACT, Dense, parameter
from ssljax.layers.embeddings import Table
from ssljax.layers.masks import Full, Mask, Segments
from ssljax.layers.multihead import Cache, Cached, Memory, empty_cache
from ssljax.layers.noise import Noise, dropout
from ssljax.layers.positions import Layout, sinusoidal
from ssljax.layers.stack import Stack
from ssljax.models.family import Encoded, TransformerConfig, element_shape
from ssljax.models.flops import dense_flops, stack_flops

_NO_PROBABILITY = -1e9  # bias of the logits of ids that only pad the vocabulary


class Readout(NamedTuple):
    """The inputs of the projection to logits: soft_cap(hidden @ kernel) + bias, soft_cap(x) = cap tanh(x / cap)."""

    hidden: jax.Array  # [..., D]
    kernel: jax.Array  # [D, V]
    bias: jax.Array | None  # [V]
    cap: float | None = None  # None: no soft cap


@dataclasses.dataclass(frozen=True)
class TokenConfig(TransformerConfig):
    """Keys of a transformer over tokens."""

    inputs: ClassVar[str] = "tokens"

    bias_except: tuple[Component, ...] = setting(
        (), doc="components that are exceptions to `bias`: with a bias if it is false, without one if it is true"
    )
    attention_scale: float | None = setting(
        None,
        gt=0,
        doc="factor of the attention logits; None: 1/sqrt(head_dim), or 1/sqrt(n head_dim) for disentangled attention "
        "of n terms",
    )
    vocab_size: int | None = setting(
        None, ge=1, doc="number of token ids, at least the number of the data; None: the number of the data"
    )
    vocab_multiple: int = setting(
        1, ge=1, doc="pad the token table to a multiple of this number of rows; the added ids have probability 0"
    )
    max_len: int | None = setting(
        None,
        ge=1,
        doc="number of positions, at least the sequence length of the data; None: the sequence length of the data",
    )
    embedding_dim: int | None = setting(
        None,
        ge=1,
        doc="width of the embeddings and of the read-out, with a linear map to `width` (ALBERT, ELECTRA); None: "
        "`width`, without a map",
    )
    embedding_map: Literal["sum", "tokens", "before_norm"] = setting(
        "sum",
        doc="input of the map from `embedding_dim` to `width`; 'sum': the sum of all embeddings, after the norm; "
        "'before_norm': the sum before the norm, without bias (DeBERTa v2); 'tokens': the token embeddings alone, "
        "without bias, and a second map takes hidden states back before the read-out (OPT 350M)",
    )
    embedding_scale: bool = setting(False, doc="multiply token embeddings by sqrt(width) (Vaswani et al. 2017, Gemma)")
    zeroed_token: int | None = fixed(
        None,
        doc="id of the mask token, whose embedding is zero; the others are multiplied by 0.88 / (1 - share of masks in "
        "the row), 0.88 being the mean in training (token dropout of ESM-2); None: no such token",
    )
    positions: Literal["learned", "sinusoidal", "none"] = setting(
        "learned",
        doc="absolute position embeddings; 'learned': a table; 'sinusoidal': fixed sinusoids; 'none': none, for "
        "example with `rope_theta`",
    )
    position_offset: int = setting(
        0,
        ge=0,
        doc="number of unused rows of the learned position table before the row of position 0 (OPT and RoBERTa: 2)",
    )
    embedding_norm: bool = setting(False, doc="normalise the sum of embeddings (BERT)")
    token_types: int = setting(0, ge=0, doc="number of sentence types with an embedding (BERT: 2); 0: none")
    final_norm: bool = setting(True, doc="normalise the output of the last block; pre-norm models only")
    pool: Literal["first", "last", "mean"] = setting(
        "mean",
        doc="pooled vector of a sequence; 'first' or 'last' token, or the 'mean' of the tokens; padding is left out",
    )
    tied: bool = setting(True, doc="use the transposed token table as the kernel of the read-out")
    readout_size: int | None = setting(
        None,
        ge=1,
        doc="number of ids, from 0 on, that an untied read-out predicts (Image GPT: all but the start id); None: all",
    )
    readout_transform: bool = setting(False, doc="dense layer, activation and norm before the read-out (BERT)")
    readout_bias: bool = setting(False, doc="add a learned bias to the logits of the read-out")
    readout_activation: Activation | None = setting(
        None, doc="activation of `readout_transform`; None: the activation of the blocks"
    )
    extras: tuple[Literal["pooler", "pair", "replaced"], ...] = setting(
        (),
        doc="additional heads; 'pooler': a tanh layer on the first token, whose output is the pooled vector (BERT); "
        "'pair': two logits from the pooled vector (next-sentence or sentence-order prediction); 'replaced': one logit "
        "per token (replaced-token detection, ELECTRA)",
    )
    readout_scale: float | None = setting(
        None, gt=0, doc="factor of the hidden states before the read-out (T5: width**-0.5); None: no scaling"
    )
    readout_cap: float | None = setting(
        None, gt=0, doc="soft cap of the logits, x -> cap tanh(x / cap) (Gemma 2); None: no cap"
    )

    def validate(self) -> None:
        super().validate()
        width = self.with_preset().known("width")
        if self.positions == "sinusoidal" and width % 2:
            raise ValueError(f"positions: sinusoidal ones need an even width, got {width}")

    def module(self, spec: Any, path: str = "model") -> "TokenTransformer":
        """The encoder for the tokens of `spec`."""
        return self.fit_to(spec, path).standalone()

    def fit_to(self, spec: Any, path: str) -> Self:
        """Returns a copy in which `vocab_size` and `max_len`, if None, have the values of the data.

        Args:
            spec: `ssljax.data.DataSpec` of the data.
            path: config key of the group, for messages.

        Raises:
            UserError: `vocab_size` or `max_len` is smaller than the data require, or the data have no tokens.
        """
        (length,) = element_shape(spec, "tokens", f"{path}.name")
        vocab_size, max_len = at_least_of_data(self.vocab_size, spec, path), self.max_len or length
        if max_len < length:
            raise UserError(
                f"{path}.max_len: {max_len} is less than the {length} tokens of an example (data.seq_len) "
                f"(at least {length} is required)"
            )
        return dataclasses.replace(self, vocab_size=vocab_size, max_len=max_len)

    def standalone(self) -> "TokenTransformer":
        """The encoder without data; `vocab_size` and `max_len` must be set."""
        return TokenTransformer(self.with_preset())


class TokenModel(nn.Module):
    """A model of token sequences: `__call__` gives hidden states, `readout` the inputs of the projection to logits."""

    two_sided: ClassVar[bool] = True  # a state depends on later tokens too, if the mask allows it

    def readout(self, hidden: jax.Array) -> Readout:
        """Inputs of the projection of hidden states [..., D] to logits, for a loss that computes logits in parts."""
        raise NotImplementedError

    def empty_cache(self, rows: int, slots: int) -> Any:
        """A cache for `rows` texts of up to `slots` tokens, before the first token; for generation.

        Raises:
            UserError: the model reads no context.
        """
        raise UserError(f"model.name: {type(self).__name__} reads no earlier tokens and cannot continue a text")

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [..., V] for hidden states [..., D]."""
        hidden, kernel, bias, cap = self.readout(hidden)
        logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        return logits if bias is None else logits + bias

    def init_all(self, tokens: jax.Array, *, mask: Mask) -> jax.Array:
        """Calls encoder and read-outs, so that `init(..., method="init_all")` creates every parameter."""
        return self.logits(self(tokens, mask=mask).tokens)

    def initial(self, key: jax.Array) -> Any:
        """Initial variables; needs no data."""
        return self.init(key, jnp.zeros((1, 1), jnp.int32), mask=Full(), method="init_all")


class TokenTransformer(TokenModel):
    """An encoder of tokens [B, T] to hidden states and a pooled vector, with a read-out to logits."""

    config: TokenConfig  # with preset values, vocab_size and max_len filled in
    table: nn.Module | None = None  # token embeddings shared with another module; None: the module makes its own
    cross: bool = False  # True: with cross-attention to a memory

    # Parts that lie below all blocks, for `height_of`.
    below: ClassVar[tuple[str, ...]] = ("embed", "position_embed", "type_embed", "embed_norm", "embed_project")

    @property
    def width(self) -> int:
        """Width of the hidden states and of the pooled vector."""
        return self.config.known("width")

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): embeddings lie below all blocks, read-outs above them."""
        return self.config.known("depth") + 1 if part in self.below else 0

    @property
    def width_ratio(self) -> float:
        """Width ratio of muP of the pooled vector."""
        return self.config.width_ratio

    @property
    def table_rows(self) -> int:
        """Rows of the token table: the vocabulary size, padded to a multiple of `vocab_multiple`."""
        multiple = self.config.vocab_multiple
        return -(-self.config.known("vocab_size") // multiple) * multiple

    @property
    def embedding_dim(self) -> int:
        """Width of the token table and of the read-out."""
        return self.config.embedding_dim or self.width

    @property
    def maps_tokens(self) -> bool:
        """Returns True if `embedding_map` is in use and "tokens"."""
        return self.config.embedding_dim is not None and self.config.embedding_map == "tokens"

    @property
    def readout_width(self) -> int:
        """The width of the vectors that are multiplied by the read-out table."""
        return self.embedding_dim if self.config.readout_transform or self.maps_tokens else self.width

    @property
    def _readout_scale(self) -> float:
        """The factor of the hidden states before the read-out; see `ssljax.layers.width` too."""
        ratio = self.config.width_ratio if self.readout_width == self.width else 1.0
        return (self.config.readout_scale or 1.0) / ratio

    def setup(self) -> None:
        c, inner = self.config, self.embedding_dim
        dense = functools.partial(Dense, initializer=c.normal(), dtype=c.dtype)
        init = nn.initializers.normal(0.02)
        self.embed = self.table or Table(self.table_rows, inner, dtype=c.dtype)
        summed = self.width if self.maps_tokens else inner
        if c.positions == "learned":
            rows = c.known("max_len") + c.position_offset
            self.position_embed = Table(rows, summed, None, dtype=c.dtype, role="position")
        if c.token_types:
            self.type_embed = Table(c.token_types, summed, None, dtype=c.dtype)
        if c.embedding_norm:
            self.embed_norm = c.new_norm()
        if c.embedding_dim is not None:
            mapped = functools.partial(dense, initializer=init, width_ratio=1.0)  # its inputs have a fixed width
            self.embed_project = mapped(self.width, ("embed", "mlp"), c.embedding_map == "sum")
        if self.maps_tokens:
            self.readout_project = dense(inner, ("embed", "mlp"), False)
        self.stack = Stack(c, c.known("depth"), self.cross, c.final_norm)
        if c.readout_transform:
            self.head_dense = dense(inner, ("embed", "mlp"), c.has_bias("readout"))
            self.head_norm = c.new_norm()
        if c.readout_bias:
            zeros = nn.initializers.zeros
            size = self.table_rows if c.tied else c.readout_size or self.table_rows
            self.head_bias = parameter(self, "head_bias", zeros, ("vocab",), (size,), role="bias")
        if "pooler" in c.extras:
            self.pooler = dense(self.width, ("embed", "mlp"))
        if "pair" in c.extras:
            self.pair = dense(2, ("embed", "classes"), role="head")
        if "replaced" in c.extras:
            self.replaced_dense = dense(self.width, ("embed", "mlp"))
            self.replaced_logit = dense(1, ("embed", "classes"), role="head")
        if not c.tied:
            shape = (self.readout_width, c.readout_size or self.table_rows)
            names = ("embed", "vocab")  # muP scales the logits instead
            self.head_kernel = parameter(self, "head_kernel", init, names, shape, role="head", width_ratio=1.0)

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
            mask: attention mask. With `start`, its keys are slots of the cache, and slots after a token are
                forbidden in any case.
            segment_ids: int [B, T], 0 = padding; tokens of different segments do not attend to each other.
            positions: int [B, T], for packed rows; None: consecutive, from `start` or 0.
            token_types: int [B, T], for a model with token types; None: all 0.
            noise: randomness of dropout and stochastic depth; None: neither.
            states: also return the hidden states between the blocks.
            cache: keys and values of earlier tokens; None: no cache.
            start: int32 [B], position of the first token of each row; None: the cache is empty.
            memory: [B, S, D], tokens that cross-attention reads; None with `cross`: the cache holds their keys and
                values, or, without a cache, there is no cross-attention.
            memory_mask: mask of cross-attention; None: all pairs.
            vectors: [B, T, D], used instead of the token embeddings (for image tokens, for example).
            valid: bool [B, T], False = padding, which router losses leave out; None: segment_ids > 0.

        Returns:
            `Encoded`: hidden states [B, T, D] after the final norm, pooled [B, D] (padding left out), and on request
            states, cache and router logits.

        Raises:
            UserError: more tokens than positions.
        """
        c = self.config
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None] + (0 if start is None else start[:, None])
        if segment_ids is not None:
            mask = mask & Segments(segment_ids)
            valid = segment_ids > 0 if valid is None else valid
        x = self.embedded(tokens, positions, token_types, noise, vectors, valid)
        crosses = self.cross and (memory is not None or cache is not None)
        layout, read = Layout(positions, token_types), Memory(memory, memory_mask) if crosses else None
        out, layers = self.stack(
            x, mask, layout, noise, memory=read, cached=Cached(cache, start), states=states, valid=valid
        )
        between = None if layers.state is None else jnp.concatenate([x[None].astype(out.dtype), layers.state])
        pooled = pool(out, segment_ids, "first" if "pooler" in c.extras else c.pool)
        if "pooler" in c.extras:
            pooled = jnp.tanh(self.pooler(pooled))
        return Encoded(out, pooled, between, layers.cache, layers.router)

    def embedded(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        token_types: jax.Array | None = None,
        noise: Noise | None = None,
        vectors: jax.Array | None = None,
        valid: jax.Array | None = None,
    ) -> jax.Array:
        """The input [B, T, D] of the first block: embeddings of tokens, positions int [B or 1, T] and token types."""
        c = self.config
        if c.positions != "none" and tokens.shape[1] > c.known("max_len"):
            raise UserError(f"model.max_len: {c.max_len} positions, but a sequence has {tokens.shape[1]} tokens")
        x = self.vectors(tokens) if vectors is None else vectors
        if c.zeroed_token is not None:
            x = _without_masks(x, tokens == c.zeroed_token, valid)
        if c.positions == "learned":
            x = x + self.position_embed(positions + c.position_offset)
        elif c.positions == "sinusoidal":
            x = x + jnp.asarray(sinusoidal(np.arange(c.known("max_len")), self.width), c.dtype)[positions]
        if c.token_types:
            x = x + self.type_embed(jnp.zeros_like(tokens) if token_types is None else token_types)
        mapped = c.embedding_dim is not None
        if mapped and c.embedding_map == "before_norm":
            x = self.embed_project(x)
        if c.embedding_norm:
            x = self.embed_norm(x)
        if noise is not None:
            x = dropout(x, c.dropout, noise.at("embedding"))
        return self.embed_project(x) if mapped and c.embedding_map == "sum" else x

    def vectors(self, tokens: jax.Array) -> jax.Array:
        """Token embeddings [B, T, D], without positions and types."""
        x = self.embed(tokens)
        if self.maps_tokens:
            x = self.embed_project(x)
        if not self.config.embedding_scale:
            return x
        return x * jnp.asarray((self.width / self.config.width_ratio) ** 0.5, x.dtype)

    def narrowed(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] mapped to the width of the read-out."""
        return self.readout_project(hidden) if self.maps_tokens else hidden

    def readout(self, hidden: jax.Array) -> Readout:
        c, hidden = self.config, self.narrowed(hidden)
        if c.readout_transform:
            hidden = self.head_norm(ACTIVATIONS[c.readout_activation or c.activation](self.head_dense(hidden)))
        return self.projection(hidden)

    def projection(self, hidden: jax.Array) -> "Readout":
        """The read-out of vectors [..., `readout_width`] without the layers before the projection."""
        c = self.config
        if (scale := self._readout_scale) != 1:
            hidden = hidden * jnp.asarray(scale, hidden.dtype)
        bias = self.head_bias if c.readout_bias else None
        if self.table_rows != c.known("vocab_size") and not c.readout_size:
            is_id = jnp.arange(self.table_rows) < c.known("vocab_size")  # the other rows are padding
            bias = jnp.where(is_id, 0.0 if bias is None else bias, _NO_PROBABILITY)
        return Readout(hidden, self.embed.embedding.T if c.tied else self.head_kernel, bias, c.readout_cap)

    def empty_cache(self, rows: int, slots: int) -> Cache:
        return empty_cache(self.config, self.config.known("depth"), rows, slots)

    def pair_logits(self, pooled: jax.Array) -> jax.Array:
        """Returns float32 logits [B, 2] of the extra head "pair" for pooled [B, D]."""
        return self.pair(pooled).astype(jnp.float32)

    def replaced_logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [B, T] of the extra head "replaced" for hidden states [B, T, D]."""
        return self.replaced_logit(ACTIVATIONS[self.config.activation](self.replaced_dense(hidden)))[..., 0]

    def init_all(self, tokens: jax.Array, *, mask: Mask) -> jax.Array:
        encoded = self(tokens, mask=mask)
        if "pair" in self.config.extras:
            self.pair_logits(encoded.pooled)
        if "replaced" in self.config.extras:
            self.replaced_logits(encoded.tokens)
        # If widths differ, as in ELECTRA's discriminator, the tied table cannot read the states out: no read-out.
        readable = self.embedding_dim == self.readout_width or not self.config.tied
        return self.logits(encoded.tokens) if readable else encoded.tokens

    def flops(self, tokens: int | None = None, *, causal: bool = False, predicted: int = 0) -> float:
        """Forward FLOPs of a sequence of `tokens` tokens (None: `max_len`), with logits for `predicted` of them."""
        c = self.config
        length = c.known("max_len") if tokens is None else tokens
        size = self.table_rows if c.tied else c.readout_size or self.table_rows
        maps = dense_flops(predicted, self.readout_width, size)
        if c.embedding_dim is not None:
            maps += dense_flops(length, self.embedding_dim, self.width)
        if self.maps_tokens:
            maps += dense_flops(predicted, self.width, self.embedding_dim)
        if c.readout_transform:
            maps += dense_flops(predicted, self.readout_width if self.maps_tokens else self.width, self.embedding_dim)
        return stack_flops(c, c.known("depth"), length, causal) + maps


def _without_masks(x_BxTxD: jax.Array, masked_BxT: jax.Array, valid_BxT: jax.Array | None) -> jax.Array:
    """Sets the embeddings of masks to zero, and scales the others as if 12% of the tokens were masks (ESM-2)."""
    count_B = masked_BxT.shape[1] if valid_BxT is None else jnp.sum(valid_BxT, axis=1)
    scale_B = 0.88 / (1 - jnp.sum(masked_BxT, axis=1) / count_B)
    return jnp.where(masked_BxT[..., None], 0, x_BxTxD * scale_B[:, None, None].astype(x_BxTxD.dtype))


def at_least_of_data(vocab_size: int | None, spec: Any, path: str) -> int:
    """Returns the number of token ids of a model, by default that of the data.

    Raises:
        UserError: it is smaller than that of the data.
    """
    if vocab_size is not None and vocab_size < spec.vocab_size:
        raise UserError(
            f"{path}.vocab_size: {vocab_size} is less than the {spec.vocab_size} token ids of the data "
            f"(at least {spec.vocab_size} is required)"
        )
    return int(vocab_size or spec.vocab_size)


def pool(x_BxTxD: jax.Array, segment_ids: jax.Array | None, kind: str) -> jax.Array:
    """Pools hidden states to [B, D]; the mean is computed in float32.

    Args:
        x_BxTxD: hidden states.
        segment_ids: int [B, T], 0 = padding, which is left out; None: no padding.
        kind: "first", "last" or "mean".
    """
    valid = jnp.ones(x_BxTxD.shape[:2], bool) if segment_ids is None else segment_ids > 0
    if kind == "first":
        return x_BxTxD[:, 0]
    if kind == "last":
        index = jnp.max(jnp.where(valid, jnp.arange(valid.shape[1]), 0), axis=1)
        return jnp.take_along_axis(x_BxTxD, index[:, None, None], axis=1)[:, 0]
    weights = valid.astype(jnp.float32) / jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    return jnp.einsum("btd,bt->bd", x_BxTxD.astype(jnp.float32), weights, precision=EXACT).astype(x_BxTxD.dtype)
