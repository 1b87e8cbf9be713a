"""The state of a run, how it is born sharded, and what is added up between two log points."""

import dataclasses
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
    """Everything that a run is, as plain arrays: with the data's order a function of the step, nothing else is needed.

    step: int32, the number of the next step. seed: uint32, the root of all device randomness.
    params, extra: the objective's variables. opt_state: the optimiser's. ema: averaged parameters, or None.
    hyper: {"objective.temperature": float32, ...}, the settings that a stacked sweep varies; empty otherwise.
    meters: {name: (sum, weight)} since the last log point, so that a resumed run logs the same numbers.
    guard: counts of non-finite steps: {"skipped", "streak": in a row until now, "longest": such row since the last log
        point, "last": the last such step}.
    loss_scale: where activations are float16: {"value": what the loss is multiplied with, "good": finite steps since it
        changed}; else None.
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


def grown(loss_scale: dict[str, jax.Array], ok: jax.Array) -> dict[str, jax.Array]:
    """The scale after a step: halved if that was not finite, doubled after 2,000 that were (Micikevicius 2018)."""
    value, good = loss_scale["value"], jnp.where(ok, loss_scale["good"] + 1, 0)
    value = jnp.where(ok, jnp.where(good == 2000, 2 * value, value), jnp.maximum(value / 2, 1))
    return {"value": value, "good": good % 2000}


def computes_in_float16(part: Any) -> bool:
    """Does a module, or a configuration in it, say that activations are float16?"""
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
    objective: Objective, optimizer: Any, batch: Any, ema: bool, hyper: dict[str, float] | None = None
) -> Any:
    """The pure function seed -> State.

    Args:
        optimizer: bound to the parameters' axes: has `init(params)`.
        batch: tree of shapes of a training batch.
        ema: keep averaged parameters.
        hyper: initial values of the settings that a stacked sweep varies.
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
            meters={},
            guard={"skipped": jnp.int32(0), "streak": jnp.int32(0), "longest": jnp.int32(0), "last": jnp.int32(-1)},
            loss_scale={"value": jnp.float32(2**15), "good": jnp.int32(0)} if half else None,
        )

    return init


def state_shardings(state: State, variable_axes: Any, opt_axes: Any, mesh: Mesh) -> Any:
    """The tree of shardings of a state (of shapes): variables by their logical axes, counters replicated."""

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
