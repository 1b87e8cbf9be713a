"""Convex and spatial mixtures of two examples of a batch and of their labels."""

import jax
import jax.numpy as jnp

from ssljax.views.keys import fold_in, uniforms


def mixup(keys: jax.Array, images: jax.Array, labels: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixup (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", eq. 1).

    Row i becomes l x_i + (1 - l) x_{i-1}, with l from Beta(alpha, alpha) for each row. The partner is the row before,
    which is a random example because batches are in random order.

    Args:
        keys: random keys [B].
        images: float [B, ...], any inputs that can be averaged.
        labels: [B, C] one-hot or soft.
        alpha: > 0.
    """
    share_B = _beta(keys, alpha)
    return _blend(images, share_B), _blend(labels, share_B)


def cutmix(keys: jax.Array, images: jax.Array, labels: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """CutMix (Yun et al. 2019, "CutMix: Regularization Strategy ...", eq. 1 and 2).

    A box of image i is replaced by the same box of image i - 1. Its area is a share 1 - l of the image, with l from
    Beta(alpha, alpha) for each row. It has the aspect of the image and a uniform centre. The box is rounded to
    whole pixels and cut off at the borders; the labels are mixed by the share of the image that is replaced.

    Args:
        keys: random keys [B].
        images: [B, H, W, C].
        labels: [B, C] one-hot or soft.
        alpha: > 0.
    """
    h, w = images.shape[1:3]
    side_B = jnp.sqrt(1 - _beta(fold_in(keys, 1), alpha))
    center_Bx2 = uniforms(keys, 2)

    def inside(n: int, center: jax.Array) -> jax.Array:
        low = jnp.round((center - side_B / 2) * n)[:, None]
        high = jnp.round((center + side_B / 2) * n)[:, None]
        return (jnp.arange(n) >= low) & (jnp.arange(n) < high)

    box_BxHxW = inside(h, center_Bx2[:, 0])[:, :, None] & inside(w, center_Bx2[:, 1])[:, None, :]
    mixed = jnp.where(box_BxHxW[..., None], jnp.roll(images, 1, axis=0), images)
    return mixed, _blend(labels, 1 - box_BxHxW.mean((1, 2)))


def _beta(keys: jax.Array, alpha: float) -> jax.Array:
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)


def _blend(x: jax.Array, share_B: jax.Array) -> jax.Array:
    share = share_B.reshape(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * jnp.roll(x, 1, axis=0)
