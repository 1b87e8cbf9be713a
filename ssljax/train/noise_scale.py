"""The gradient noise scale: the batch size up to which more examples in a batch save as many steps.

B = tr(S) / |G|^2, with the gradient G of the expected loss and the covariance S of the gradients of single examples
(McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", eq. 2.8, B_simple). Both are estimated without
bias from the squared norms of gradients of two batch sizes (appendix A.1): the whole batch, and the parts of it whose
gradients a step computes anyway, since it cuts the batch into slices (`microbatches`) and may keep the gradients of
devices apart. The two estimates are averaged over steps before they are divided.
"""

import jax
import jax.numpy as jnp

from ssljax.objectives.base import Objective
from ssljax.train.microbatch import Parts

NAME = "gradient_noise_scale"


def meter(parts: Parts | None, rows: int, norm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns estimates of (tr(S), |G|^2) from one step, float32 scalars; zeros if there are no parts.

    Summed over steps, their ratio is the noise scale in examples. Single estimates of |G|^2 may be negative.

    Args:
        parts: the gradients of parts of the batch.
        rows: examples in the batch.
        norm: norm of the gradient of the whole batch.
    """
    if parts is None:
        return jnp.float32(0), jnp.float32(0)
    small, whole = rows / parts.number, jnp.square(norm)
    noise = (parts.square - whole) / (1 / small - 1 / rows)
    signal = (rows * whole - small * parts.square) / (rows - small)
    return noise, signal


def missing(objective: Objective, microbatches: int) -> str | None:
    """Returns the reason why a run does not measure the noise scale; None if it does."""
    if objective.coupled:
        return "the loss compares examples, so there is no gradient of one example"
    if microbatches == 1:
        return "a step has one gradient; set microbatches to 2 or more"
    return None
