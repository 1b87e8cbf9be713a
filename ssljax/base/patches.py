"""Images as sequences of patches, and back."""

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """Cuts images [B, H, W, C] into patches [B, N, patch * patch * C], N = (H / patch)(W / patch) in raster order.

    The values of a patch are ordered by row, then column, then channel, as in He et al. 2022.

    Raises:
        UserError: H or W is not divisible by `patch`.
    """
    b, h, w, c = images.shape
    if h % patch or w % patch:
        raise UserError(f"patches: got images of {h} x {w}, must be divisible into patches of {patch} x {patch}")
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return jnp.swapaxes(x, 2, 3).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Inverse of `patchify`: patches [B, N, patch * patch * C] to images [B, H, W, C], `shape` = (H, W, C).

    Raises:
        UserError: the patches do not make up images of this shape.
    """
    b, n, d = patches.shape
    h, w, c = shape
    patch = round((d / c) ** 0.5)
    if patch * patch * c != d or h % patch or w % patch or n * patch * patch != h * w:
        raise UserError(f"patches: got {n} of {d} values, which do not make up an image of {h} x {w} x {c}")
    x = patches.reshape(b, h // patch, w // patch, patch, patch, c)
    return jnp.swapaxes(x, 2, 3).reshape(b, h, w, c)


def normalize_patches(patches: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Returns (x - mean) / sqrt(var + epsilon) of each patch, the target of MAE (He et al. 2022, section 3).

    patches: [B, N, D]. The variance is unbiased (divided by D - 1), as in the authors' code; 0 if D = 1.
    """
    mean, deviation = _moments(patches, epsilon)
    return (patches - mean) / deviation


def unnormalize_patches(patches: jax.Array, like: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Inverse of `normalize_patches`: gives patches [B, N, D] the mean and the variance of the patches `like`."""
    mean, deviation = _moments(like, epsilon)
    return patches * deviation + mean


def _moments(patches: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    variance = patches.var(-1, keepdims=True, ddof=min(1, patches.shape[-1] - 1))
    return patches.mean(-1, keepdims=True), jnp.sqrt(variance + epsilon)
