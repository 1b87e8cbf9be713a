"""Attention over sequences that are split over the mesh axis "context".

Each device keeps its queries. Keys and values travel around the ring of devices, so that no device ever holds those of
more than two devices (Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context"). The
log-sum-exp of each query joins the results of its parts. In the backward pass the gradients of keys and values travel
with them. Within a device, attention is blockwise (`ssljax.layers.blockwise`).

Under a causal mask the device of the last queries computes the most, and the others wait for it. Under a causal window
keys and values travel only as far as the window reaches.

Shapes: T queries and S keys of a device; B, G, R and K as in `ssljax.layers.blockwise`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ssljax.layers import blockwise
from ssljax.layers.masks import Given, Keys, Mask, Prefix, Segments, Shifted, Sliding, is_causal, parts_of
from ssljax.parallel.rules import free_sizes, partition_spec

AXIS = "context"

Keyed = tuple[
    jax.Array, ...
]  # arrays [B, G, S, K] that travel: keys, values and, in the backward pass, their gradients


class _Ring(NamedTuple):
    """The arguments of a call that are known when it is compiled."""

    setting: blockwise.Setting
    devices: int
    queries: int  # of a device, without padding
    reach: int | None  # no query attends to a key that is `reach` or more tokens away; None: no limit
    causal: bool  # no query attends to a later key

    @property
    def turns(self) -> int:
        """Number of devices whose keys a device gets, with its own."""
        if not self.causal or self.reach is None or self.queries != self.setting.keys:
            return self.devices
        return min(self.devices, 1 + -(-(self.reach - 1) // self.queries))

    def own(self) -> blockwise.Setting:
        """The setting of queries and keys of one device: forbidden blocks are skipped under a causal mask."""
        return self.setting._replace(causal=self.causal and self.queries == self.setting.keys)


def device_count() -> int:
    """Number of devices along the axis "context" of the current mesh; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)


def refuses(q: jax.Array, k: jax.Array, mask: Mask) -> str | None:
    """The reason why the ring does not support queries [B, T, H, K], keys [B, S, G, K] and a mask; None if it does."""
    devices = device_count()
    if devices == 1:
        return "the mesh does not split the length (mesh.context)"
    if q.shape[1] % devices or k.shape[1] % devices:
        return f"{q.shape[1]} queries and {k.shape[1]} keys are not multiples of mesh.context={devices}"
    if any(isinstance(part, Given) for part in parts_of(mask)):
        return "the mask is an array (generation with a cache)"
    return None


def attend_ring(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scale: float, cap: float | None, block: int
) -> jax.Array:
    """softmax(scale q k^T) v over allowed pairs, [B, T, H, K]; see `ssljax.layers.attention.attend`.

    Args:
        q: [B, T, H, K], with the whole length T.
        k, v: [B, S, G, K].
        mask: a mask for which `refuses` returns None.
        scale: factor of q k^T.
        cap: logits x become cap tanh(x / cap); None: no cap.
        block: number of queries, and of keys, in a block within a device.
    """
    mesh = free_sizes()
    split = partition_spec(("batch", "length", "kv", None), k.shape, mesh)
    rows = PartitionSpec(*split[:1])
    local = functools.partial(_of_device, scale=scale, cap=cap, block=block, devices=mesh[AXIS])
    specs = (split, split, split, _mask_specs(mask, rows))
    return jax.shard_map(local, in_specs=specs, out_specs=split, check_vma=False)(q, k, v, mask)


def _mask_specs(mask: Mask, rows: PartitionSpec) -> Any:
    """The sharding of each array of a mask: split by example if it has examples, and never by length."""

    def specs(part: Any) -> Any:
        has_rows = isinstance(part, Segments | Keys) or (isinstance(part, Prefix) and jnp.ndim(part.length) == 1)
        return jax.tree.map(lambda leaf: rows if has_rows else PartitionSpec(), part)

    parts = parts_of(mask)
    return jax.tree.map(specs, mask, is_leaf=lambda node: any(node is part for part in parts))


