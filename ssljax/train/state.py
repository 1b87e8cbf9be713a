"""The state of a run: its fields, initial values and shardings."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ssljax import parallel
from ssljax.layers.roles import declarations
from ssljax.objectives.base import Objective, stream

LARGEST_SCALE = 2.0**24  # of the loss, with float16


class State(flax.struct.PyTreeNode):
    """The complete state of a run as plain arrays. The order of the data is not part of it: it follows from the step.

    Attributes:
        step: int32, number of steps done.
        seed: uint32, the root of all randomness on devices.
        params, extra: the variables of the objective.
        opt_state: the optimiser's state.
        ema: averaged parameters; None: without.
        hyper: {"objective.temperature": float32, ...}, settings that a stacked sweep varies; empty otherwise.
        meters: {name: (sum, weight)} over the steps since the last log point. A resumed run logs the same numbers.
        guard: int32 counts of non-finite steps, which are skipped. "skipped": in all; "streak": consecutive ones up to
            the last step; "longest": longest streak since the last log point; "last": number of the last one, or -1.
        loss_scale: {"value": factor of the loss, "good": finite steps since the last change}; None if nothing is
            computed in float16.
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
    """Returns the loss scale after a step: halved if it was not finite, doubled after 2,000 finite steps in a row.

    Micikevicius et al. 2018, "Mixed Precision Training". The scale stays between 1 and `LARGEST_SCALE`, from which it
    can return: half of infinity is infinity.
    """
    value, good = loss_scale["value"], jnp.where(ok, loss_scale["good"] + 1, 0)
    doubled = jnp.where(good == 2000, jnp.maximum(value, jnp.minimum(2 * value, LARGEST_SCALE)), value)
    halved = jnp.where(jnp.isfinite(value), jnp.maximum(value / 2, 1), LARGEST_SCALE)
    return {"value": jnp.where(ok, doubled, halved), "good": good % 2000}


def first_loss_scale() -> dict[str, jax.Array]:
    """The loss scale of step 0."""
    return {"value": jnp.float32(2**15), "good": jnp.int32(0)}


def computes_in_float16(jaxpr: Any) -> bool:
    """Returns True if a traced program converts a value to float16, as modules with float16 activations do.

    It sees every module of an objective (encoder, decoder, projector, heads), in whatever way it is built. Parameters
    are float32, so a module cannot compute in float16 without a conversion; data that are float16 need none.
    """
    return any(equation.params["new_dtype"] == jnp.float16 for equation in _conversions(jaxpr))


def _conversions(jaxpr: Any) -> Iterator[Any]:
    """The type conversions of a jaxpr, of loop bodies and called functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type":
            yield equation
        for inner in jax.tree.leaves(equation.params):
            inner = getattr(inner, "jaxpr", inner)  # a closed jaxpr holds an open one
            if hasattr(inner, "eqns"):
                yield from _conversions(inner)


def settings_of(group: str, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one group in `hyper`: {"objective.temperature": x} -> {"temperature": x} for "objective"."""
    return {k.removeprefix(group + "."): v for k, v in hyper.items() if k.startswith(group + ".")}


def with_hyper(objective: Objective, hyper: Mapping[str, Any]) -> Objective:
    """Returns the objective with the settings in `hyper`, which may be traced."""
    settings = settings_of("objective", hyper)
    return dataclasses.replace(objective, **settings) if settings else objective


def make_variables(objective: Objective, batch: Any) -> Callable[..., Any]:
    """Returns the pure function (seed, hyper) -> initial variables of an objective, in boxes with their declarations.

    Args:
        objective: the objective, with its model.
        batch: tree of `jax.ShapeDtypeStruct` (or arrays) of a training batch.
    """

    @functools.partial(jax.jit, inline=True)  # keeps the trace for all its users
    def variables(seed: Any, hyper: Mapping[str, Any]) -> Any:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
        with nn.logical_axis_rules(()):  # otherwise flax applies the rules for activations to boxed parameters
            return with_hyper(objective, hyper).init(stream(seed, 0, "init"), zeros)

    return variables


