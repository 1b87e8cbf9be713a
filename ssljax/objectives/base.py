"""The contract between what is learned (an objective) and the one train step.

An objective is a frozen dataclass of settings and Flax modules; it holds no arrays. The step calls, in this order:

    batch  = prepare(batch)                             # host types to floats; shared by training and evaluation
    inputs = views(key, batch, step)                    # all randomness of the data, on device
    outputs = encode(params, extra, inputs, ctx)        # heavy, per example: may be called on slices of the batch
    loss   = loss(params, extra, outputs, inputs, ctx)  # light, over the batch
    extra  = update(extra, params, sums, rows, step)    # after the optimiser: teachers, queues, centres
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from ssljax.base import schema
from ssljax.base.hashing import name_id
from ssljax.layers.experts import ROUTERS, Routing
from ssljax.layers.noise import Noise

Batch = dict[str, Any]
Inputs = Any
Outputs = Any
Params = Any


class Variables(NamedTuple):
    """The arrays of an objective: the optimiser learns `params`; `extra` is everything else that persists."""

    params: Params
    extra: Any


class Recorder:
    """The routers that ran in one call of `encode`: (path of the module, `Routing`) in the order of the calls."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Routing]] = []

    def add(self, part: str, collection: Any) -> None:
        """Adds the routers of a flax collection, under `part`."""
        leaves = jax.tree_util.tree_leaves_with_path(collection, is_leaf=lambda x: isinstance(x, Routing))
        for keys, routing in leaves:
            path = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)][:-1]  # without "routing"
            self.found.append(("/".join([part, *path] if part else path), routing))


class Ctx(flax.struct.PyTreeNode):
    """The random key of the step, the step, the rows of the global batch, and a recorder of routers if one listens."""

    key: jax.Array
    step: jax.Array
    row: jax.Array  # int32 [B]: index of each example in the global batch
    train: bool = flax.struct.field(pytree_node=False, default=True)
    routers: Recorder | None = flax.struct.field(pytree_node=False, default=None)


class Loss(NamedTuple):
    """The result of `loss`.

    terms: {name: (coefficient, sum, weight)}; the loss is the sum over terms of coefficient * sum / weight, with the
        weight of the *global* batch. Weights depend on inputs only, never on parameters, unless the objective is
        coupled.
    metrics: {name: (sum, weight)}, averaged over the steps of a log interval.
    sums: arrays that are added over slices (centres, counts, moments), for `update`.
    rows: small arrays [B, ...] in batch order (what a queue takes in), for `update`.
    """

    terms: dict[str, tuple[Any, jax.Array, jax.Array]]
    metrics: dict[str, tuple[jax.Array, jax.Array]] = {}  # noqa: RUF012 (never mutated)
    sums: Any = ()
    rows: Any = ()


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of all objectives; subclasses are frozen dataclasses. See the module docstring for the order of calls."""

    # True: the loss compares examples with each other, so slices must be encoded before the loss can be taken.
    coupled: ClassVar[bool] = False
    # True: something in it is scheduled over `steps`, so the length of the run is part of its identity.
    total_dependent: ClassVar[bool] = False
    # The kinds of input that `views` can make, matched with the model's: "images", "tokens", "pairs".
    inputs: ClassVar[tuple[str, ...]]
    # Key of the model's parameters among its own; None: all of them are the model's.
    model_key: ClassVar[str | None] = "encoder"

    model: Any = schema.injected()
    spec: Any = schema.injected()
    steps: int | None = schema.injected()

    @property
    def classes(self) -> int | None:
        """The number of classes whose labels it learns; None: it looks at no labels."""
        return None

    @property
    def unwrapped(self) -> "Objective":
        """The objective of the config, without the wrapper that adds losses of routers."""
        return self

    def check(self) -> None:
        """Raises `UserError` where settings don't fit the data or the model; `objectives.create` calls it."""

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Parameters and extra state, with logical axes as flax partitioning boxes."""
        raise NotImplementedError

    def prepare(self, batch: Batch) -> Batch:
        """Host types to what the model reads; deterministic, shared by training and evaluation."""
        return batch

    def views(self, key: jax.Array, batch: Batch, step: jax.Array) -> Inputs:
        """The corrupted, augmented or shifted batch; every leaf has the example as its leading axis."""
        raise NotImplementedError

    def encode(self, params: Params, extra: Any, inputs: Inputs, ctx: Ctx) -> Outputs:
        """The heavy part, per example; every leaf of the result has the example as its leading axis."""
        raise NotImplementedError

    def loss(self, params: Params, extra: Any, outputs: Outputs, inputs: Inputs, ctx: Ctx) -> Loss:
        """The light part, over the batch."""
        raise NotImplementedError

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        """Extra state after the optimiser's step; `params` are the new ones."""
        return extra

    def model_params(self, params: Params, extra: Any) -> Params:
        """The parameters of `model` that are evaluated."""
        return params if self.model_key is None else params[self.model_key]

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        """Representations of a prepared batch: "pooled" [B, D] always; "image", "text", "tokens" where they exist."""
        raise NotImplementedError

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(log-probability in nats [B], number of predicted elements [B]) where the model has likelihoods."""
        raise NotImplementedError(f"{type(self).__name__} has no likelihoods")

    def flops(self, spec: Any) -> float:
        """Forward FLOPs of one training example: all views, teachers and generators counted once each."""
        raise NotImplementedError


def apply(
    module: Any, params: Params, *args: Any, ctx: Ctx | None = None, part: str = "encoder", **options: Any
) -> Any:
    """A Flax module with these parameters called on `args` (`method=` names another method than `__call__`).

    Args:
        module: an unbound module.
        params: its parameters.
        ctx: where the parameters are trained and the call belongs to the loss; routers of experts are then recorded.
        part: path of `params` among the parameters of the objective, which names these routers. Two modules of an
            objective have two names.
    """
    if ctx is None or ctx.routers is None:
        return module.apply({"params": params}, *args, **options)
    out, state = module.apply({"params": params}, *args, mutable=[ROUTERS], **options)
    ctx.routers.add(part, state.get(ROUTERS, {}))
    return out


def stream(seed: jax.Array, step: jax.Array | int, name: str) -> jax.Array:
    """The random key of one purpose at one step: `fold_in(fold_in(key(seed), step), hash(name))`, threefry."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, step), name_id(name))


def noise_of(ctx: Ctx, copies: int = 1, offset: int = 0, total: int | None = None) -> Noise | None:
    """Noise for `copies` views of each example, or None outside training.

    Row v of example b is b * total + offset + v: every view of every example draws its own masks, whatever the slices.
    """
    if not ctx.train:
        return None
    own = ctx.row[:, None] * (total or copies) + offset + jnp.arange(copies, dtype=ctx.row.dtype)
    return Noise(ctx.key, own.reshape(-1))


def total(terms: dict[str, tuple[Any, jax.Array, jax.Array]]) -> jax.Array:
    """The loss: sum over terms of coefficient * sum / weight; a term without weight counts 0."""
    values = [c * s / jnp.where(w == 0, 1, w) for c, s, w in terms.values()]
    return sum(values[1:], start=values[0])
