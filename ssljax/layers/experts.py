"""Mixtures of experts: a router sends each token to a few of many feed-forward parts; its logits are recorded."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ssljax.base.schema import setting
from ssljax.layers.dense import EXACT, Initializer, parameter
from ssljax.parallel.rules import free_sizes, partition_spec

Activation = Callable[[jax.Array], jax.Array]

ROUTERS = "routers"  # the flax collection that holds `Routing`


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """The number of experts, the routing of tokens to them, and which blocks have experts."""

    count: int = setting(8, ge=1, doc="number of experts in a block")
    top_k: int = setting(2, ge=1, doc="experts per token (Mixtral: 2, Switch Transformers: 1)")
    mlp_dim: int | None = setting(None, ge=1, doc="hidden width of an expert; None: that of the feed-forward part")
    normalize: bool = setting(
        True,
        doc="scale the weights of the chosen experts to sum to 1 (Mixtral); false: use the router's probabilities "
        "(Switch Transformers)",
    )
    capacity: float | None = setting(
        None,
        gt=0,
        doc="largest number of tokens of an example per expert, as a multiple of an even share; further tokens skip "
        "the expert; None: no limit",
    )
    slots: int | None = setting(
        None, ge=1, doc="largest number of tokens of an example per expert; None: `capacity` decides"
    )
    balance: float = setting(
        0.01, ge=0, doc="coefficient of the load-balancing loss (Fedus et al. 2022, equation 4: 0.01)"
    )
    z_loss: float = setting(
        0.001, ge=0, doc="coefficient of the squared log-partition of the router (Zoph et al. 2022, equation 5: 0.001)"
    )
    every: int = setting(
        1,
        ge=1,
        doc="period in blocks: one block of each period has experts, the others are dense (Switch Transformers: 2)",
    )
    router_bias: bool = setting(False, doc="add a bias to the logits of the router")
    place: int | None = setting(
        None, ge=0, doc="index, from 0, of the block with experts in each period of `every` blocks; None: the last"
    )

    def validate(self) -> None:
        if self.top_k > self.count:
            raise ValueError(f"top_k: got {self.top_k}, must be at most the {self.count} experts")
        if self.capacity is not None and self.slots is not None:
            raise ValueError("slots: slots and capacity exclude each other; set one of them to None")
        if self.place is not None and self.place >= self.every:
            raise ValueError(f"place: got {self.place}, must be less than every, which is {self.every}")

    def at(self, block: int) -> bool:
        """Returns True if a block (counted from 0) has experts."""
        return block % self.every == (self.every - 1 if self.place is None else self.place)


class Routing(flax.struct.PyTreeNode):
    """Router logits of one call of a stack, for its layers with experts."""

    logits_LxBxTxE: jax.Array  # float32
    valid_BxT: jax.Array | None  # bool, False = padding; None: no padding
    config: ExpertsConfig = flax.struct.field(pytree_node=False)


def sow_routing(
    module: nn.Module, logits_LxBxTxE: jax.Array | None, valid_BxT: jax.Array | None, config: ExpertsConfig | None
) -> None:
    """Stores a `Routing` in the collection "routers" under the path of `module`; no logits: stores nothing.

    Flax keeps it only if the caller of `apply` makes that collection mutable.
    """
    if logits_LxBxTxE is not None and config is not None and not module.is_initializing():
        module.sow(ROUTERS, "routing", Routing(logits_LxBxTxE, valid_BxT, config))


class Experts(nn.Module):
    """Mixture of feed-forward experts (Shazeer et al. 2017; Fedus et al. 2022; Jiang et al. 2024).

    Without a capacity no token is dropped: tokens are sorted by expert and multiplied by `jax.lax.ragged_dot`. With a
    capacity of C slots, tokens are gathered into [B, E, C, D]; first choices take slots before second choices, earlier
    tokens before later ones. Only tokens of the same example compete, so examples stay independent. The mesh axis
    `expert` splits the experts in both cases.
    """

    config: ExpertsConfig
    hidden: int
    act: Activation
    gated: bool
    initializer: Initializer
    initializer_out: Initializer
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, valid_BxT: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """x [B, T, D] -> (y [B, T, D], float32 router logits [B, T, E]).

        With a capacity, tokens that are not `valid` (padding) take no slots, and their y is 0.
        """
        c = self.config
        length, width = x_BxTxD.shape[1:]
        router = parameter(self, "router", self.initializer, ("embed", None), (width, c.count), role="matrix")
        logits = jnp.matmul(x_BxTxD.astype(jnp.float32), router, precision=EXACT)
        if c.router_bias:
            logits += parameter(self, "router_bias", nn.initializers.zeros, (None,), (c.count,), role="bias")
        weight_BxTxK, choice_BxTxK = jax.lax.top_k(jax.nn.softmax(logits, -1), c.top_k)
        if c.normalize:
            weight_BxTxK = weight_BxTxK / jnp.sum(weight_BxTxK, -1, keepdims=True)

        def kernels(name: str, init: Initializer, shape: tuple[int, int], names: tuple[str, str]) -> jax.Array:
            def each(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
                return jax.vmap(lambda k: init(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

            return parameter(self, name, each, ("experts", *names), (c.count, *shape), role="matrix").astype(self.dtype)

        matrices = [kernels("in", self.initializer, (width, self.hidden), ("embed", "mlp"))]
        if self.gated:
            matrices.append(kernels("gate", self.initializer, (width, self.hidden), ("embed", "mlp")))
        out = kernels("out", self.initializer_out, (self.hidden, width), ("mlp", "embed"))

        x_BxTxD = x_BxTxD.astype(self.dtype)
        if c.capacity is None and c.slots is None:
            run = _on_mesh(functools.partial(_dropless, act=self.act), x_BxTxD, out)
            return run(x_BxTxD, weight_BxTxK.astype(self.dtype), choice_BxTxK, matrices, out), logits
        slots = c.slots or math.ceil((c.capacity or 1) * c.top_k * length / c.count)
        slots = min(slots, length)
        if valid_BxT is not None:
            choice_BxTxK = jnp.where(valid_BxT[..., None], choice_BxTxK, -1)
        combine_BxTxExC = dispatch(choice_BxTxK, weight_BxTxK, c.count, slots)
        has_slot_BxTxExC = (combine_BxTxExC > 0).astype(self.dtype)
        x_BxExCxD = jnp.einsum("btec,btd->becd", has_slot_BxTxExC, x_BxTxD)
        x_BxExCxD = nn.with_logical_constraint(x_BxExCxD, ("routed", "experts", None, "embed"))
        y_BxExCxD = _feed_forward(lambda a, b: jnp.einsum("becd,edf->becf", a, b), x_BxExCxD, matrices, out, self.act)
        return jnp.einsum("btec,becd->btd", combine_BxTxExC.astype(self.dtype), y_BxExCxD), logits


def _feed_forward(
    product: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    matrices: Sequence[jax.Array],
    out: jax.Array,
    act: Activation,
) -> jax.Array:
    """Applies the two maps of each expert with an activation between them, or three with a gate.

    Args:
        product: (rows, matrices [E, I, O]) -> rows multiplied by the matrix of their expert.
        x: rows of width D, in the layout that `product` reads.
        matrices: [E, D, F], and a second one for the gate if there is one.
        out: [E, F, D].
        act: the activation.
    """
    h = product(x, matrices[0])
    h = act(product(x, matrices[1])) * h if len(matrices) > 1 else act(h)
    return product(h, out)


def _dropless(
    x_BxTxD: jax.Array,
    weight_BxTxK: jax.Array,
    choice_BxTxK: jax.Array,
    matrices: Sequence[jax.Array],
    out_ExFxD: jax.Array,
    *,
    act: Activation,
    first: jax.Array | int = 0,
) -> jax.Array:
    """Weighted sum [B, T, D] of the outputs of the given experts for the tokens that chose them.

    The experts have the numbers `first`, `first` + 1, ...; choices of other experts add 0.
    """
    experts, choices = len(out_ExFxD), choice_BxTxK.shape[-1]
    expert_N = choice_BxTxK.reshape(-1) - first  # N = B T K
    expert_N = jnp.where((expert_N >= 0) & (expert_N < experts), expert_N, experts)  # sorts choices of others last
    order_N = jnp.argsort(expert_N, stable=True)
    sizes_E = jnp.bincount(expert_N, length=experts + 1)[:experts].astype(jnp.int32)
    x_NxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])[order_N // choices]
    y_NxD = _feed_forward(lambda a, b: jax.lax.ragged_dot(a, b, sizes_E), x_NxD, matrices, out_ExFxD, act)
    y_NxD = jnp.where((expert_N[order_N] < experts)[:, None], y_NxD, 0)
    y_BxTxKxD = jnp.zeros_like(y_NxD).at[order_N].set(y_NxD).reshape(*choice_BxTxK.shape, -1)
    return jnp.einsum("btkd,btk->btd", y_BxTxKxD, weight_BxTxK)


def _on_mesh(run: Callable[..., jax.Array], x_BxTxD: jax.Array, out_ExFxD: jax.Array) -> Callable[..., jax.Array]:
    """`run` under `shard_map`: each device computes its rows for its experts and its part of their hidden layer.

    Sorting by expert mixes the rows of a batch. Without `shard_map` every device would sort the whole batch. Devices
    that split the experts have different rows, which they gather; each gets the sums of its own rows back.
    """
    sizes = free_sizes()
    rows = partition_spec(("batch", "length", None), x_BxTxD.shape, sizes)
    outer = partition_spec(("experts", "mlp", None), out_ExFxD.shape, sizes)
    expert, hidden = outer[:2]
    if not any((*rows, *outer)):
        return run
    split = (rows[0],) if isinstance(rows[0], str) else rows[0] or ()  # mesh axes of the rows

    def local(x: jax.Array, weight: jax.Array, choice: jax.Array, matrices: Any, out: jax.Array) -> jax.Array:
        first = jax.lax.axis_index(expert) * len(out) if expert else 0
        if expert not in split:
            y = run(x, weight, choice, matrices, out, first=first)
            return jax.lax.psum(y, tuple(axis for axis in (expert, hidden) if axis))
        x, weight, choice = (jax.lax.all_gather(a, expert, tiled=True) for a in (x, weight, choice))
        y = run(x, weight, choice, matrices, out, first=first)
        return jax.lax.psum_scatter(jax.lax.psum(y, hidden) if hidden else y, expert, tiled=True)

    inner = PartitionSpec(expert, None, hidden)
    # With check_vma the gradient of x lacks the sum over `expert` (jax 0.10.2; the test of meshes shows it).
    return jax.shard_map(local, in_specs=(rows, rows, rows, inner, outer), out_specs=rows, check_vma=False)


def dispatch(choice_BxTxK: jax.Array, weight_BxTxK: jax.Array, experts: int, slots: int) -> jax.Array:
    """Assigns tokens to the slots of experts.

    Args:
        choice_BxTxK: int, the experts of each token, best first; -1: none.
        weight_BxTxK: the weights of these experts.
        experts: number of experts E.
        slots: number of slots C per expert and example.

    Returns:
        float32 [B, T, E, C]: the weight of a token in its slot; 0 in all other slots.
    """
    batch, length, choices = choice_BxTxK.shape
    filled = jnp.zeros((batch, 1, experts), jnp.int32)
    out = jnp.zeros((batch, length, experts, slots))
    for k in range(choices):
        chosen_BxTxE = jax.nn.one_hot(choice_BxTxK[..., k], experts, dtype=jnp.int32)
        slot_BxTxE = jnp.cumsum(chosen_BxTxE, axis=1) - 1 + filled
        slot_BxTxE = jnp.where(chosen_BxTxE > 0, slot_BxTxE, -1)
        in_slot_BxTxExC = jax.nn.one_hot(slot_BxTxE, slots)  # -1 and slots beyond the last give zeros
        out = out + in_slot_BxTxExC * weight_BxTxK[..., k, None, None]
        filled = filled + jnp.sum(chosen_BxTxE, axis=1, keepdims=True)
    return out