def _of_device(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scale: float, cap: float | None, block: int, devices: int
) -> jax.Array:
    """Attention of the queries [B, T, H, K] of this device to the keys [B, S, G, K] of all devices."""
    batch, queries, heads, width = q.shape
    keys, groups = k.shape[1:3]
    block = min(block, max(queries, keys))
    windows = [part.window for part in parts_of(mask) if isinstance(part, Sliding)]
    setting = blockwise.Setting(scale, cap, block, False, keys)
    ring = _Ring(setting, devices, queries, min(windows, default=None), is_causal(mask))
    q_BxGxRxTxK = q.reshape(batch, queries, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    k_BxGxSxK, v_BxGxSxK = (blockwise.padded(x.transpose(0, 2, 1, 3), 2, block) for x in (k, v))
    out = _attend(ring, blockwise.padded(q_BxGxRxTxK, 3, block), k_BxGxSxK, v_BxGxSxK, mask)
    return out[:, :, :, :queries].transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    return _forward(ring, q, k, v, mask)[0]


def _forward(ring: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> tuple[jax.Array, Any]:
    def turn(carry: Any, number: jax.Array) -> tuple[Any, None]:
        result, (k, v) = carry[0], _moved(ring, carry[1], 1)

        def add(result: Any) -> Any:
            return _joined(result, blockwise.forward(ring.setting, q, k, v, _part(ring, mask, number)))

        return (jax.lax.cond(_has_pairs(ring, number), add, lambda result: result, result), (k, v)), None

    result = blockwise.forward(ring.own(), q, k, v, _part(ring, mask, 0))
    (out, log_sum), _ = jax.lax.scan(turn, (result, (k, v)), jnp.arange(1, ring.turns))[0]
    return out, (q, k, v, mask, out, log_sum)


def _backward(ring: _Ring, residuals: Any, d_out: jax.Array) -> Any:
    q, k, v, mask, out, log_sum = residuals
    d_out = d_out.astype(jnp.float32)
    row_dot = jnp.sum(d_out * out, axis=-1)

    def gradients(setting: blockwise.Setting, k: jax.Array, v: jax.Array, number: Any) -> Any:
        return blockwise.backward(setting, q, k, v, _part(ring, mask, number), log_sum, row_dot, d_out)

    def turn(carry: Any, number: jax.Array) -> tuple[Any, None]:
        d_q, (k, v, d_k, d_v) = carry[0], _moved(ring, carry[1], 1)

        def add(total: Any) -> Any:
            return jax.tree.map(jnp.add, total, gradients(ring.setting, k, v, number))

        total = jax.lax.cond(_has_pairs(ring, number), add, lambda total: total, (d_q, d_k, d_v))
        return (total[0], (k, v, *total[1:])), None

    d_q, d_k, d_v = gradients(ring.own(), k, v, 0)
    d_q, travelled = jax.lax.scan(turn, (d_q, (k, v, d_k, d_v)), jnp.arange(1, ring.turns))[0]
    d_k, d_v = _moved(ring, travelled[2:], 1 - ring.turns)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _moved(ring: _Ring, arrays: Keyed, steps: int) -> Keyed:
    """Arrays that each device sends `steps` devices forward along the ring; negative: backward."""
    pairs = [(device, (device + steps) % ring.devices) for device in range(ring.devices)]
    return tuple(jax.lax.ppermute(x, AXIS, pairs) for x in arrays)


def _starts(ring: _Ring, number: Any) -> tuple[jax.Array, jax.Array]:
    """Numbers, in the sequence, of the first query of this device and of the first key that it has at a turn."""
    device = jax.lax.axis_index(AXIS)
    return device * ring.queries, (device - number) % ring.devices * ring.setting.keys


def _part(ring: _Ring, mask: Mask, number: Any) -> Mask:
    """The mask of the queries of this device and the keys that it has at a turn."""
    return Shifted(mask, *_starts(ring, number))


def _has_pairs(ring: _Ring, number: jax.Array) -> jax.Array:
    """False, bool [], if causality or the window forbid every pair of this device at a turn."""
    row, column = _starts(ring, number)
    before = row - (column + ring.setting.keys - 1)  # smallest distance of a query to an earlier key
    after = column - (row + ring.queries - 1)  # smallest distance of a query to a later key
    answer = jnp.bool_(True)
    if ring.causal:
        answer &= after <= 0
    if ring.reach is not None:
        answer &= (before < ring.reach) & (after < ring.reach)
    return answer


def _joined(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Joins (result [..., T, K], log-sum-exp [..., T]) of the same queries to two sets of keys."""
    log_sum = jnp.logaddexp(a[1], b[1])
    weigh = lambda part: part[0] * jnp.exp(part[1] - log_sum)[..., None]  # noqa: E731
    return weigh(a) + weigh(b), log_sum
