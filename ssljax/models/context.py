"""The causal network over the latents of the parts of an example (van den Oord et al. 2018, CPC)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers.dense import Dense
from ssljax.layers.masks import Causal, Mask, Segments
from ssljax.layers.noise import Noise
from ssljax.layers.positions import sincos_2d
from ssljax.layers.stack import Stack
from ssljax.models.family import Preset, TransformerConfig, dims
from ssljax.models.flops import dense_flops, stack_flops


@dataclasses.dataclass(frozen=True)
class ContextConfig(TransformerConfig):
    """A causal transformer over latents, with fixed sinusoidal positions by row and column."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 1, 2),
        "micro": dims(128, 2, 4),
        "base": dims(512, 4, 8),
    }

    preset: str | None = "micro"

    def validate(self) -> None:
        super().validate()
        width = self.with_preset().known("width")
        if width % 4:
            raise ValueError(f"width: sine-cosine positions need a multiple of 4, got {width}")

    def module(self, input_ratio: float = 1.0) -> "Context":
        """The network; `input_ratio` is the width ratio of the latents (`ssljax.layers.width`)."""
        return Context(self.with_preset(), input_ratio)


class Context(nn.Module):
    """A network that summarises the latents up to each one."""

    config: ContextConfig  # with preset values filled in
    input_ratio: float = 1.0

    @property
    def width(self) -> int:
        """Width of the contexts."""
        return self.config.known("width")

    @property
    def width_ratio(self) -> float:
        """Width ratio of muP of the contexts."""
        return self.config.width_ratio

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): the map of the latents lies below all blocks."""
        return self.config.known("depth") + 1 if part == "embed" else 0

    @nn.compact
    def __call__(
        self,
        latents: jax.Array,
        grid: tuple[int, int],
        segment_ids: jax.Array | None = None,
        noise: Noise | None = None,
    ) -> jax.Array:
        """Maps latents [B, N, D] in raster order to contexts [B, N, W]; context t sees the latents 0 to t.

        Args:
            latents: [B, N, D].
            grid: (rows, columns) of the latents, N = rows * columns; a sequence has one column.
            segment_ids: int [B, N]; a context sees the latents of its own segment alone; None: one segment.
            noise: randomness of dropout and stochastic depth; None: neither.
        """
        c = self.config
        init = c.initializer() if c.init == "xavier" else c.normal((c.width_ratio / self.input_ratio) ** 0.5)
        options: dict[str, Any] = {"width_ratio": self.input_ratio, "dtype": c.dtype, "name": "embed"}
        x = Dense(self.width, ("embed", "mlp"), initializer=init, **options)(latents)
        x = x + jnp.asarray(sincos_2d(grid, self.width), x.dtype)
        mask: Mask = Causal() if segment_ids is None else Causal() & Segments(segment_ids)
        return Stack(c, c.known("depth"), name="stack")(x, mask, noise=noise)[0]

    def flops(self, latents: int, latent_width: int) -> float:
        """Forward FLOPs of the contexts of `latents` latents."""
        c = self.config
        embed = dense_flops(latents, latent_width, self.width)
        return embed + stack_flops(c, c.known("depth"), latents, causal=True)