def abstract_variables(variables: Callable[..., Any], hyper: Mapping[str, float] | None = None) -> tuple[Any, Any]:
    """Shapes and axes of the objective's variables, without computing arrays.

    Args:
        variables: the function (seed, hyper) -> variables, from `make_variables`.
        hyper: settings that a stacked sweep varies; None: none.

    Returns:
        (shapes, axes), two trees like the variables. The axes of a leaf are a tuple of logical names; for a parameter
        with a declared role it is a `ssljax.layers.roles.ParameterAxes`, which also has role and height.
    """
    boxed = jax.eval_shape(variables, 0, {name: jax.ShapeDtypeStruct((), jnp.float32) for name in hyper or {}})
    return parallel.unboxed(boxed), declarations(boxed)


def as_arrays(hyper: Mapping[str, Any] | None) -> dict[str, jax.Array]:
    """Returns settings as float32 scalars, as a state holds them; None: none."""
    return {name: jnp.asarray(value, jnp.float32) for name, value in (hyper or {}).items()}


def make_init(
    objective: Objective,
    variables: Callable[..., Any],
    optimizer: Any,
    ema: bool,
    hyper: Mapping[str, float] | None = None,
    meters: Any = None,
    scaled: bool = False,
) -> Callable[..., State]:
    """Returns the pure function (seed, other values of `hyper`) -> State; the values may be left out.

    Args:
        objective: the objective, with its model.
        variables: the function (seed, hyper) -> variables, from `make_variables`.
        optimizer: a bound `ssljax.train.optimization.Optimization`.
        ema: True: keep averaged parameters.
        hyper: initial values of the settings that a stacked sweep varies; None: none.
        meters: shapes of the measurements of a step; None: no meters.
        scaled: True: keep a loss scale, for float16.
    """

    def init(seed: jax.Array, values: Mapping[str, Any] | None = None) -> State:
        settings = as_arrays(hyper if values is None else values)
        params, extra = parallel.unboxed(variables(seed, settings))
        params = with_hyper(objective, settings).project(params)
        return State(
            step=jnp.int32(0),
            seed=jnp.asarray(seed, jnp.uint32),
            params=params,
            extra=extra,
            opt_state=optimizer.with_settings(settings_of("optimizer", settings)).init(params),
            # A copy, because two leaves of a donated state must not share a buffer.
            ema=jax.tree.map(jnp.copy, params) if ema else None,
            hyper=settings,
            meters=jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), meters or {}),
            guard={"skipped": jnp.int32(0), "streak": jnp.int32(0), "longest": jnp.int32(0), "last": jnp.int32(-1)},
            loss_scale=first_loss_scale() if scaled else None,
        )

    return init


def state_shardings(
    state: State, variable_axes: Any, opt_axes: Any, mesh: Mesh, shard: parallel.Shard = "parameters"
) -> Any:
    """The sharding of each leaf of a state: variables and optimiser state by logical axes; all else is replicated.

    Args:
        state: a `State` of shapes.
        variable_axes: logical axes of (params, extra).
        opt_axes: logical axes of the optimiser's state.
        mesh: the mesh.
        shard: what the mesh axis "fsdp" splits.
    """

    def place(axes: Any, shapes: Any) -> Any:
        return parallel.shardings(axes, shapes, mesh)

    def place_read(axes: Any, shapes: Any) -> Any:
        """Shardings of what the forward pass reads."""
        return parallel.shardings(axes, shapes, mesh, () if shard == "parameters" else ("fsdp",))

    whole: Any = parallel.replicated(mesh)
    return State(
        step=whole,
        seed=whole,
        params=place_read(variable_axes.params, state.params),
        extra=place_read(variable_axes.extra, state.extra),
        opt_state=place(opt_axes, state.opt_state),
        ema=None if state.ema is None else place(variable_axes.params, state.ema),
        hyper=jax.tree.map(lambda _: whole, state.hyper),
        meters=jax.tree.map(lambda _: whole, state.meters),
        guard=jax.tree.map(lambda _: whole, state.guard),
        loss_scale=jax.tree.map(lambda _: whole, state.loss_scale),
    )
