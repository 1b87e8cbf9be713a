"""Encoder-decoder transformers: the original Transformer, T5, BART, PEGASUS, Switch Transformers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.config import Activation, BlockConfig, NormPosition
from ssljax.layers.embeddings import Table
from ssljax.layers.experts import ExpertsConfig
from ssljax.layers.masks import Causal, Full, Mask
from ssljax.layers.multihead import Cache
from ssljax.layers.noise import Noise
from ssljax.layers.terms.registry import PositionBias
from ssljax.models.family import Encoded, Preset, PublishedCount, dims
from ssljax.models.flops import dense_flops, stack_flops
from ssljax.models.tokens import Readout, TokenConfig, TokenTransformer


def _t5(width: int, depth: int, heads: int, mlp_dim: int, **more: Any) -> Preset:
    """A published preset of T5. Hidden states are divided by sqrt(width) before a tied read-out."""
    more = {"head_dim": 64, "readout_scale": width**-0.5 if more.get("tied", True) else None, **more}
    return dims(width, depth, heads, mlp_dim=mlp_dim, vocab_size=32_128, max_len=512, **more)


_V1_1 = {"activation": "geglu_tanh", "tied": False}


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(TokenConfig):
    """The Transformer (Vaswani et al. 2017): post-norm blocks, sinusoidal positions, scaled embeddings, ReLU.

    Encoder and decoder share the token table, and with `shared` all blocks.
    """

    inputs: ClassVar[str] = "sequences"
    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 2, 4),
        "base": dims(512, 6, 8, vocab_size=37_000, max_len=1024),
        "big": dims(1024, 6, 16, vocab_size=37_000, max_len=1024),
    }

    preset: str | None = "micro"
    decoder_depth: int | None = setting(None, ge=1, doc="number of blocks of the decoder; None: `depth`")
    decoder_heads: int | None = setting(None, ge=1, doc="number of attention heads of the decoder; None: `heads`")
    decoder_mlp_dim: int | None = setting(
        None, ge=1, doc="hidden width of the decoder's feed-forward parts; None: `mlp_dim`"
    )
    shared: bool = setting(
        False,
        doc="encoder and decoder are one stack; only cross-attention with its norm and the read-out are the decoder's "
        "own (Raffel et al. 2020, section 3.2.2)",
    )
    decoder_start: int = setting(0, ge=0, doc="id of the token that the decoder reads first (BART: 2)")
    norm_position: NormPosition = "post"
    activation: Activation = "relu"
    positions: Literal["learned", "sinusoidal", "none"] = "sinusoidal"
    embedding_scale: bool = True

    def validate(self) -> None:
        super().validate()
        if self.vocab_size is not None and self.decoder_start >= self.vocab_size:
            raise ValueError(
                f"decoder_start: got {self.decoder_start}, must be less than vocab_size, {self.vocab_size}"
            )
        encoder = self.with_preset()
        decoder = encoder.decoder()
        BlockConfig.validate(decoder)
        if self.shared and (encoder.depth, encoder.heads, encoder.hidden) != (
            (decoder.depth, decoder.heads, decoder.hidden)
        ):
            raise ValueError("shared: got True, but the decoder has another size (leave out the keys `decoder_*`)")
        if self.shared and self.experts is not None:
            raise ValueError("shared: got True, must be False for a model with experts")
        if decoder.experts is not None and decoder.known("depth") % decoder.experts.every:
            every = decoder.experts.every
            raise ValueError(f"experts.every: {every} does not divide the depth {decoder.depth} of the decoder")

    def decoder(self) -> "Seq2SeqConfig":
        """The configuration of the decoder: a copy with its depth, heads and hidden width."""
        return dataclasses.replace(
            self,
            depth=self.decoder_depth or self.depth,
            heads=self.decoder_heads or self.heads,
            mlp_dim=self.decoder_mlp_dim or self.mlp_dim,
        )

    def module(self, spec: Any, path: str = "model") -> "EncoderDecoder":  # type: ignore[override]
        """The model for the tokens of `spec`; ids beyond the data's vocabulary can serve as sentinels."""
        return EncoderDecoder(self.fit_to(spec, path).with_preset())

    def standalone(self) -> "EncoderDecoder":  # type: ignore[override]
        """The model without data; `vocab_size` and `max_len` must be set."""
        return EncoderDecoder(self.with_preset())


