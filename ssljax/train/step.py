"""The train step: one function for all objectives, models and meshes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssljax.objectives.base import Ctx, Loss, Objective, rows_of, stream
from ssljax.objectives.teacher import ema
from ssljax.train import noise_scale
from ssljax.train.microbatch import gradients
from ssljax.train.state import State, settings_of, update_loss_scale, with_hyper
from ssljax.views import example_keys

Meters = dict[str, tuple[jax.Array, jax.Array]]  # {name: (sum, weight)}, float32 scalars
Step = Callable[[State, Any], tuple[State, dict[str, jax.Array]]]
Update = Callable[[State, Any], tuple[State, Meters]]


def make_train_step(update: Update) -> Step:
    """Returns the train step, a pure function (state, batch) -> (state, metrics).

    Jit it with the state donated. The same function runs on one device, on a mesh (with shardings) and under `vmap`
    over states. Its metrics are scalars of this step; `state.meters` adds up sums and weights until `pop_meters`.

    Args:
        update: the step without meters, from `make_update`.
    """

    def train_step(state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        meters = state.meters
        state, measured = update(state.replace(meters={}), batch)
        return state.replace(meters=jax.tree.map(jnp.add, meters, measured)), means(measured)

    return train_step


def make_update(
    objective: Objective,
    optimizer: Any,
    microbatches: int = 1,
    ema_decay: float | None = None,
    place: Callable[[Any], Any] = lambda grads: grads,
    whole_axes: tuple[str, ...] = (),
) -> Update:
    """Returns the step without meters: (state with no meters, batch) -> (state, measurements of this step).

    Args:
        objective: the objective, with its model; see `ssljax.objectives.base` for the contract.
        optimizer: a bound `ssljax.train.optimization.Optimization`.
        microbatches: number of slices in which the batch is encoded; the result does not depend on it.
        ema_decay: decay of averaged parameters; used only if `state.ema` is not None.
        place: lays gradients out on the mesh.
        whole_axes: mesh axes that split the rows of a slice, and neither parameters nor gradients.
    """

    # `jit` keeps the trace, which serves the shapes of the measurements, and then every program that has this step.
    @functools.partial(jax.jit, inline=True)
    def update(state: State, batch: Any) -> tuple[State, Meters]:
        current = with_hyper(objective, state.hyper)
        opt = optimizer.with_settings(settings_of("optimizer", state.hyper))

        # Inputs are a pure function of (seed, step, row, batch): slices, meshes and restarts do not change them.
        key = stream(state.seed, state.step, "views")
        ctx = Ctx(key=stream(state.seed, state.step, "encode"), step=state.step, row=rows_of(batch), train=True)
        batch = current.mixed(example_keys(key, ctx.row), batch, state.step)

        def inputs_of(batch: Any, rows: jax.Array) -> Any:
            return current.views(example_keys(key, rows), current.prepare(batch), state.step)

        scale = None if state.loss_scale is None else state.loss_scale["value"]
        variables = (state.params, state.extra)
        given = (current, *variables, batch, inputs_of, ctx, microbatches, scale, whole_axes)
        grads, value, loss, parts = gradients(*given, trained=opt.bound().trainable)

        updates, opt_state, health = opt.update(place(grads), state.opt_state, state.params, state.step)
        # Frozen parameters, and their averages, stay bitwise unchanged, even beyond a bound.
        params = current.project(optax.apply_updates(state.params, updates))
        params = opt.keep_frozen(params, state.params, state.step)
        extra = current.update(state.extra, params, loss.sums, loss.rows, state.step)
        averaged = state.ema
        if averaged is not None and ema_decay is not None:
            averaged = current.project(ema(averaged, params, ema_decay))
            averaged = opt.keep_frozen(averaged, state.ema, state.step)

        # A non-finite step changes only step counter, guard and loss scale. The new values are checked too, because an
        # update with finite gradients may overflow.
        ok = jnp.isfinite(value) & jnp.isfinite(health["grad_norm"]) & _finite((params, extra))
        old = (state.params, state.extra, state.opt_state, state.ema)
        params, extra, opt_state, averaged = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old), (params, extra, opt_state, averaged), old
        )
        state = state.replace(
            step=state.step + 1,
            params=params,
            extra=extra,
            opt_state=opt_state,
            ema=averaged,
            guard=_count_skipped(state.guard, ok, state.step),
            loss_scale=None if state.loss_scale is None else update_loss_scale(state.loss_scale, ok),
        )
        noise = (
            {} if current.coupled else {noise_scale.NAME: noise_scale.meter(parts, len(ctx.row), health["grad_norm"])}
        )
        return state, _measurements(value, loss, health, noise, ok)

    return update


def means(meters: Meters) -> dict[str, jax.Array]:
    """Returns {name: sum / weight} for {name: (sum, weight)}; NaN if the weight is 0."""
    return {name: jnp.where(w > 0, s / jnp.where(w > 0, w, 1), jnp.nan) for name, (s, w) in meters.items()}


def pop_meters(state: State) -> tuple[State, dict[str, jax.Array]]:
    """Returns the state with empty meters, and the means of the meters since the last call with the guard counts."""
    numbers = {**means(state.meters), **{f"guard/{k}": v for k, v in state.guard.items()}}
    guard = {**state.guard, "longest": state.guard["streak"]}
    return state.replace(meters=jax.tree.map(jnp.zeros_like, state.meters), guard=guard), numbers


def _measurements(value: jax.Array, loss: Loss, health: dict[str, jax.Array], more: Meters, ok: jax.Array) -> Meters:
    """Sums and weights of loss, loss terms (if several), metrics and optimiser health; all 0 for a skipped step."""
    one = jnp.float32(1)
    terms = {f"loss/{name}": (s, w) for name, (_, s, w) in loss.terms.items()} if len(loss.terms) > 1 else {}
    measured = {
        "loss": (value, one),
        **terms,
        **loss.metrics,
        **{name: (v, one) for name, v in health.items()},
        **more,
    }
    return jax.tree.map(lambda x: jnp.where(ok, x, 0).astype(jnp.float32), measured)


def _count_skipped(guard: dict[str, jax.Array], ok: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
    streak = jnp.where(ok, 0, guard["streak"] + 1)
    return {
        "skipped": guard["skipped"] + ~ok,
        "streak": streak,
        "longest": jnp.maximum(guard["longest"], streak),
        "last": jnp.where(ok, guard["last"], step),
    }


def _finite(tree: Any) -> jax.Array:
    """Returns True if all floating point leaves are finite. (A sum of squares could overflow for finite leaves.)"""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]).all() if leaves else jnp.bool_(True)
