"""Heads on top of an encoder: projectors, classifiers, prototypes."""

import itertools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers.dense import EXACT, Dense, Initializer, Norm, constrain_rows, parameter
from ssljax.layers.embeddings import Table
from ssljax.layers.width import scaled
from ssljax.parallel.rules import sum_of_rows


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with the statistics of this batch only, without running averages.

    Statistics of x [..., D] are taken over all axes except the last. They cover the rows of all devices on any mesh.
    `weights`, with the leading axes of x, weight the rows in the statistics; 0 = padding. Rows of weight 0 are
    normalised too but do not change the other rows.
    """

    eps: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        y = x.astype(jnp.float32)
        w = jnp.ones(x.shape[:-1]) if weights is None else weights.astype(jnp.float32)
        w = jnp.broadcast_to(w.reshape(*w.shape, *[1] * (x.ndim - w.ndim)), (*x.shape[:-1], 1))
        axes = tuple(range(x.ndim - 1))
        total = sum_of_rows(jnp.sum(w, axis=axes))
        total = jnp.where(total == 0, 1, total)
        y = y - sum_of_rows(jnp.sum(w * y, axis=axes)) / total
        y = y * jax.lax.rsqrt(sum_of_rows(jnp.sum(w * jnp.square(y), axis=axes)) / total + self.eps)
        if self.affine:
            shape = x.shape[-1:]
            y = y * parameter(self, "scale", nn.initializers.ones, ("mlp",), shape, role="norm")
            y = y + parameter(self, "bias", nn.initializers.zeros, ("mlp",), shape, role="norm")
        return y.astype(x.dtype)


class MLPHead(nn.Module):
    """Linear maps of widths `features`; each map except the last is followed by a norm and an activation.

    SimCLR's projector (Chen 2020) has features (2048, 128) and norm "batch"; BYOL's predictor has (4096, 256).
    `final_norm` adds a norm after the last map; a batch norm there has no parameters (SimCLR v1).
    """

    features: tuple[int, ...]
    norm: Literal["batch", "layer"] | None = "batch"
    final_norm: bool = False
    activation: Literal["relu", "gelu"] = "relu"
    bias: bool = True
    input_ratio: float = 1.0  # width ratio of x (`ssljax.layers.width`)

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        """Maps x [..., D] -> [..., features[-1]]; `weights` [...] weight the rows in batch statistics only."""
        act = {"relu": nn.relu, "gelu": nn.gelu}[self.activation]
        for i, width in enumerate(self.features):
            last = i == len(self.features) - 1
            normed = self.norm is not None and (not last or self.final_norm)
            # Batch norm subtracts the mean, so a bias before it would have no effect.
            bias = self.bias and not (normed and self.norm == "batch")
            ratio = 1.0 if i else self.input_ratio
            init = scaled(nn.initializers.he_normal(), ratio**-0.5)
            dense = Dense(width, _axes(i), bias=bias, initializer=init, width_ratio=ratio, name=f"linear_{i}")
            x = dense(x)
            # XLA's partitioner computes wrong values of three maps or more, unless the rows after each are whole.
            x = constrain_rows(x) if len(self.features) > 2 and not last else x
            if normed and self.norm == "batch":
                x = BatchNorm(affine=not last, name=f"norm_{i}")(x, weights)
            elif normed:
                x = Norm("layer", name=f"norm_{i}")(x)
            if not last:
                x = act(x)
        return constrain_rows(x)

    def flops(self, inputs: int) -> float:
        """Forward FLOPs for one vector of width `inputs`."""
        return _chain_flops(inputs, *self.features)


class BoundaryHead(nn.Module):
    """The head that predicts a token of a span from the two tokens around it (SpanBERT, Joshi et al. 2020, eq. 2).

    Two layers of a linear map, GELU and LayerNorm, over the two vectors and an embedding of the place in the span.
    """

    places: int  # number of places in a span
    features: int
    input_ratio: float = 1.0  # width ratio of the vectors (`ssljax.layers.width`)

    @nn.compact
    def __call__(self, left: jax.Array, right: jax.Array, place: jax.Array) -> jax.Array:
        """Maps the vectors [B, K, D] before and after a span and int [B, K] places to [B, K, features]."""
        where = Table(self.places, left.shape[-1], None, dtype=left.dtype, role="position", name="place")(place)
        x = jnp.concatenate([left, right, where], axis=-1)
        for i in range(2):
            init = nn.initializers.normal(0.02 * self.input_ratio**-0.5)
            dense = Dense(self.features, _axes(i), initializer=init, dtype=left.dtype, width_ratio=self.input_ratio)
            x = Norm("layer")(jax.nn.gelu(dense(x), approximate=False))
        return constrain_rows(x)

    def flops(self, inputs: int) -> float:
        """Forward FLOPs for one token with vectors of width `inputs`."""
        return _chain_flops(3 * inputs, self.features, self.features)


class DINOHead(nn.Module):
    """The head of DINO (Caron et al. 2021, appendix C): MLP, L2-normalised bottleneck, weight-normalised last layer.

    The columns of the last layer's kernel (parameter `last_layer/kernel`) are scaled to norm 1 in every call.
    """

    prototypes: int = 65_536
    hidden: int = 2048
    bottleneck: int = 256
    input_ratio: float = 1.0  # width ratio of x (`ssljax.layers.width`)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., D] -> logits [..., prototypes]."""
        init = nn.initializers.truncated_normal(0.02)
        for i, width in enumerate((self.hidden, self.hidden, self.bottleneck)):
            ratio = 1.0 if i else self.input_ratio
            dense = Dense(width, _axes(i), initializer=scaled(init, 1 / ratio), width_ratio=ratio, name=f"linear_{i}")
            x = dense(x)
            if i < 2:
                x = nn.gelu(x, approximate=False)
        return Prototypes(self.prototypes, initializer=init, name="last_layer")(x)

    def flops(self, inputs: int) -> float:
        """Forward FLOPs for one vector of width `inputs`."""
        return _chain_flops(inputs, self.hidden, self.hidden, self.bottleneck, self.prototypes)