@dataclasses.dataclass(frozen=True)
class T5Config(Seq2SeqConfig):
    """T5 (Raffel et al. 2020): pre-norm blocks with RMSNorm, learned relative biases, unscaled attention logits.

    Version 1.1 has GeGLU (Shazeer 2020) and an untied read-out.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 2, 4),
        "small": _t5(512, 6, 8, 2048),
        "base": _t5(768, 12, 12, 3072),
        "large": _t5(1024, 24, 16, 4096),
        "3b": _t5(1024, 24, 32, 16_384, head_dim=128),
        "11b": _t5(1024, 24, 128, 65_536, head_dim=128),
        "1.1-small": _t5(512, 8, 6, 1024, **_V1_1),
        "1.1-base": _t5(768, 12, 12, 2048, **_V1_1),
        "1.1-large": _t5(1024, 24, 16, 2816, **_V1_1),
        "1.1-xl": _t5(2048, 24, 32, 5120, **_V1_1),
        "1.1-xxl": _t5(4096, 24, 64, 10_240, **_V1_1),
    }

    norm: Literal["layer", "rms", "rms_plus_one"] = "rms"
    norm_position: NormPosition = "pre"
    bias: bool = False
    attention_scale: float | None = setting(1.0, gt=0)
    position_bias: PositionBias = "relative"
    positions: Literal["learned", "sinusoidal", "none"] = "none"
    embedding_scale: bool = False


@dataclasses.dataclass(frozen=True)
class T5EncoderConfig(TokenConfig):
    """The encoder of T5 by itself (T5EncoderModel of `transformers`)."""

    norm: Literal["layer", "rms", "rms_plus_one"] = "rms"
    bias: bool = False
    activation: Activation = "relu"
    attention_scale: float | None = setting(1.0, gt=0)
    position_bias: PositionBias = "relative"
    positions: Literal["learned", "sinusoidal", "none"] = "none"


@dataclasses.dataclass(frozen=True)
class SwitchConfig(T5Config):
    """Switch Transformers (Fedus et al. 2022): T5 with experts in every second block; each token uses one expert.

    The names of presets end with the number of experts.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 2, 4),
        "base-8": _t5(768, 12, 12, 3072),
        "base-128": _t5(768, 12, 12, 3072, experts=ExpertsConfig(128, top_k=1, normalize=False, every=2)),
    }

    experts: ExpertsConfig | None = ExpertsConfig(top_k=1, normalize=False, every=2)


@dataclasses.dataclass(frozen=True)
class BARTConfig(Seq2SeqConfig):
    """BART (Lewis et al. 2020): post-norm blocks, a norm after the embeddings, learned positions, GELU."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 2, 4),
        "base": dims(768, 6, 12, vocab_size=50_265, max_len=1024),
        "large": dims(1024, 12, 16, vocab_size=50_265, max_len=1024),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount({"readout_bias": False})

    decoder_start: int = setting(2, ge=0)
    norm_eps: float = setting(1e-5, gt=0)
    activation: Activation = "gelu"
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    position_offset: int = setting(2, ge=0)
    embedding_norm: bool = True
    embedding_scale: bool = False
    readout_bias: bool = True


@dataclasses.dataclass(frozen=True)
class PegasusConfig(Seq2SeqConfig):
    """PEGASUS (Zhang et al. 2020): the Transformer with pre-norm blocks.

    No checkpoint of "base" was published, so the data set its vocabulary.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 2, 4),
        "base": dims(768, 12, 12),
        "large": dims(1024, 16, 16, vocab_size=96_103, max_len=1024),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount({"readout_bias": False})

    norm_position: NormPosition = "pre"
    norm_eps: float = setting(1e-5, gt=0)
    readout_bias: bool = True


