"""Programs: initialisation and train step of a run on a mesh, with the shapes and shardings of its state.

A program is built from an objective, an optimisation, a mesh and the shapes of a batch, without data, config or arrays.
Runs, tests, benchmarks, sweeps under `vmap` and plans for absent hardware all use it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ssljax import data, parallel
from ssljax.objectives.base import Objective, Variables
from ssljax.parallel import flags
from ssljax.parallel.hardware import platform_of
from ssljax.train.optimization import Optimization
from ssljax.train.state import (
    State,
    abstract_variables,
    computes_in_float16,
    first_loss_scale,
    make_init,
    make_variables,
    state_shardings,
)
from ssljax.train.step import Step, make_train_step, make_update


@dataclasses.dataclass(frozen=True)
class Program:
    """Pure functions to initialise and to train an objective on a mesh; see `build`.

    Attributes:
        objective: the objective, with its model.
        optimization: the optimisation, bound to the parameters.
        mesh: the mesh that holds the state; its devices decide on platform and device kind.
        init: seed -> State, with meters; or (seed, hyper) -> State, with other values of the settings that vary.
        step: (state, batch) -> (state, metrics).
        shapes: a `State` of `jax.ShapeDtypeStruct`.
        shardings: a `State` of shardings.
        axes: logical axes of the variables (params, extra).
        deterministic: True: compiled for GPUs without kernels whose results differ from call to call.
        compiled: functions that were compiled, by name, for all users of this program.
    """

    objective: Objective
    optimization: Optimization
    mesh: Mesh
    init: Callable[..., State]
    step: Step
    shapes: State
    shardings: State
    axes: Variables
    deterministic: bool = False
    compiled: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

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
        deterministic: bool = False,
        shard: parallel.Shard = "parameters",
    ) -> "Program":
        """Builds the program of an objective without touching a device.

        Args:
            objective: the objective, with its model.
            optimization: rule, schedule and lengths; `bind` need not have been called.
            mesh: a mesh, also of absent devices.
            batch_shapes: tree of `jax.ShapeDtypeStruct` (or arrays) of a global batch.
            microbatches: number of slices in which the batch is encoded.
            ema: decay of averaged parameters; None: no averaged parameters.
            hyper: {"objective.temperature": initial value, ...}, settings that a stacked sweep varies; None: none.
            deterministic: compile for GPUs without kernels whose results differ from call to call.
            shard: what the mesh axis "fsdp" splits.

        Raises:
            UserError: settings of the optimisation do not fit the parameters.
        """
        with parallel.mesh_context(mesh):
            variables = make_variables(objective, batch_shapes)
            shapes, axes = abstract_variables(variables, hyper)
            optimization = optimization.bind(axes.params, shapes.params)
            state = jax.eval_shape(make_init(objective, variables, optimization, ema is not None, hyper), 0)
            place = _placing(axes, shapes, mesh, shard)
            whole_axes = _whole_axes(objective, mesh, shard, batch_shapes, microbatches)
            update = make_update(objective, optimization, microbatches, ema, place, whole_axes)
            # The shapes have shardings, since the trace serves the step too.
            arrays = with_shardings(state, state_shardings(state, axes, optimization.state_axes(), mesh, shard))
            batch = with_shardings(batch_shapes, jax.tree.map(lambda _: parallel.batch_sharding(mesh), batch_shapes))
            traced, (_, meters) = jax.make_jaxpr(update, return_shape=True)(arrays, batch)
            scaled = computes_in_float16(traced.jaxpr)
            state = state.replace(meters=meters, loss_scale=jax.eval_shape(first_loss_scale) if scaled else None)
            init = make_init(objective, variables, optimization, ema is not None, hyper, meters, scaled)
        step = make_train_step(update)
        shardings = state_shardings(state, axes, optimization.state_axes(), mesh, shard)
        return cls(objective, optimization, mesh, init, step, state, shardings, axes, deterministic)

    @property
    def device_kind(self) -> str:
        """The kind of the mesh's devices, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite"."""
        return self.mesh.devices.flat[0].device_kind

    def own_rows(self, rows: int) -> np.ndarray:
        """Returns the numbers, int64 [n], of the rows of a batch of `rows` that the devices of this process hold."""
        return parallel.own_rows(self.mesh, rows)

    def put_rows(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the batch on the mesh, from the rows that this process holds; example ids stay on the host."""
        return parallel.put_rows(data.device_batch(batch), self.mesh)

    def put(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the batch on the mesh, from all of its rows, which every process has; ids stay on the host."""
        return parallel.put_batch(data.device_batch(batch), self.mesh)

    def jitted_init(self) -> Callable[[Any], State]:
        """Returns the compiled `init`: seed -> State. Parameters are created sharded; no device holds all of them."""
        return self.jit("init", self.init, out_shardings=self.shardings)

    def jitted_variables(self) -> Callable[[Any], Variables]:
        """Returns a compiled function: seed -> initial (params, extra), for the untrained control of evaluations."""

        def variables(seed: Any) -> Variables:
            state = self.init(seed)
            return Variables(state.params, state.extra)

        shardings = Variables(self.shardings.params, self.shardings.extra)
        return self.jit("variables", variables, out_shardings=shardings)

    def jitted_step(self) -> Step:
        """Returns the compiled step; it donates the buffers of the state that it gets."""
        return self.jit("step", self.step, donate_argnums=0, out_shardings=(self.shardings, None))

    def jit(self, name: str, function: Callable, **options: Any) -> Any:
        """`jax.jit` with the compiler options of the mesh's platform, once for a name."""
        if name not in self.compiled:
            chosen = compiler_options(self.mesh, self.deterministic)
            self.compiled[name] = jax.jit(function, compiler_options=chosen, **options)
        return self.compiled[name]

    def target(self) -> State:
        """A `State` of `jax.ShapeDtypeStruct` with shardings, the target when a checkpoint is restored."""
        return with_shardings(self.shapes, self.shardings)

    def layout(self) -> str:
        """One line on the sharding of the parameters; see `parallel.sharding_report`."""
        return parallel.sharding_report(self.axes.params, self.shapes.params, self.mesh)


def _placing(axes: Variables, shapes: Variables, mesh: Mesh, shard: parallel.Shard) -> Callable[[Any], Any]:
    """Returns the function that lays gradients out on the mesh before the optimiser reads them."""
    if shard == "parameters":  # as the parameters
        return lambda grads: grads
    whole = ("fsdp",) if shard == "optimizer" else ()
    places = parallel.shardings(axes.params, shapes.params, mesh, whole)
    return lambda grads: jax.lax.with_sharding_constraint(grads, places)


def _whole_axes(
    objective: Objective, mesh: Mesh, shard: parallel.Shard, batch_shapes: Any, microbatches: int
) -> tuple[str, ...]:
    """The mesh axes over which the gradients of several slices are summed once; see `ssljax.train.microbatch`.

    Over "fsdp" they are whole only if it splits nothing but the state of the optimiser: otherwise each device would
    need the memory of all gradients. None of them is whole where XLA's partitioner aborts on the second lookup of the
    tokens of a slice: in a coupled objective over texts whose tables "fsdp" and "tensor" split.
    """
    if objective.coupled and objective.reads == "tokens" and mesh.shape["fsdp"] > 1 and mesh.shape["tensor"] > 1:
        return ()
    names = ("data", "fsdp") if shard == "optimizer" else ("data",)
    axes = tuple(axis for axis in names if mesh.shape[axis] > 1)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    uneven = any(x.shape[0] % (devices * microbatches) for x in jax.tree.leaves(batch_shapes))
    return () if microbatches == 1 or uneven else axes


def compiler_options(mesh: Mesh, deterministic: bool) -> dict[str, bool | int] | None:
    """The options of XLA for the programs of a mesh; None: the defaults. See `ssljax.parallel.flags` too.

    XLA's programs for CPUs and TPUs are deterministic. For GPUs, the option forbids kernels that add in the order in
    which threads finish (scattered gradients of embeddings, some convolutions), and the choice of kernels by measured
    speed, which can turn out differently when a resumed run compiles again.
    """
    chosen = flags.options(mesh)
    if deterministic and platform_of(mesh.devices.flat[0]) == "gpu":
        chosen = {**chosen, "xla_gpu_deterministic_ops": True}
    return chosen or None


def variable_shapes(objective: Objective, batch_shapes: Any, mesh: Mesh | None = None) -> Variables:
    """Shapes of (params, extra), the target when a model is restored; `mesh` adds shardings."""
    shapes, axes = abstract_variables(make_variables(objective, batch_shapes))
    return shapes if mesh is None else with_shardings(shapes, parallel.shardings(axes, shapes, mesh))


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns the tree of `jax.ShapeDtypeStruct` with a sharding for each leaf."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )


def batch_shapes(spec: data.DataSpec, batch_size: int) -> Any:
    """The shapes of a global batch on the devices (without host data such as ids)."""

    def shapes(elements: Mapping[str, Any], rows: int) -> dict[str, Any]:
        return {k: jax.ShapeDtypeStruct((rows, *e["shape"]), e["dtype"]) for k, e in elements.items() if k != "id"}

    streams = {name: shapes(s["elements"], round(s["ratio"] * batch_size)) for name, s in spec.streams.items()}
    return shapes(spec.elements, batch_size) | streams
