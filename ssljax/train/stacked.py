"""Stacked runs: the step of one program, mapped by `vmap` over the states of several runs of one shape.

The runs have the same parameters' shapes, length and batch size. They differ in their seeds, in the order of their
data, and in the settings of `State.hyper`: numbers of the objective or the optimiser. A stack of K states is a `State`
whose leaves are [K, ...]. Two leaves are single: `step`, since all runs of a stack are at the same step, and `seed` if
all runs have the same one. What depends on these and on a common batch only, such as random views, is then computed
once for all runs.

On a mesh the axis of the runs is not split: each device holds its part of every run.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.objectives.base import Objective, Variables
from ssljax.train.program import Program
from ssljax.train.state import State, with_hyper
from ssljax.train.step import pop_meters

StackedStep = Callable[[State, Any], tuple[State, dict[str, jax.Array]]]
Measure = Callable[[Objective, Any, Any, Any], dict[str, jax.Array]]  # (objective, params, extra, batch) -> {name: x}


@dataclasses.dataclass(frozen=True)
class Stacking:
    """The functions of a stack of runs, compiled once for a number of runs.

    Attributes:
        program: the program of one run, whose state has the settings that vary in `hyper`.
        one_seed: True: all runs have the same seed.
        one_batch: True: all runs see the same batches. Otherwise a batch of the stack is a tuple of K batches.
    """

    program: Program
    one_seed: bool
    one_batch: bool

    @property
    def axes(self) -> State:
        """The mapped axis of the parts of a stack: 0, or None for those that all runs share."""
        seed: Any = None if self.one_seed else 0
        rest: dict[str, Any] = dict.fromkeys((f.name for f in dataclasses.fields(State)), 0)
        return State(**{**rest, "step": None, "seed": seed})

    @functools.cached_property
    def shardings(self) -> State:
        """The shardings of a stack: those of one run, behind an axis that is not split."""

        def behind(sharding: NamedSharding) -> NamedSharding:
            return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))

        return self._mapped(lambda tree: jax.tree.map(behind, tree), self.program.shardings)

    def target(self, runs: int) -> State:
        """Returns a stack of `jax.ShapeDtypeStruct` with shardings."""

        def several(tree: Any) -> Any:
            return jax.tree.map(lambda s: jax.ShapeDtypeStruct((runs, *s.shape), s.dtype), tree)

        shapes = self._mapped(several, self.program.shapes)
        return jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, self.shardings
        )

    def empty(self, runs: int) -> State:
        """Returns a stack of zeros, for `put`."""
        target = self.target(runs)
        zeros = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), target)  # noqa: E731
        return self._jit(f"empty {runs}", zeros, out_shardings=self.shardings)()

    def put(self, stack: State, place: int, state: State, hyper: Mapping[str, float]) -> State:
        """Returns the stack with the state of a run at a place; the buffers of the stack are donated.

        Args:
            stack: the stack.
            place: number of the run in the stack.
            state: the state of the run, without `hyper`.
            hyper: the settings of the run.
        """

        def write(stack: State, place: jax.Array, state: State) -> State:
            def at(tree: Any, new: Any) -> Any:
                return jax.tree.map(lambda old, x: jax.lax.dynamic_update_index_in_dim(old, x, place, 0), tree, new)

            parts = self._of(stack, state)
            return State(**{name: new if axis is None else at(old, new) for name, axis, old, new in parts})

        jitted = self._jit("put", write, donate_argnums=0, out_shardings=self.shardings)
        values = {name: np.float32(value) for name, value in hyper.items()}
        return jitted(stack, np.int32(place), state.replace(hyper=values))

    def take(self, stack: State, place: int) -> State:
        """Returns the state of the run at a place of the stack, without `hyper`, as a run alone has it."""

        def read(stack: State, place: jax.Array) -> State:
            at = lambda x: jax.lax.dynamic_index_in_dim(x, place, 0, keepdims=False)  # noqa: E731
            return self._mapped(lambda tree: jax.tree.map(at, tree), stack).replace(hyper={})

        return self._jit("take", read, out_shardings=self.program.shardings.replace(hyper={}))(stack, np.int32(place))

    def jitted_step(self) -> StackedStep:
        """Returns the compiled step: (stack, batch) -> (stack, {name: metrics [K]}); it donates the stack."""
        step = jax.vmap(self.program.step, (self.axes, None if self.one_batch else 0), (self.axes, 0))

        def joined(stack: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
            return step(stack, batch if self.one_batch else jax.tree.map(lambda *x: jnp.stack(x), *batch))

        return self._jit("step", joined, donate_argnums=0, out_shardings=(self.shardings, None))

    def pop(self, stack: State) -> tuple[State, dict[str, jax.Array]]:
        """Returns the stack with empty meters, and {name: means [K]}; see `ssljax.train.step.pop_meters`."""
        popped = jax.vmap(pop_meters, (self.axes,), (self.axes, 0))
        return self._jit("pop", popped, donate_argnums=0, out_shardings=(self.shardings, None))(stack)

    def measure(self, function: Measure) -> Callable[[Any, Any, Mapping[str, jax.Array], Any], dict[str, jax.Array]]:
        """Returns the compiled map of a measure over runs: (params, extra, hyper, batch) -> {name: [K]}."""

        def one(params: Any, extra: Any, hyper: Any, batch: Any) -> dict[str, jax.Array]:
            return function(with_hyper(self.program.objective, hyper), params, extra, batch)

        mapped = jax.vmap(one, (0, 0, 0, None if self.one_batch else 0))

        def joined(params: Any, extra: Any, hyper: Any, batch: Any) -> dict[str, jax.Array]:
            together = batch if self.one_batch else jax.tree.map(lambda *x: jnp.stack(x), *batch)
            return mapped(params, extra, hyper, together)

        return self._jit(f"measure {function.__qualname__}", joined)

    def member(self, objective: Objective, hyper: Mapping[str, float]) -> Program:
        """Returns the program of one run, which makes initial states, restores checkpoints and evaluates.

        Its state has no `hyper`. Its initialisation is compiled once for all runs of the stack.

        Args:
            objective: the objective with the settings of the run.
            hyper: the settings of the run.
        """
        whole, values = self.program, {name: np.float32(value) for name, value in hyper.items()}
        alone = whole.shardings.replace(hyper={})

        def init(seed: Any, values: Any = values) -> State:
            return whole.init(seed, values).replace(hyper={})

        def variables(seed: Any, values: Any) -> Variables:
            state = whole.init(seed, values)
            return Variables(state.params, state.extra)

        def step(state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
            state, metrics = whole.step(state.replace(hyper=values), batch)
            return state.replace(hyper={}), metrics

        born = whole.jit("init of a member", init, out_shardings=alone)
        untrained = whole.jit("variables of a member", variables, out_shardings=Variables(alone.params, alone.extra))
        return dataclasses.replace(
            whole,
            objective=objective,
            init=init,
            step=step,
            shapes=whole.shapes.replace(hyper={}),
            shardings=alone,
            compiled={
                "init": lambda seed: born(_seed(seed), values),
                "variables": lambda seed: untrained(_seed(seed), values),
            },
        )

    def _jit(self, name: str, function: Callable, **options: Any) -> Any:
        shared = f"{'one' if self.one_seed else 'several'} seeds, {'one' if self.one_batch else 'several'} batches"
        return self.program.jit(f"stacked {name} ({shared})", function, **options)

    def _mapped(self, function: Callable[[Any], Any], state: State) -> State:
        """Applies a function to the parts of a state or stack that runs do not share."""
        return State(**{name: old if axis is None else function(old) for name, axis, old, _ in self._of(state, state)})

    def _of(self, first: State, second: State) -> list[tuple[str, Any, Any, Any]]:
        """Returns (name, mapped axis, part of the first state, part of the second state) of all fields."""
        names = [field.name for field in dataclasses.fields(State)]
        return [(n, getattr(self.axes, n), getattr(first, n), getattr(second, n)) for n in names]


def _seed(seed: Any) -> np.uint32:
    """The seed as an array, so that one compiled program serves all seeds."""
    return np.uint32(seed)


def state_bytes(stacking: Stacking) -> int:
    """Bytes of the state of one run on one device."""
    shapes, places = stacking.program.shapes, stacking.program.shardings
    sizes = jax.tree.map(lambda s, p: int(np.prod(p.shard_shape(s.shape))) * s.dtype.itemsize, shapes, places)
    return sum(jax.tree.leaves(sizes))


def compiled_bytes(compiled: Any) -> float:
    """Bytes that a compiled step needs on a device: arguments, temporaries, results that reuse no argument."""
    analysis = compiled.memory_analysis()
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return float(analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + max(0, results))
