"""The contract between an objective and the train step.

An objective is a frozen dataclass of settings and Flax modules; it holds no arrays. The step calls, in this order:

    batch  = mixed(keys, batch, step)                   # what combines examples of the batch, such as mixup
    batch  = prepare(batch)                             # converts types; shared by training and evaluation
    inputs = views(keys, batch, step)                   # random augmentation, masking, corruption; on device
    outputs = encode(params, extra, inputs, ctx)        # networks
    loss   = loss(params, extra, outputs, inputs, ctx)  # cheap, over the whole batch or, if not coupled, a slice
    params = project(params)                            # after the optimiser: bounds of parameters
    extra  = update(extra, params, sums, rows, step)    # after the optimiser: teachers, queues, centres

`keys` [B] are random keys, one for each example, which depend on seed, step and the row of the example in the batch.
`prepare`, `views` and `encode` treat each example independently of the others: they are called on slices of the batch.

`params` are the learned parameters; `extra` is the other state of the objective, such as a teacher or a queue.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.core.meta
import flax.struct
import jax
import jax.numpy as jnp

from ssljax.base import schema
from ssljax.base.exhibits import Exhibit
from ssljax.base.hashing import name_id
from ssljax.layers.experts import ROUTERS, Routing
from ssljax.layers.noise import Noise
from ssljax.objectives.pictures import Showing
from ssljax.parallel import over_batch
from ssljax.views.keys import example_keys

Batch = dict[str, Any]
Inputs = Any
Outputs = Any
Params = Any


class Variables(NamedTuple):
    """The arrays of an objective: `params` are updated by the optimiser, `extra` by `Objective.update`."""

    params: Params
    extra: Any


class Recorder:
    """Collects the router logits of one call of `encode`: (path of the module, `Routing`) in the order of the calls."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Routing]] = []

    def add(self, part: str, collection: Any) -> None:
        """Adds the `Routing` leaves of a flax collection; their paths begin with `part`."""
        leaves = jax.tree_util.tree_leaves_with_path(collection, is_leaf=lambda x: isinstance(x, Routing))
        for keys, routing in leaves:
            path = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)][:-1]  # without "routing"
            self.found.append(("/".join([part, *path] if part else path), routing))


class Ctx(flax.struct.PyTreeNode):
    """The context of `encode` and `loss`."""

    key: jax.Array  # random key of the step
    step: jax.Array  # int32, number of the step
    row: jax.Array  # int32 [B], index of each example in the global batch
    train: bool = flax.struct.field(pytree_node=False, default=True)  # False: no dropout, no stochastic depth
    # Records router logits for router losses; None: they are not recorded.
    routers: Recorder | None = flax.struct.field(pytree_node=False, default=None)
    # Runs a part of `loss` on each device with its rows of the batch: `parallel.over_batch`.
    over_batch: Callable[..., Any] = flax.struct.field(pytree_node=False, default=over_batch)


