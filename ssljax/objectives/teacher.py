"""The exponential moving average of a student, used as its teacher."""

from typing import Any

import jax
import jax.numpy as jnp


def momentum(base: float, step: jax.Array, steps: int | None) -> jax.Array:
    """Momentum that rises from `base` to 1 on a half cosine over the run (Grill et al. 2020, section 3.2).

    It stays `base` if the length of the run (`steps`) is None.
    """
    if not steps:
        return jnp.float32(base)
    return 1 - (1 - base) * (jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)) + 1) / 2


def ema(teacher: Any, student: Any, decay: jax.Array) -> Any:
    """decay * teacher + (1 - decay) * student, leaf by leaf."""
    return jax.tree.map(lambda t, s: decay * t + (1 - decay) * s, teacher, student)
