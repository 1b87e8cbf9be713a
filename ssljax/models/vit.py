"""Vision transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.patches import patchify
from ssljax.base.schema import fixed, setting
from ssljax.layers import positions
from ssljax.layers.block import FeedForward
from ssljax.layers.config import ACTIVATIONS, Activation, BlockConfig
from ssljax.layers.dense import Dense, parameter
from ssljax.layers.embeddings import take_tokens, token_vectors
from ssljax.layers.masks import Full
from ssljax.layers.multihead import Attention, Layer, Memory, Shared
from ssljax.layers.noise import Noise, dropout
from ssljax.layers.sequence_conv import ConvolutionConfig
from ssljax.layers.stack import Stack
from ssljax.layers.terms.disentangled import DisentangledConfig
from ssljax.layers.terms.grid import grid_rows
from ssljax.models.family import Encoded, Preset, PublishedCount, TransformerConfig, dims, element_shape
from ssljax.models.flops import dense_flops, stack_flops

PHOTO = (224, 224, 3)  # [H, W, C] of the images on which the published presets were trained


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """A vision transformer (Dosovitskiy et al. 2021).

    `fixed()` fields are constants of published families, not keys of a configuration.
    """

    inputs: ClassVar[str] = "images"
    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 2, 2),
        "nano": dims(128, 4, 2),
        "micro": dims(192, 6, 3),
        "tiny": dims(192, 12, 3, image_shape=PHOTO),
        "small": dims(384, 12, 6, image_shape=PHOTO),
        "base": dims(768, 12, 12, image_shape=PHOTO),
        "large": dims(1024, 24, 16, image_shape=PHOTO),
        "huge": dims(1280, 32, 16, patch_size=14, image_shape=PHOTO),
    }

    published_count: ClassVar[PublishedCount] = PublishedCount(classes=1000)

    # No keys of a ViT, since they concern distances along a sequence, and patches lie in rows and columns.
    disentangled: DisentangledConfig | None = fixed(None)
    convolution: ConvolutionConfig | None = fixed(None)
    relative_buckets: tuple[int, int] = fixed((32, 128))
    rope_scaling: Any = fixed(None)
    preset: str | None = "tiny"
    patch_size: int = setting(
        16, ge=1, doc="side of a patch in pixels; it must divide both sides of every image and crop"
    )
    pool: Literal["cls", "mean", "map"] = setting(
        "cls",
        doc="pooled vector of an image; 'cls': the class token; 'mean': the mean of the patch tokens; 'map': attention "
        "of a learned query to the patch tokens, then a feed-forward part (Zhai et al. 2022)",
    )
    positions: Literal["learned", "sincos", "none"] = setting(
        "learned",
        doc="absolute position embeddings; 'learned': a table, interpolated to other image sizes; 'sincos': fixed "
        "sines and cosines (MAE, MoCo v3); 'none': none; `rope_theta` adds rotary positions by row and column (DINOv3)",
    )
    registers: int = setting(0, ge=0, doc="number of additional tokens that belong to no patch (Darcet et al. 2024)")
    mask_token: bool = setting(
        False, doc="add a learned vector for masked patches, for objectives that mask patches inside the encoder"
    )
    class_token: bool | None = fixed(None, doc="add a class token; None: if `pool` is 'cls'")
    distillation: bool = fixed(False, doc="add a second class token, averaged with the first (DeiT)")
    embedding_norm: bool = fixed(False, doc="normalise the input of the first block (CLIP)")
    patch_bias: bool = fixed(True, doc="add a bias to the patch projection")
    norm_after_pool: bool = fixed(False, doc="apply the final norm to the pooled vector instead of the tokens (BEiT)")
    classes: int = fixed(0, doc="outputs of the published classifier; 0: no classifier")
    heads_on: tuple[Literal["pooler", "norm", "patches", "distilled", "unbiased"], ...] = fixed(
        (),
        doc="parts of the published heads; 'pooler': a dense layer and an activation; 'norm': a norm before the "
        "classifier; 'patches': the classifier reads the class token and the mean of the patches; 'distilled': a "
        "second classifier; 'unbiased': the classifier has no bias, as a projection of CLIP",
    )
    pooler_activation: Activation = fixed("tanh", doc="activation of the head 'pooler'")
    image_shape: tuple[int, int, int] | None = fixed(None, doc="[H, W, C] of images, used if there are no data")
    tiled: bool = fixed(
        True, doc="refuse images whose sides `patch_size` does not divide; False: crop them at the bottom and right"
    )

    def validate(self) -> None:
        TransformerConfig.validate(self)
        full = self.with_preset()
        if self.positions == "sincos" and full.known("width") % 4:
            raise ValueError(f"width: sine-cosine positions need a multiple of 4, got {full.known('width')}")
        if self.rope_theta is not None and full.rotary_width % 4:
            raise ValueError(f"rope_theta: rows and columns need a head width divisible by 4, got {full.rotary_width}")

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches."""
        return self.has_class_token + self.distillation + self.registers

    @property
    def has_class_token(self) -> bool:
        """Returns True if the first token is a class token."""
        return self.pool == "cls" if self.class_token is None else self.class_token

    @property
    def antialias(self) -> bool:
        """Returns True if the position table is resized with antialiasing for smaller images."""
        return False

    @property
    def stride(self) -> tuple[int, int] | None:
        """Distance between overlapping patches in pixels, (down, across); None: patches do not overlap."""
        return None

    def fit_to(self, spec: Any, path: str) -> Self:
        """Returns a copy with preset values and the image shape of the data filled in."""
        height, width, channels = element_shape(spec, "image", f"{path}.name")
        return dataclasses.replace(self.with_preset(), image_shape=(height, width, channels))

    def module(self, spec: Any, path: str = "model") -> "ViT":
        """The encoder for the images of `spec`."""
        module = ViT(self.fit_to(spec, path), path)
        module.grid(module.image_shape)
        return module

    def standalone(self) -> "ViT":
        """The encoder without data, for imported weights; `image_shape` must be set."""
        return ViT(dataclasses.replace(self.with_preset(), tiled=False))


