"""A teacher: the exponential moving average of the parameters of a student."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax.base import schema


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher whose parameters follow those of the student after every step."""

    momentum: float = schema.setting(0.996, ge=0, le=1, doc="decay of the moving average at step 0")
    schedule: Literal["cosine", "linear", "constant"] = schema.setting(
        "cosine", doc="course of the decay; 'cosine', 'linear': it rises to 1 over the run, on a half cosine or a line"
    )

    def follow(self, teacher: Any, student: Any, step: jax.Array, steps: int | None) -> Any:
        """Returns the teacher after a step of the student.

        Args:
            teacher, student: trees of parameters.
            step: number of the step.
            steps: length of the run; None: unknown, and the decay is constant.
        """
        if self.schedule == "linear" and steps:
            share = jnp.minimum(step / steps, 1.0)
            return ema(teacher, student, self.momentum + (1 - self.momentum) * share)
        return ema(teacher, student, momentum(self.momentum, step, steps if self.schedule == "cosine" else None))


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
