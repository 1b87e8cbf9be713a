"""The state of a run: its content, initial values and shardings."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ssljax import parallel
from ssljax.layers.roles import declarations
from ssljax.objectives.base import Objective, stream


class State(flax.struct.PyTreeNode):
    """The complete state of a run as plain arrays; the order of the data is a function of the step.

    Attributes:
        step: int32, the number of the next step.
        seed: uint32, the root of all device randomness.
        params, extra: the variables of the objective.
        opt_state: the state of the optimiser.
        ema: averaged parameters, or None.
        hyper: {"objective.temperature": float32, ...}, settings that a stacked sweep varies; empty otherwise.
        meters: {name: (sum, weight)} since the last log point, so that a resumed run logs the same numbers.
        guard: counts of non-finite steps: "skipped" (total), "streak" (current run), "longest" (longest run since the
            last log point), "last" (number of the last one).
        loss_scale: with float16 activations {"value": factor of the loss, "good": finite steps since it changed};
            otherwise None.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    extra: Any
    opt_state: Any
    ema: Any
    hyper: dict[str, jax.Array]
    meters: dict[str, tuple[jax.Array, jax.Array]]
    guard: dict[str, jax.Array]
    loss_scale: dict[str, jax.Array] | None = None


def update_loss_scale(loss_scale: dict[str, jax.Array], ok: jax.Array) -> dict[str, jax.Array]:
    """Halves the scale after a non-finite step, doubles it after 2,000 finite ones (Micikevicius et al. 2018)."""
    value, good = loss_scale["value"], jnp.where(ok, loss_scale["good"] + 1, 0)
    value = jnp.where(ok, jnp.where(good == 2000, 2 * value, value), jnp.maximum(value / 2, 1))
    return {"value": value, "good": good % 2000}


def computes_in_float16(part: Any) -> bool:
    """Returns True if a module, or a configuration inside it, asks for float16 activations."""
    if not dataclasses.is_dataclass(part):
        return False
    fields = [field.name for field in dataclasses.fields(part) if field.name != "parent" and hasattr(part, field.name)]
    return getattr(part, "dtype", None) == "float16" or any(computes_in_float16(getattr(part, f)) for f in fields)


def abstract_variables(objective: Objective, batch: Any) -> tuple[Any, Any]:
    """Shapes and axes of the objective's variables, without computing anything.

    Args:
        batch: tree of `jax.ShapeDtypeStruct` (or arrays) of a training batch.

    Returns:
        (shapes, axes), trees like the variables. The axes of a leaf are a tuple of logical names, which sharding rules
        read; where a module declared the parameter, a `ssljax.layers.roles.ParameterAxes`, whose role and height
        optimisers read.
    """
    boxed = jax.eval_shape(lambda: _variables(objective, 0, batch))
    return parallel.unboxed(boxed), declarations(boxed)


def make_init(
    objective: Objective,
    optimizer: Any,
    batch: Any,
    ema: bool,
    hyper: Mapping[str, float] | None = None,
    meters: Any = None,
) -> Callable[[Any], State]:
    """Returns the pure function seed -> State.

    Args:
        objective: with its model.
        optimizer: bound to the parameters' axes: has `init(params)`.
        batch: tree of shapes of a training batch.
        ema: keep averaged parameters.
        hyper: initial values of the settings that a stacked sweep varies.
        meters: shapes of the measurements of a step, which start at zero; None: no meters.
    """

    half = computes_in_float16(objective.model)

    def init(seed: jax.Array) -> State:
        variables = parallel.unboxed(_variables(objective, seed, batch))
        return State(
            step=jnp.int32(0),
            seed=jnp.asarray(seed, jnp.uint32),
            params=variables.params,
            extra=variables.extra,
            opt_state=optimizer.init(variables.params),
            # A copy: donated buffers must not be shared between two parts of the state.
            ema=jax.tree.map(jnp.copy, variables.params) if ema else None,
            hyper={k: jnp.float32(v) for k, v in (hyper or {}).items()},
            meters=jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), meters or {}),
            guard={"skipped": jnp.int32(0), "streak": jnp.int32(0), "longest": jnp.int32(0), "last": jnp.int32(-1)},
            loss_scale={"value": jnp.float32(2**15), "good": jnp.int32(0)} if half else None,
        )

    return init


def state_shardings(state: State, variable_axes: Any, opt_axes: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of a state (of shapes): variables by their logical axes, counters replicated."""

    def place(axes: Any, shapes: Any) -> Any:
        return parallel.shardings(axes, shapes, mesh)

    whole: Any = parallel.replicated(mesh)
    return State(
        step=whole,
        seed=whole,
        params=place(variable_axes.params, state.params),
        extra=place(variable_axes.extra, state.extra),
        opt_state=place(opt_axes, state.opt_state),
        ema=None if state.ema is None else place(variable_axes.params, state.ema),
        hyper=jax.tree.map(lambda _: whole, state.hyper),
        meters=jax.tree.map(lambda _: whole, state.meters),
        guard=jax.tree.map(lambda _: whole, state.guard),
        loss_scale=jax.tree.map(lambda _: whole, state.loss_scale),
    )


def _variables(objective: Objective, seed: Any, batch: Any) -> Any:
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
    with nn.logical_axis_rules(()):  # boxes would be constrained by the rules for activations
        return objective.init(stream(seed, 0, "init"), zeros)
