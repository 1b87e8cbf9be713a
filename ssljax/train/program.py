"""A program: the pure functions of a run on a mesh, with the shapes and shardings of its state.

It needs no data, no config and no arrays, only an objective, an optimisation, a mesh and the shapes of a batch. Runs,
tests, benchmarks, sweeps under `vmap` and plans for absent hardware all build their step here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from ssljax import data, parallel
from ssljax.objectives.base import Objective, Variables
from ssljax.train.optimization import Optimization
from ssljax.train.state import State, abstract_variables, make_init, state_shardings
from ssljax.train.step import Step, make_train_step, make_update


@dataclasses.dataclass(frozen=True)
class Program:
    """Initialisation and train step of an objective on a mesh, to be jitted or mapped.

    Attributes:
        objective: with its model.
        optimization: bound to the parameters.
        mesh: where the state lives. Platform and device kind are those of its devices.
        init: seed -> State, meters included.
        step: (state, batch) -> (state, metrics).
        shapes: the state as `jax.ShapeDtypeStruct`s.
        shardings: a tree like the state, with the sharding of each leaf.
        axes: logical axes of the variables (params, extra).
    """

    objective: Objective
    optimization: Optimization
    mesh: Mesh
    init: Callable[[Any], State]
    step: Step
    shapes: State
    shardings: State
    axes: Variables

    @classmethod
    def build(
        cls,
        objective: Objective,
        optimization: Optimization,
        mesh: Mesh,
        batch_shapes: Any,
        microbatches: int = 1,
        ema: float | None = None,
        hyper: Mapping[str, float] | None = None,
    ) -> "Program":
        """Returns the program of an objective; nothing touches a device.

        Args:
            objective: with its model.
            optimization: rule, schedule and lengths, not yet bound to parameters.
            mesh: of present or absent devices.
            batch_shapes: tree of `jax.ShapeDtypeStruct` (or arrays) of a global batch.
            microbatches: number of slices in which the batch is encoded.
            ema: decay of averaged parameters; None keeps none.
            hyper: initial values of the settings that a stacked sweep varies.
        """
        with parallel.mesh_context(mesh):
            shapes, axes = abstract_variables(objective, batch_shapes)
            optimization = optimization.bind(axes.params, shapes.params)
            without_meters = make_init(objective, optimization, batch_shapes, ema is not None, hyper)
            update = make_update(objective, optimization, microbatches, ema)
            _, meters = jax.eval_shape(update, jax.eval_shape(without_meters, 0), batch_shapes)
            init = make_init(objective, optimization, batch_shapes, ema is not None, hyper, meters)
            state = jax.eval_shape(init, 0)
        step = make_train_step(objective, optimization, microbatches, ema)
        shardings = state_shardings(state, axes, optimization.state_axes(), mesh)
        return cls(objective, optimization, mesh, init, step, state, shardings, axes)

    @property
    def device_kind(self) -> str:
        """The kind of the mesh's devices, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite"."""
        return self.mesh.devices.flat[0].device_kind

    def put(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Places a host batch on the mesh, its rows split over the devices; ids stay on the host."""
        sharding = parallel.batch_sharding(self.mesh)
        return jax.tree.map(lambda x: jax.device_put(x, sharding), data.device_batch(batch))

    def jitted_init(self) -> Callable[[Any], State]:
        """seed -> State. Parameters are born sharded: no device ever holds more than its part."""
        return jax.jit(self.init, out_shardings=self.shardings)

    def jitted_variables(self) -> Callable[[Any], Variables]:
        """seed -> the initial (params, extra) alone: the untrained control."""

        def variables(seed: Any) -> Variables:
            state = self.init(seed)
            return Variables(state.params, state.extra)

        return jax.jit(variables, out_shardings=Variables(self.shardings.params, self.shardings.extra))

    def jitted_step(self) -> Step:
        """The compiled step; it consumes the state that it is given."""
        return jax.jit(self.step, donate_argnums=0, out_shardings=(self.shardings, None))

    def target(self) -> State:
        """The state as shapes with shardings, into which a checkpoint is restored."""
        return with_shardings(self.shapes, self.shardings)

    def layout(self) -> str:
        """One line: the share of the parameters on each device, and the dimensions that the mesh does not divide."""
        return parallel.sharding_report(self.axes.params, self.shapes.params, self.mesh)


def variable_shapes(objective: Objective, batch_shapes: Any, mesh: Mesh | None = None) -> Variables:
    """Shapes of (params, extra), with their shardings on a mesh if one is given: the target of a restored model."""
    shapes, axes = abstract_variables(objective, batch_shapes)
    return shapes if mesh is None else with_shardings(shapes, parallel.shardings(axes, shapes, mesh))


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of `jax.ShapeDtypeStruct` with the sharding of each leaf filled in."""
    return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings)


def batch_shapes(spec: data.DataSpec, batch_size: int) -> Any:
    """The shapes of a global batch of the data, as the devices see it."""
    zeros = data.device_batch(spec.zeros(batch_size))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), zeros)
