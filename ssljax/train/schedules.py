"""Learning rate schedules: the learning rate as a share of its peak, in [0, 1].

A schedule is a pure function of the step: `schedule.resolve(lengths).shape(step, total)`. It is evaluated inside the
jitted step from the step counter of the state, so skipped (non-finite) steps advance it, and a resumed run continues
it.

In a warm-up of W steps, all schedules rise as (step + 1) / W over steps 0..W-1. The first rate is not 0, so W = 0 and
W = 1 both mean no warm-up. After the warm-up a schedule is a function of step - W; it is exactly 1 at step W.
"""

import dataclasses
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from ssljax.base import durations
from ssljax.base.durations import Duration, RunLengths
from ssljax.base.errors import UserError
from ssljax.base.registry import Registry
from ssljax.base.schema import setting

REGISTRY = Registry(
    "schedule",
    {name.lower(): f"ssljax.train.schedules:{name}" for name in ("Constant", "Cosine", "Linear", "Rsqrt", "WSD")},
    has=("resolve", "shape"),
)

_FINAL = "share of the peak at the end of the run"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Base class of schedules: the warm-up, and the conversion of durations to steps."""

    DURATIONS: ClassVar[tuple[str, ...]] = ("warmup",)  # fields that hold durations
    ENDS: ClassVar[bool] = False  # True: the schedule reaches a final value at the end of the run

    warmup: Duration = setting(0, doc="duration of the linear rise to the peak; 0: no warm-up")

    def validate(self) -> None:
        for name in self.DURATIONS:
            durations.parse(getattr(self, name), name)

    @property
    def total_dependent(self) -> bool:
        """True if the rate depends on the length of the run, which is then part of the identity of the run."""
        return self.ENDS or any(durations.depends_on_total(getattr(self, name)) for name in self.DURATIONS)

    def resolve(self, lengths: RunLengths, path: str = "schedule") -> Self:
        """Returns a copy with all durations in steps.

        Args:
            lengths: batch size, dataset size and total steps of the run.
            path: dotted path of the group, for messages.

        Raises:
            UserError: a duration cannot be converted to steps, or the phases are longer than the run.
        """
        found = {name: durations.steps(getattr(self, name), lengths, f"{path}.{name}") for name in self.DURATIONS}
        if self.ENDS and lengths.total_steps is not None and sum(found.values()) > lengths.total_steps:
            phases = " + ".join(f"{name} {steps}" for name, steps in found.items())
            raise UserError(f"{path}.{self.DURATIONS[0]}: {phases} steps, must fit in the run's {lengths.total_steps}")
        return dataclasses.replace(self, **found)

    def shape(self, step: jax.Array | int, total: int) -> jax.Array:
        """The share of the peak rate at a step, a float32 scalar in [0, 1]. Call `resolve` before.

        Args:
            step: number of the step from 0, may be traced.
            total: number of steps of the run.
        """
        warmup: Any = self.warmup
        step = jnp.asarray(step, jnp.float32)
        rise = (step + 1) / max(warmup, 1)
        return jnp.where(step < warmup, rise, self.after_warmup(jnp.maximum(step - warmup, 0), total - warmup))

    def after_warmup(self, step: jax.Array, total: int) -> jax.Array:
        """The share of the peak rate after the warm-up.

        Args:
            step: number of steps since the warm-up, float32.
            total: number of steps of the run without the warm-up.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The peak rate after the warm-up."""

    def after_warmup(self, step, total):
        return jnp.ones_like(step)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2017, SGDR, equation 5, one period)."""

    ENDS: ClassVar[bool] = True

    final: float = setting(0.0, ge=0, le=1, doc=_FINAL)

    def after_warmup(self, step, total):
        return self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * _share(step, total)))


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from 1 to `final`."""

    ENDS: ClassVar[bool] = True

    final: float = setting(0.0, ge=0, le=1, doc=_FINAL)

    def after_warmup(self, step, total):
        return 1 - (1 - self.final) * _share(step, total)


@dataclasses.dataclass(frozen=True)
class Rsqrt(Schedule):
    """Inverse square root: sqrt(timescale / (timescale + n)) at n steps after the warm-up.

    Zhai et al. 2022, "Scaling Vision Transformers". With timescale = warmup it is the schedule of Vaswani et al. 2017,
    equation 3, with peak 1. It does not depend on the length of the run, so a run can be prolonged.
    """

    DURATIONS: ClassVar[tuple[str, ...]] = ("warmup", "timescale")

    timescale: Duration = setting(
        "10k steps", doc="duration t of the decay; the rate falls to half the peak at 3 t after the warm-up"
    )

    def validate(self) -> None:
        super().validate()
        if durations.parse(self.timescale, "timescale")[0] == 0:
            raise ValueError(f"timescale: got {self.timescale!r}, must be > 0")

    def after_warmup(self, step, total):
        return jnp.sqrt(self.timescale / (self.timescale + step))


@dataclasses.dataclass(frozen=True)
class WSD(Schedule):
    """Warm-up, stable, decay: the peak rate until the last phase, which decays to `final`.

    The name is from Hu et al. 2024, "MiniCPM"; the form "1-sqrt" from Hägele et al. 2024, "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations", section 3.
    """

    DURATIONS: ClassVar[tuple[str, ...]] = ("warmup", "decay")
    ENDS: ClassVar[bool] = True

    decay: Duration = setting("20%", doc="duration of the last phase, which ends with the run")
    form: Literal["linear", "1-sqrt"] = setting(
        "1-sqrt", doc="form of the decay at a share s of the last phase; 'linear': 1 - s, '1-sqrt': 1 - sqrt(s)"
    )
    final: float = setting(0.0, ge=0, le=1, doc=_FINAL)

    def after_warmup(self, step, total):
        done = _share(step - (total - self.decay), self.decay)
        fall = done if self.form == "linear" else jnp.sqrt(done)
        return 1 - (1 - self.final) * fall


def _share(step: jax.Array, total: Any) -> jax.Array:
    """Step / total, clipped to [0, 1]."""
    return jnp.clip(step / max(total, 1), 0.0, 1.0)
