"""From gradients to parameters: clipping, the rule, its learning rate at this step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ssljax.base.durations import RunLengths
from ssljax.train.optimizers import clip_by_global_norm


@dataclasses.dataclass(frozen=True)
class Optimization:
    """An optimiser rule with its schedule; `bind` ties it to the parameters of a run.

    Attributes:
        rule: an instance of an entry of `ssljax.train.optimizers.REGISTRY`.
        multiplier: step -> share of the peak learning rate, in [0, 1].
        lengths: batch size, dataset size and total steps of the run.
        axes, shapes: of the parameters, as `ssljax.train.state.abstract_variables` returns them; None before `bind`.
    """

    rule: Any
    multiplier: Callable[[jax.Array], jax.Array]
    lengths: RunLengths
    axes: Any = None
    shapes: Any = None

    def bind(self, axes: Any, shapes: Any) -> "Optimization":
        """Returns a copy that is bound to parameters with these logical axes and shapes."""
        return dataclasses.replace(self, axes=axes, shapes=shapes)

    def bound(self) -> Any:
        """The rule bound to the parameters."""
        return self.rule.bind(self.axes, self.shapes, self.lengths)

    def with_settings(self, changes: dict[str, Any]) -> "Optimization":
        """A copy with keys of the rule replaced (by traced values, in a stacked sweep)."""
        return dataclasses.replace(self, rule=dataclasses.replace(self.rule, **changes)) if changes else self

    def init(self, params: Any) -> Any:
        """The optimiser's state at step 0."""
        return self.bound().init(params)

    def state_axes(self) -> Any:
        """Logical axes of the optimiser's state."""
        return self.bound().state_axes()

    def update(self, grads: Any, state: Any, params: Any, step: jax.Array) -> tuple[Any, Any, dict[str, jax.Array]]:
        """(updates to add, new state, {"grad_norm": before clipping, "learning_rate"})."""
        bound = self.bound()
        grads, norm = clip_by_global_norm(bound.trainable(grads), self.rule.clip_norm)
        # The step of the run, not a count of updates: a skipped step advances the schedule all the same.
        rate = self.rule.peak_learning_rate(self.lengths.batch_size) * self.multiplier(step)
        updates, state = bound.update(grads, state, params, rate, step)
        return updates, state, {"grad_norm": norm, "learning_rate": rate}
