"""The update of parameters from gradients: clipping, optimiser rule and learning rate schedule."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ssljax.base.durations import RunLengths
from ssljax.train.optimizers import clip_by_global_norm


@dataclasses.dataclass(frozen=True)
class Optimization:
    """An optimiser with its schedule; `bind` adds the axes and shapes of the parameters.

    Attributes:
        rule: an instance of a class of `ssljax.train.optimizers.REGISTRY`.
        multiplier: step -> learning rate as a share of the peak, in [0, 1].
        lengths: batch size, dataset size and total steps of the run.
        axes, shapes: axes and shapes of the parameters, as returned by `ssljax.train.state.abstract_variables`; None
            before `bind`.
    """

    rule: Any
    multiplier: Callable[[jax.Array], jax.Array]
    lengths: RunLengths
    axes: Any = None
    shapes: Any = None

    def bind(self, axes: Any, shapes: Any) -> "Optimization":
        """Returns a copy for parameters with these logical axes and shapes."""
        return dataclasses.replace(self, axes=axes, shapes=shapes)

    def bound(self) -> Any:
        """The optimiser rule for the parameters; `bind` must have been called."""
        return self.rule.bind(self.axes, self.shapes, self.lengths)

    def with_settings(self, changes: dict[str, Any]) -> "Optimization":
        """Returns a copy with other values of keys of the rule; a stacked sweep passes traced values."""
        return dataclasses.replace(self, rule=dataclasses.replace(self.rule, **changes)) if changes else self

    def init(self, params: Any) -> Any:
        """The optimiser's state at step 0."""
        return self.bound().init(params)

    def state_axes(self) -> Any:
        """Logical axes of the optimiser's state."""
        return self.bound().state_axes()

    def keep_frozen(self, new: Any, old: Any, step: jax.Array) -> Any:
        """Returns the tree `new` with the leaves of `old` where parameters are frozen at this step."""
        return self.bound().keep_frozen(new, old, step)

    def update(self, grads: Any, state: Any, params: Any, step: jax.Array) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Computes the updates of one step.

        Args:
            grads, params: trees like the parameters.
            state: the optimiser's state.
            step: the step of the run.

        Returns:
            (updates to add to the parameters, new state, {"grad_norm": global norm before clipping, "learning_rate"}).
        """
        bound = self.bound()
        grads, norm = clip_by_global_norm(bound.trainable(grads), self.rule.clip_norm)
        # The schedule follows the step of the run, not the number of updates, so skipped steps advance it too.
        rate = self.rule.peak_learning_rate(self.lengths.batch_size) * self.multiplier(step)
        updates, state = bound.update(grads, state, params, rate, step)
        return updates, state, {"grad_norm": norm, "learning_rate": rate}