class Loss(NamedTuple):
    """The result of `loss`.

    Attributes:
        terms: {name: (coefficient, sum, weight)}. The loss is the sum over terms of coefficient * sum / weight, with
            sum and weight of the global batch. In an objective that is not coupled, weights may depend on inputs only,
            not on parameters.
        metrics: {name: (sum, weight)}, averaged over the steps of a log interval.
        sums: arrays for `update`, added over slices (centres, counts, moments).
        rows: small arrays [B, ...] for `update`, in batch order (new entries of a queue).
    """

    terms: dict[str, tuple[Any, jax.Array, jax.Array]]
    metrics: dict[str, tuple[jax.Array, jax.Array]] = {}  # noqa: RUF012 (never mutated)
    sums: Any = ()
    rows: Any = ()


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base class of objectives; subclasses are frozen dataclasses. The module docstring gives the order of calls."""

    # True: the loss compares examples with each other, so all slices must be encoded before the loss is computed.
    coupled: ClassVar[bool] = False
    # Kinds of input that `views` can make ("images", "tokens", "pairs", ...); the model's `inputs` must be one of them.
    inputs: ClassVar[tuple[str, ...]]
    # Kind of the data, if `views` or `encode` make another kind of input of them (tokens of images); None: that of the
    # model.
    data_kind: ClassVar[str | None] = None
    # Names in `extra` whose leaves are no copies of parameters although their paths end like those of parameters.
    not_copies: ClassVar[tuple[str, ...]] = ()
    # Key of the model's parameters in `params`; None: `params` are the model's parameters.
    model_key: ClassVar[str | None] = "encoder"

    model: Any = schema.injected()  # Flax module
    spec: Any = schema.injected()  # `ssljax.data.DataSpec`
    steps: int | None = schema.injected()  # length of the run; None: unknown
    reads: str = schema.injected()  # kind of input of the model, one of `inputs`

    @property
    def total_dependent(self) -> bool:
        """True if a setting is scheduled over `steps`, so that the length of the run is part of its identity."""
        return False

    @property
    def classes(self) -> int | None:
        """Number of classes that the objective learns to predict; None: none."""
        return None

    @property
    def frozen_parts(self) -> Mapping[str, tuple[str, str]]:
        """Parts of the extra state that a new run reads from trained runs: {name in `extra`: (config key, workdir)}."""
        return {}

    def frozen_part(self, trained: "Objective", params: Params, extra: Any) -> Params:
        """Returns a part of the extra state from the variables of a trained run.

        Args:
            trained: the objective of the trained run.
            params, extra: its variables.

        Raises:
            UserError: the run does not fit; the message continues "KEY: WORKDIR ...".
        """
        raise NotImplementedError

    @property
    def unwrapped(self) -> "Objective":
        """The objective without the wrapper that adds router losses."""
        return self

    def reading(self, inputs: str) -> "Objective":
        """Returns the objective for models that read `inputs`, one of the class attribute; by default itself.

        It is called before the model exists.

        Raises:
            UserError: the settings do not fit these inputs.
        """
        return self

    def model_spec(self, spec: Any) -> Any:
        """Returns the description (`ssljax.data.DataSpec`) of what the model reads: by default that of the data.

        It is called before the model exists; `reads` is known.

        Raises:
            UserError: the data do not fit.
        """
        return spec

    def check(self) -> None:
        """Checks the settings against the data and the model; called by `objectives.create`.

        Raises:
            UserError: they do not fit.
        """

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Returns parameters and extra state; flax partitioning boxes hold the logical axes."""
        raise NotImplementedError

    def prepare(self, batch: Batch) -> Batch:
        """Converts the types of the data to the types that the model reads; deterministic.

        It may be called on its own result, which it leaves as it is.
        """
        return batch

    def mixed(self, keys: jax.Array, batch: Batch, step: jax.Array) -> Batch:
        """Returns the batch with examples combined, for `prepare` and `views`; by default unchanged.

        It gets the whole batch, before slices are cut, so that example i may depend on other examples.
        """
        return batch

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> Inputs:
        """Returns the inputs of `encode` and `loss`: augmented, masked or corrupted; every leaf is [B, ...].

        Args:
            keys: random keys [B]; inputs of example i depend on keys[i] and row i of the batch only.
            batch: a prepared batch or a slice of it.
            step: number of the step.
        """
        raise NotImplementedError

    def held_out(self) -> "Objective":
        """Returns the objective for held-out losses: its `views` have no augmentation that is not part of the task.

        Two views to be compared or a mask to be filled are part of the task; mixed or cropped labelled images are not.
        """
        return self

    def encode(self, params: Params, extra: Any, inputs: Inputs, ctx: Ctx) -> Outputs:
        """Runs the networks on each example, independently of the others; every leaf of the result is [B, ...]."""
        raise NotImplementedError

    def loss(self, params: Params, extra: Any, outputs: Outputs, inputs: Inputs, ctx: Ctx) -> Loss:
        """Computes the loss from the outputs of `encode`."""
        raise NotImplementedError

    def project(self, params: Params) -> Params:
        """Returns parameters within their bounds; called after initialisation and after every optimiser step.

        The averaged parameters are projected too. Frozen parameters stay as they are.
        """
        return params

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        """Returns the extra state after the optimiser's step.

        Args:
            extra: the extra state of this step.
            params: the updated parameters, projected.
            sums, rows: `Loss.sums` and `Loss.rows` of the global batch.
            step: number of this step.
        """
        return extra

    def model_params(self, params: Params, extra: Any) -> Params:
        """The parameters of `model` that evaluations use (of a teacher, for example)."""
        return params if self.model_key is None else params[self.model_key]

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        """Representations of a prepared batch: "pooled" [B, D], and "image", "text", "tokens" if they exist."""
        raise NotImplementedError

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns (log-probability in nats [B], number of predicted elements [B]).

        Raises:
            NotImplementedError: the objective has no likelihoods.
        """
        raise NotImplementedError(f"{type(self).__name__} has no likelihoods")

    def scored(self, batch: Batch) -> jax.Array | None:
        """The tokens whose log-probabilities `score` sums, bool [B, T]; None: elements that are not tokens."""
        return None

    def fitted(self, batch: Batch) -> jax.Array | None:
        """The tokens from which the n-gram controls of `score` learn, bool [B, T]: by default those that it sums."""
        return self.scored(batch)

    @property
    def reads_other_rows(self) -> bool:
        """True if the loss of an example depends on other rows of the batch, so that held-out rows must be drawn."""
        return self.coupled

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        """Returns pictures or texts of the task on a few held-out examples; {}: there are none.

        Args:
            params, extra: the variables, of which `params` may be averaged.
            batch: a prepared batch.
            show: random key, number of examples, tokenizer.

        Returns:
            {name of the file: picture}.
        """
        return {}

    def flops(self, spec: Any) -> float:
        """Forward FLOPs of one training example, with all its views and networks (teachers, generators)."""
        raise NotImplementedError


def with_copies(extra: Any, params: Params, left_out: tuple[str, ...] = ()) -> Any:
    """Returns an extra state whose copies of parameters, such as a teacher's, have the values of `params`.

    A leaf is a copy if its path ends in the path of a parameter of the same shape.

    Args:
        extra: the extra state.
        params: some parameters, at the paths that they have in the objective.
        left_out: names at the top of `extra` that have no copies.
    """
    boxed: dict[str, Any] = {"is_leaf": lambda x: isinstance(x, flax.core.meta.AxisMetadata)}
    path_of = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")  # noqa: E731
    values = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params, **boxed)}

    def copied(keys: Any, leaf: Any) -> Any:
        parts = path_of(keys).split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        found = next((values[tail] for tail in tails if tail in values), None)
        shapes = [[jnp.shape(x) for x in jax.tree.leaves(one)] for one in (found, leaf)]
        return found if shapes[0] == shapes[1] and parts[0] not in left_out else leaf

    return jax.tree_util.tree_map_with_path(copied, extra, **boxed)


def apply(
    module: Any, params: Params, *args: Any, ctx: Ctx | None = None, part: str = "encoder", **options: Any
) -> Any:
    """Calls a Flax module with parameters.

    Args:
        module: an unbound module.
        params: its parameters.
        *args: arguments of the call.
        ctx: pass it in calls of `encode` with trained parameters, so that router losses see the router logits.
        part: path of `params` in the parameters of the objective; it names the routers, so two modules of an objective
            need two paths.
        **options: keyword arguments of the call; `method="name"` calls another method than `__call__`.
    """
    if ctx is None or ctx.routers is None:
        return module.apply({"params": params}, *args, **options)
    out, state = module.apply({"params": params}, *args, mutable=[ROUTERS], **options)
    ctx.routers.add(part, state.get(ROUTERS, {}))
    return out


def stream(seed: jax.Array, step: jax.Array | int, name: str) -> jax.Array:
    """The random key (threefry) of one purpose at one step: `fold_in(fold_in(key(seed), step), hash(name))`."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, step), name_id(name))