class Prototypes(nn.Module):
    """Cosine similarities of x [..., D] to `features` learned directions: [..., features], in float32.

    Caron et al. 2020, SwAV.
    """

    features: int
    initializer: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.initializer, ("embed", "prototypes"), shape, role="head")
        x = constrain_rows(x.astype(jnp.float32))
        return constrain_rows(jnp.matmul(normalize(x, -1), normalize(kernel, 0), precision=EXACT))

    def flops(self, inputs: int) -> float:
        """Forward FLOPs for one vector of width `inputs`."""
        return _chain_flops(inputs, self.features)


class Linear(nn.Module):
    """Linear classifier x [..., D] @ kernel + bias, float32. Parameters start at zero, so all first logits are 0."""

    features: int
    bias: bool = True
    input_ratio: float = 1.0  # width ratio of x (`ssljax.layers.width`)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        names = ("embed", "classes")
        options: dict[str, Any] = {"role": "head", "precision": EXACT, "width_ratio": self.input_ratio}
        dense = Dense(self.features, names, self.bias, zeros, **options, name="linear")
        return dense(x.astype(jnp.float32))


def _chain_flops(*widths: int) -> float:
    return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))


def _axes(i: int) -> tuple[str, str]:
    """Logical axes of the i-th kernel; columns and rows are split in turn, so two maps need one sum over devices."""
    return ("embed", "mlp") if i % 2 == 0 else ("mlp", "embed")


def normalize(x: jax.Array, axis: int) -> jax.Array:
    """x divided by its L2 norm along an axis; a zero vector stays zero, with finite gradients."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=axis, keepdims=True), 1e-12))