class EncoderDecoder(nn.Module):
    """An encoder of tokens [B, S] and a decoder of tokens [B, T] with cross-attention to the encoder's states."""

    config: Seq2SeqConfig  # with preset values, vocab_size and max_len filled in

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.config.known("width")

    @property
    def width_ratio(self) -> float:
        """Width ratio of muP of the hidden states."""
        return self.config.width_ratio

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): the shared token table lies below the deeper stack."""
        return max(self.config.known("depth"), self.config.decoder().known("depth")) + 1 if part == "embed" else 0

    def setup(self) -> None:
        c = self.config
        self.embed = Table(c.known("vocab_size"), self.width, dtype=c.dtype)
        self.decoder = TokenTransformer(c.decoder(), table=self.embed, cross=True)
        if not c.shared:
            without_readout = dataclasses.replace(c, readout_bias=False, tied=True, readout_transform=False)
            self.encoder = TokenTransformer(without_readout, table=self.embed)

    def encode(
        self,
        tokens: jax.Array,
        *,
        mask: Mask,
        segment_ids: jax.Array | None = None,
        noise: Noise | None = None,
        states: bool = False,
        valid: jax.Array | None = None,
    ) -> Encoded:
        """Encodes tokens int [B, S] -> hidden states [B, S, D]; arguments as in `TokenTransformer.__call__`."""
        stack = self.decoder if self.config.shared else self.encoder
        return stack(tokens, mask=mask, segment_ids=segment_ids, noise=noise, states=states, valid=valid)

    def decode(
        self,
        tokens: jax.Array,
        memory: jax.Array | None,
        *,
        mask: Mask,
        memory_mask: Mask | None = None,
        noise: Noise | None = None,
        states: bool = False,
        cache: Cache | None = None,
        start: jax.Array | None = None,
        valid: jax.Array | None = None,
    ) -> Encoded:
        """Decodes tokens int [B, T] -> hidden states [B, T, D].

        Args:
            tokens: int [B, T].
            memory: [B, S, D], hidden states of the encoder; None: the cache holds their keys and values.
            mask: mask of self-attention.
            memory_mask: mask of cross-attention; None: all pairs.
            noise: randomness of dropout and stochastic depth; None: neither.
            states: also return the hidden states between the blocks.
            cache: keys and values of earlier tokens; None: no cache.
            start: int32 [B], position of the first token in each row; None: 0.
            valid: bool [B, T], False = padding, which router losses leave out; None: no padding.
        """
        return self.decoder(
            tokens,
            mask=mask,
            noise=noise,
            states=states,
            cache=cache,
            start=start,
            memory=memory,
            memory_mask=memory_mask,
            valid=valid,
        )

    def __call__(self, tokens: jax.Array, decoder_tokens: jax.Array, noise: Noise | None = None) -> jax.Array:
        """Logits [B, T, V] of the decoder, with full attention in the encoder and causal attention in the decoder."""
        noises = (None, None) if noise is None else (noise.at("encoder"), noise.at("decoder"))
        memory = self.encode(tokens, mask=Full(), noise=noises[0]).tokens
        return self.logits(self.decode(decoder_tokens, memory, mask=Causal(), noise=noises[1]).tokens)

    def readout(self, hidden: jax.Array) -> Readout:
        """Inputs of the projection to logits; see `TokenTransformer.readout`."""
        return self.decoder.readout(hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of the decoder's hidden states."""
        return self.decoder.logits(hidden)

    def initial(self, key: jax.Array) -> Any:
        """Initial variables; needs no data."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        return self.init(key, tokens, tokens)

    def flops(self, tokens: int, targets: int) -> float:
        """Forward FLOPs of `tokens` encoder tokens and `targets` decoder tokens, with logits for each target."""
        c, d = self.config, self.config.decoder()
        inner, grouped = d.head_width * d.known("heads"), d.head_width * d.groups
        cross = dense_flops(targets, 2 * d.known("width"), inner) + dense_flops(tokens, 2 * d.known("width"), grouped)
        cross += 4.0 * targets * tokens * inner
        return (
            stack_flops(c, c.known("depth"), tokens)
            + stack_flops(d, d.known("depth"), targets, causal=True)
            + d.known("depth") * d.repeats * cross
            + dense_flops(targets, self.width, c.known("vocab_size"))
        )
