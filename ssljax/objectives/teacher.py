"""A teacher: the exponential moving average of the parameters of a student."""

from typing import Any

import jax
import jax.numpy as jnp


def momentum(base: float, step: jax.Array, steps: int | None) -> jax.Array:
    """Decay of the moving average, which rises from `base` to 1 on a half cosine (Grill et al. 2020, section 3.2).

    Args:
        base: decay at step 0.
        step: number of the step.
        steps: length of the run; None: unknown, and the decay stays `base`.
    """
    if not steps:
        return jnp.float32(base)
    return 1 - (1 - base) * (jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)) + 1) / 2


def ema(teacher: Any, student: Any, decay: jax.Array | float) -> Any:
    """Returns decay * teacher + (1 - decay) * student for each leaf."""
    return jax.tree.map(lambda t, s: decay * t + (1 - decay) * s, teacher, student)