def rows_of(batch: Batch) -> jax.Array:
    """Returns the rows 0 to B - 1 of a batch, int32 [B]; further streams in it may have other numbers of rows."""
    count = next(x.shape[0] for x in batch.values() if not isinstance(x, Mapping))
    return jnp.arange(count, dtype=jnp.int32)


def views_of(objective: Objective, key: jax.Array, batch: Batch, step: jax.Array) -> Inputs:
    """Returns the inputs of a whole batch, prepared or not; row i has the key `fold_in(key, i)`."""
    keys = example_keys(key, rows_of(batch))
    return objective.views(keys, objective.prepare(objective.mixed(keys, batch, step)), step)


def still(key: jax.Array, batch: Batch) -> Ctx:
    """Returns a context without dropout for the rows of a batch."""
    return Ctx(key, jnp.int32(0), rows_of(batch), train=False)


def noise_of(ctx: Ctx, copies: int = 1, offset: int = 0, total: int | None = None) -> Noise | None:
    """Noise for `copies` views of each example, [B copies] in total; None outside training.

    View v of example b has the row b * total + offset + v, so every view has separate masks, independent of slices.

    Args:
        ctx: context with the rows of the examples.
        copies: number of views that are encoded together.
        offset: number of views of each example that are encoded in other calls before.
        total: number of views of each example in all calls; None: `copies`.
    """
    if not ctx.train:
        return None
    rows = ctx.row[:, None] * (total or copies) + offset + jnp.arange(copies, dtype=ctx.row.dtype)
    return Noise(ctx.key, rows.reshape(-1))


def total(terms: dict[str, tuple[Any, jax.Array, jax.Array]]) -> jax.Array:
    """The loss: sum over terms of coefficient * sum / weight; a term of weight 0 must have sum 0 and adds 0."""
    values = [c * s / jnp.where(w == 0, 1, w) for c, s, w in terms.values()]
    return sum(values[1:], start=values[0])
