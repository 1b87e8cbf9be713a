"""Images as sequences of patches, and back."""

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] to [B, N, patch * patch * C]: N = (H / patch)(W / patch) patches in raster order.

    Within a patch: rows, then columns, then channels (the order of He et al. 2022).

    Raises:
        UserError: H or W is not divisible by `patch`.
    """
    b, h, w, c = images.shape
    if h % patch or w % patch:
        raise UserError(f"images of {h} x {w} do not divide into patches of {patch} x {patch}")
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return jnp.swapaxes(x, 2, 3).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """The inverse of `patchify`: [B, N, patch * patch * C] to [B, H, W, C], `shape` = (H, W, C).

    Raises:
        UserError: the patches are not those of such an image.
    """
    b, n, d = patches.shape
    h, w, c = shape
    patch = round((d / c) ** 0.5)
    if patch * patch * c != d or h % patch or w % patch or n * patch * patch != h * w:
        raise UserError(f"{n} patches of {d} values do not make an image of {h} x {w} x {c}")
    x = patches.reshape(b, h // patch, w // patch, patch, patch, c)
    return jnp.swapaxes(x, 2, 3).reshape(b, h, w, c)


def normalize_patches(patches: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) of each patch: MAE's target (He et al. 2022, section 3).

    patches: [B, N, D]. The variance is the unbiased one (over D - 1), as in the authors' code.
    """
    mean = patches.mean(-1, keepdims=True)
    variance = patches.var(-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + epsilon)
