"""Residual networks (He et al. 2016, "Deep Residual Learning for Image Recognition")."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.schema import setting
from ssljax.layers.dense import constrain_rows
from ssljax.layers.heads import BatchNorm
from ssljax.layers.image_conv import Conv, GroupNorm
from ssljax.layers.noise import Noise, drop_path
from ssljax.models.family import Encoded, Preset, PublishedCount, WithPreset, check_preset, element_shape, with_preset
from ssljax.models.flops import dense_flops


@dataclasses.dataclass(frozen=True)
class ResNetConfig(WithPreset):
    """ResNet (He et al. 2016); the 3 x 3 convolution of a bottleneck has the stride, as in later implementations."""

    inputs: ClassVar[str] = "images"
    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": {"channels": 32, "depths": (1, 1, 1), "groups": 8},
        "18": {"depths": (2, 2, 2, 2)},
        "34": {"depths": (3, 4, 6, 3)},
        "50": {"depths": (3, 4, 6, 3), "bottleneck": True},
        "101": {"depths": (3, 4, 23, 3), "bottleneck": True},
        "152": {"depths": (3, 8, 36, 3), "bottleneck": True},
    }
    published_count: ClassVar[PublishedCount] = PublishedCount(classes=1000)

    preset: str | None = setting(
        "micro", doc="name of published dimensions (an unknown name lists them); None: `depths` is required"
    )
    channels: int = setting(64, ge=1, doc="channels of the stem; stage i (from 0) has 2^i times as many")
    depths: tuple[int, ...] | None = setting(None, ge=1, doc="number of blocks of each stage; None: the preset's")
    bottleneck: bool = setting(
        False, doc="use bottleneck blocks: three convolutions, with four times the channels at the output"
    )
    stem: Literal["large", "small"] = setting(
        "large",
        doc="first layer; 'large': 7 x 7 with stride 2, then max-pooling, which divides the sides of the image by "
        "four; 'small': 3 x 3, which keeps them (Chen et al. 2020, SimCLR, appendix B.9, for images of 32 pixels)",
    )
    norm: Literal["group", "batch"] = setting(
        "group",
        doc="normalisation; 'group': within each example; 'batch': over the images that are encoded together, without "
        "running statistics, so micro-batches are not exact and features depend on the batch of an evaluation",
    )
    groups: int = setting(32, ge=1, doc="number of groups of channels of the norm 'group'")
    drop_path: float = setting(
        0.0, ge=0, lt=1, doc="stochastic depth rate of the last block; it grows linearly from 0 at the first"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", doc="type of activations; parameters are float32, and the loss is scaled for float16"
    )

    def with_preset(self) -> Self:
        """Returns a copy with the values of the preset filled in."""
        return with_preset(self)

    def validate(self) -> None:
        check_preset(self)
        full = self.with_preset()
        if not full.depths:
            raise ValueError("depths: missing; a list of numbers or a preset is required")
        if self.norm == "group" and full.channels % full.groups:
            raise ValueError(f"groups: {full.groups} does not divide the {full.channels} channels")

    def module(self, spec: Any, path: str = "model") -> "ResNet":
        """The encoder for the images of `spec`."""
        return ResNet(self.with_preset(), element_shape(spec, "image", f"{path}.name"))

    def standalone(self) -> "ResNet":
        """The encoder without data, for colour images of 224 x 224 pixels."""
        return ResNet(self.with_preset(), (224, 224, 3))

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """(Inner channels, stride) of every block."""
        stages = enumerate(self.depths or ())
        return [(self.channels * 2**i, 2 if i and not j else 1) for i, depth in stages for j in range(depth)]

    def path(self, inner: int, stride: int) -> list[tuple[int, int, int]]:
        """(Output channels, side, stride) of the convolutions of a block."""
        if self.bottleneck:
            return [(inner, 1, 1), (inner, 3, stride), (4 * inner, 1, 1)]
        return [(inner, 3, stride), (inner, 3, 1)]

    @property
    def entry(self) -> tuple[int, int, int]:
        """(Output channels, side, stride) of the convolution of the stem."""
        return (self.channels, 7, 2) if self.stem == "large" else (self.channels, 3, 1)

    def new_norm(self, name: str) -> nn.Module:
        """A norm over the channels."""
        return BatchNorm(name=name) if self.norm == "batch" else GroupNorm(self.groups, name=name)


class Residual(nn.Module):
    """A residual block, relu(shortcut(x) + path(x)); the shortcut is a projection if shapes differ."""

    config: ResNetConfig
    inner: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, rate: float, noise: Noise | None) -> jax.Array:
        c, y = self.config, x
        for i, (features, side, stride) in enumerate(c.path(self.inner, self.stride)):
            y = nn.relu(y) if i else y
            y = c.new_norm(f"norm_{i}")(Conv(features, side, stride, c.dtype, name=f"conv_{i}")(y))
        if x.shape != y.shape:
            x = c.new_norm("norm")(Conv(y.shape[-1], 1, self.stride, c.dtype, name="shortcut")(x))
        return nn.relu(x + drop_path(y, rate, noise))


class ResNet(nn.Module):
    """An encoder of images [B, H, W, C] to feature vectors of positions, and their mean."""

    config: ResNetConfig  # with preset values filled in
    image_shape: tuple[int, ...]  # [H, W, C] of the data; images of other sizes are accepted too

    @property
    def width(self) -> int:
        """Width of the tokens and of the pooled vector."""
        inner, stride = self.config.blocks[-1]
        return self.config.path(inner, stride)[-1][0]

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): the blocks of all stages form one stack; the stem lies below it."""
        blocks = len(self.config.blocks)
        return {f"block_{i}": blocks - i for i in range(blocks)}.get(part, blocks + 1)

    @nn.compact
    def __call__(self, images: jax.Array, *, noise: Noise | None = None) -> Encoded:
        """Encodes normalised images [B, H, W, C] -> tokens [B, h w, D] of the last stage, pooled [B, D]."""
        c = self.config
        features, side, stride = c.entry
        x = nn.relu(c.new_norm("norm")(Conv(features, side, stride, c.dtype, name="stem")(images)))
        if c.stem == "large":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        rates = np.linspace(0.0, c.drop_path, len(c.blocks))
        for i, ((inner, stride), rate) in enumerate(zip(c.blocks, rates)):
            block_noise = None if noise is None else noise.at(i)
            x = constrain_rows(Residual(c, inner, stride, name=f"block_{i}")(x, float(rate), block_noise))
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return Encoded(tokens, jnp.mean(tokens.astype(jnp.float32), axis=1).astype(tokens.dtype))

    def initial(self, key: jax.Array) -> Any:
        """Initial variables; needs no data."""
        return self.init(key, jnp.zeros((1, *self.image_shape)))

    def flops(self, image_shape: tuple[int, ...] | None = None) -> float:
        """Forward FLOPs of an image."""
        c = self.config
        x, total = _convolved(image_shape or self.image_shape, c.entry)
        if c.stem == "large":
            x = (-(-x[0] // 2), -(-x[1] // 2), x[2])
        for inner, stride in c.blocks:
            path = c.path(inner, stride)
            out, total = functools.reduce(lambda done, conv: _convolved(done[0], conv, done[1]), path, (x, total))
            total += _convolved(x, (out[2], 1, stride))[1] if out != x else 0.0  # the projection of the shortcut
            x = out
        return total


def _convolved(
    shape: tuple[int, ...], conv: tuple[int, int, int], before: float = 0.0
) -> tuple[tuple[int, ...], float]:
    """Returns (output shape [h, w, C] of a convolution, its FLOPs plus `before`)."""
    (height, width, channels), (features, side, stride) = shape, conv
    out = (-(-height // stride), -(-width // stride), features)
    return out, before + dense_flops(out[0] * out[1], side * side * channels, features)