class AttentionPool(nn.Module):
    """Attention pooling: attention of a learned query, then a feed-forward part (Zhai et al. 2022, "MAP")."""

    config: BlockConfig

    @nn.compact
    def __call__(self, tokens_BxNxD: jax.Array) -> jax.Array:
        """Pools [B, N, D] -> [B, D]."""
        c, batch = self.config, tokens_BxNxD.shape[0]
        query = token_vectors(self, "query", 1, c.known("width")).astype(c.dtype)
        query = jnp.broadcast_to(query, (batch, *query.shape))
        shared = Shared(memory=Memory(tokens_BxNxD))
        x, _ = Attention(c, 1, cross=True, name="attention")(query, Layer(0, 0, 0.0), shared)
        return (x + FeedForward(c, 1, name="mlp")(c.new_norm("norm")(x)))[:, 0]


class ViT(nn.Module):
    """An encoder of images [B, H, W, C] to patch tokens and a pooled vector."""

    config: ViTConfig  # with preset values filled in
    path: str = "model"  # config key of the group, for messages

    # Parts that lie below all blocks, for `height_of`.
    below: ClassVar[tuple[str, ...]] = (
        *("patch", "embed_norm", "positions"),
        *("class_token", "distillation_token", "registers", "mask_token"),
    )

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): embeddings lie below all blocks, pooling and heads above them."""
        return self.config.known("depth") + 1 if part in self.below else 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] for which positions are learned; images of other sizes are accepted too."""
        assert self.config.image_shape is not None, "image_shape is not given"
        return self.config.image_shape

    @property
    def width(self) -> int:
        """Width of the tokens and of the pooled vector."""
        return self.config.known("width")

    @property
    def width_ratio(self) -> float:
        """Width ratio of muP of the tokens and of the pooled vector."""
        return self.config.width_ratio

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns (rows, columns) of patches for images of a shape [..., H, W, C].

        Raises:
            UserError: `tiled` is set and `patch_size` does not divide H and W.
        """
        height, width = shape[-3:-1]
        if self.config.stride is not None:
            rows, columns = ((n - self.patch_size) // s + 1 for n, s in zip((height, width), self.config.stride))
            return rows, columns
        if self.config.tiled and (height % self.patch_size or width % self.patch_size):
            raise UserError(
                f"{self.path}.patch_size: {self.patch_size} does not divide the image size {height}x{width} "
                f"(a divisor of both is required)"
            )
        return height // self.patch_size, width // self.patch_size

    def setup(self) -> None:
        c, grid = self.config, self.grid(self.image_shape)
        dense = functools.partial(Dense, initializer=c.initializer(), dtype=c.dtype)
        if c.positions == "learned":  # rows of the class tokens, then of the patches; registers have no position
            rows = c.prefix - c.registers + grid[0] * grid[1]
            init, names = nn.initializers.normal(0.02), ("positions", "embed")
            self.position_table = parameter(self, "positions", init, names, (rows, self.width), role="position")
        if c.mask_token:
            self.mask_vector = token_vectors(self, "mask_token", 1, self.width)
        front = {"class_token": c.has_class_token, "distillation_token": c.distillation, "registers": c.registers}
        self.front = [token_vectors(self, name, int(n), self.width) for name, n in front.items() if n]
        init = c.input_initializer()
        self.patch = dense(self.width, ("patch", "embed"), bias=c.patch_bias, role="embedding", initializer=init)
        if c.embedding_norm:
            self.embed_norm = c.new_norm()
        blocks = dataclasses.replace(c, bias_rows=grid_rows(grid))
        self.stack = Stack(blocks, c.known("depth"), final_norm=not c.norm_after_pool)
        if c.norm_after_pool:
            self.pooled_norm = c.new_norm()
        if c.pool == "map":
            self.attention_pool = AttentionPool(c)
        if "pooler" in c.heads_on:
            self.pooler = dense(self.width, ("embed", "mlp"))
        if "norm" in c.heads_on:
            self.head_norm = c.new_norm()
        if c.classes:
            self.head = dense(c.classes, ("embed", "classes"), "unbiased" not in c.heads_on, role="head")
        if "distilled" in c.heads_on:
            self.distilled_head = dense(c.classes, ("embed", "classes"), role="head")

    def __call__(
        self,
        images: jax.Array,
        *,
        keep: jax.Array | None = None,
        patch_mask: jax.Array | None = None,
        noise: Noise | None = None,
        states: bool = False,
    ) -> Encoded:
        """Encodes images.

        Args:
            images: [B, H, W, C], normalised.
            keep: int32 [B, K], positions of the patches that are encoded (MAE); None: all patches.
            patch_mask: bool [B, N], True: the mask token replaces the patch (needs the key `mask_token`).
            noise: randomness of dropout and stochastic depth; None: neither.
            states: also return the hidden states of all tokens between the blocks.

        Returns:
            `Encoded`: tokens [B, N or K, D] of the patches, pooled [B, D], prefix [B, P, D] of class tokens and
                registers.

        Raises:
            UserError: patches do not tile the images, or the model lacks what `keep` or `patch_mask` needs.
        """
        c = self.config
        grid = self.grid(images.shape)
        if c.stride is None:
            height, width = (n * self.patch_size for n in grid)
            x = patchify(images[:, :height, :width], self.patch_size)
        else:
            x = windows(images, self.patch_size, c.stride)
        if keep is not None:  # before the projection, so that masked patches cost nothing
            x = take_tokens(x, keep)
        x = self.patch(x)
        if patch_mask is not None:
            if not c.mask_token:
                raise UserError(f"{self.path}.mask_token: false, but the objective hides patches inside the encoder")
            hidden = patch_mask if keep is None else jnp.take_along_axis(patch_mask, keep, axis=1)
            x = jnp.where(hidden[..., None], self.mask_vector.astype(c.dtype), x)
        front, table = self._positions(grid)
        if table is not None:
            table = table.astype(c.dtype)
            # Of each example, not `jnp.take(table, keep)`: XLA's partitioner aborts on that lookup in slices on a mesh.
            tables = table[None] if keep is None else jnp.broadcast_to(table, (x.shape[0], *table.shape))
            x = x + (tables if keep is None else take_tokens(tables, keep))
        if front is not None:
            front = front.astype(c.dtype)
            x = jnp.concatenate([jnp.broadcast_to(front, (x.shape[0], *front.shape)), x], axis=1)
        if c.embedding_norm:
            x = self.embed_norm(x)
        if noise is not None:
            x = dropout(x, c.dropout, noise.at("embedding"))
        out, layers = self.stack(x, Full(), self._layout(grid, keep), noise, states=states)
        tokens = out[:, c.prefix :]
        between = None if layers.state is None else jnp.concatenate([x[None].astype(out.dtype), layers.state])
        prefix = out[:, : c.prefix] if c.prefix else None
        return Encoded(tokens, self._pooled(out, tokens), between, router=layers.router, prefix=prefix)

    def _positions(self, grid: tuple[int, int]) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns (tokens before the patches [P, D], position embeddings of the patches [N, D]) for a grid."""
        c = self.config
        front = jnp.concatenate(self.front) if self.front else None
        if c.positions == "none":
            return front, None
        if c.positions == "sincos":
            return front, jnp.asarray(positions.sincos_2d(grid, self.width))
        placed = c.prefix - c.registers  # number of tokens before the patches that have a position
        table = positions.resize_table(self.position_table[placed:], self.grid(self.image_shape), grid, c.antialias)
        return front if front is None else front.at[:placed].add(self.position_table[:placed]), table

    def _rotary(self, grid: tuple[int, int], keep: jax.Array | None) -> tuple[jax.Array, jax.Array] | None:
        """Cosines and sines by row and column, [B or 1, P + N, 1, R / 2]; tokens before the patches are not rotated."""
        c = self.config
        if c.rope_theta is None:
            return None
        cos, sin = (jnp.asarray(t) for t in positions.rotary_2d(grid, c.rotary_width, c.rope_theta))  # [N, R / 2]
        if keep is not None:
            cos, sin = jnp.take(cos, keep, axis=0), jnp.take(sin, keep, axis=0)
        else:
            cos, sin = cos[None], sin[None]
        front = ((0, 0), (c.prefix, 0), (0, 0))
        return jnp.pad(cos, front, constant_values=1.0)[:, :, None], jnp.pad(sin, front)[:, :, None]

    def _layout(self, grid: tuple[int, int], keep: jax.Array | None) -> positions.Layout:
        """The layout of the tokens; with `keep` the patches form no complete grid."""
        if keep is not None and self.config.position_bias == "grid":
            raise UserError(f"{self.path}.position_bias: 'grid' needs every patch, but the objective drops some")
        place = positions.Grid(grid, self.grid(self.image_shape), self.config.prefix)
        return positions.Layout(grid=place if keep is None else None, rotary=self._rotary(grid, keep))

    def _pooled(self, x_BxTxD: jax.Array, patches: jax.Array) -> jax.Array:
        c = self.config
        if c.pool == "map":
            return self.attention_pool(patches)
        # The class token, or the mean of it and the distillation token (Gong 2021).
        chosen = x_BxTxD[:, : 1 + c.distillation] if c.pool == "cls" else patches
        pooled = jnp.mean(chosen.astype(jnp.float32), axis=1).astype(x_BxTxD.dtype)
        return self.pooled_norm(pooled) if c.norm_after_pool else pooled

    def pooler_output(self, pooled: jax.Array) -> jax.Array:
        """Applies the head "pooler" to [B, D]."""
        return ACTIVATIONS[self.config.pooler_activation](self.pooler(pooled))

    def logits(self, x: jax.Array) -> jax.Array:
        """Returns float32 logits [..., classes] of the published classifier for x [..., D]."""
        x = self.head_norm(x) if "norm" in self.config.heads_on else x
        return self.head(x).astype(jnp.float32)

    def distilled_logits(self, x: jax.Array) -> jax.Array:
        """Returns float32 logits [..., classes] of the classifier on the distillation token (DeiT)."""
        return self.distilled_head(x).astype(jnp.float32)

    def init_all(self, images: jax.Array) -> jax.Array:
        """Calls encoder and heads, so that `init(..., method="init_all")` creates every parameter."""
        pooled = self(images).pooled
        if "pooler" in self.config.heads_on:
            self.pooler_output(pooled)
        if "distilled" in self.config.heads_on:
            self.distilled_logits(pooled)
        if "patches" in self.config.heads_on:
            pooled = jnp.concatenate([pooled, pooled], axis=-1)
        return self.logits(pooled) if self.config.classes else pooled

    def initial(self, key: jax.Array) -> Any:
        """Initial variables; needs no data."""
        return self.init(key, jnp.zeros((1, *self.image_shape)), method="init_all")

    def flops(self, tokens: int | None = None, image_shape: tuple[int, ...] | None = None) -> float:
        """Forward FLOPs of an image (None: of `image_shape` of the config); `tokens`: number of encoded patches."""
        shape = image_shape or self.image_shape
        rows, columns = self.grid(shape)
        patches = rows * columns if tokens is None else tokens
        c, length = self.config, patches + self.config.prefix
        patch_dim = self.patch_size**2 * shape[-1]
        out = dense_flops(patches, patch_dim, self.width) + stack_flops(c, c.known("depth"), length)
        if c.pool == "map":  # one query and one output; keys and values of all patches
            inner = c.head_width * c.known("heads")
            out += dense_flops(2 * patches + 2, self.width, inner) + 4 * patches * inner
            out += dense_flops(2, self.width, c.hidden)
        return out


def windows(images: jax.Array, patch: int, stride: tuple[int, int]) -> jax.Array:
    """Extracts patches every `stride` pixels, [B, H, W, C] -> [B, N, patch * patch * C], in the order of `patchify`."""
    rows, columns = (
        np.arange(0, n - patch + 1, step)[:, None] + np.arange(patch) for n, step in zip(images.shape[1:3], stride)
    )
    x = images[:, rows][:, :, :, columns]  # [B, R, patch, S, patch, C]
    return jnp.swapaxes(x, 2, 3).reshape(x.shape[0], len(rows) * len(columns), -1)
