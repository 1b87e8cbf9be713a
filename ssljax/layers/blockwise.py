"""Attention whose memory grows linearly with the length, forward and backward.

Blocks of queries attend to blocks of keys, with a running maximum and a running sum (Rabe & Staats 2021,
"Self-attention does not need O(n^2) memory"; Dao et al. 2022, "FlashAttention", algorithms 1 and 2). Only one block of
logits exists at a time. The backward pass recomputes each block from the log-sum-exp of each query.

Shapes: T queries and S keys of a whole sequence, t queries and s keys of one block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.layers.masks import Mask, Span, is_causal

BLOCK = 512  # number of queries, and of keys, in a block
_MASKED = -1e30  # logit of a forbidden pair
_FLOOR = -1e29  # initial maximum of a query: exp(_MASKED - _FLOOR) is exactly 0


class Setting(NamedTuple):
    """The arguments of a call that are known when it is compiled."""

    scale: float
    cap: float | None
    block: int  # number of queries, and of keys, in a block
    causal: bool  # no query attends to a key with a larger index
    keys: int  # number of keys without the padding of the last block


def attend_blockwise(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scale: float, cap: float | None = None, block: int = BLOCK
) -> jax.Array:
    """Attention of q [B, G, R, T, K] to k, v [B, G, S, K] under a mask: float32 [B, G, R, T, K].

    Args:
        q: queries; R query heads share each of G key heads.
        k, v: keys and values.
        mask: allowed pairs; the result of a query without any key is 0.
        scale: factor of q k^T.
        cap: logits x become cap tanh(x / cap); None: no cap.
        block: number of queries, and of keys, in a block.
    """
    queries, keys = q.shape[3], k.shape[2]
    block = min(block, max(queries, keys))
    setting = Setting(scale, cap, block, is_causal(mask), keys)
    out = _attend(setting, padded(q, 3, block), padded(k, 2, block), padded(v, 2, block), mask)
    return out[:, :, :, :queries]


def padded(x: jax.Array, axis: int, block: int) -> jax.Array:
    """Pads an axis with zeros to a multiple of `block`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(setting: Setting, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    return forward(setting, q, k, v, mask)[0]


def _forward(setting: Setting, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> tuple[jax.Array, Any]:
    out, log_sum = forward(setting, q, k, v, mask)
    return out, (q, k, v, mask, out, log_sum)


def forward(setting: Setting, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array]:
    """Attention, float32 [B, G, R, T, K], and the log-sum-exp of the logits of each query, float32 [B, G, R, T].

    The lengths T and S are multiples of the block. A query without keys has result 0 and log-sum-exp -1e29.
    """

    def rows(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        q_BxGxRxtxK = _slice(q, i, 3, setting.block)

        def add(carry: Any, j: jax.Array) -> Any:
            top, total, out = carry
            logits, _, allowed = _logits(setting, q_BxGxRxtxK, k, mask, i, j)
            top_new = jnp.maximum(top, jnp.max(logits, axis=-1))
            shrink, weights = jnp.exp(top - top_new), jnp.where(allowed, jnp.exp(logits - top_new[..., None]), 0)
            values = _slice(v, j, 2, setting.block)
            new = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v.dtype), values, preferred_element_type=jnp.float32)
            return top_new, total * shrink + jnp.sum(weights, axis=-1), out * shrink[..., None] + new

        shape = q_BxGxRxtxK.shape[:-1]
        start = jnp.full(shape, _FLOOR), jnp.zeros(shape), jnp.zeros((*shape, v.shape[-1]))
        top, total, out = _fold(setting, start, add, i, _block_count(k, 2, setting), rows=True)
        total = jnp.where(total == 0, 1, total)
        return out / total[..., None], top + jnp.log(total)

    out, log_sum = jax.lax.map(rows, jnp.arange(_block_count(q, 3, setting)))
    return _join(out), _join(log_sum[..., None])[..., 0]


def _backward(setting: Setting, residuals: Any, d_out: jax.Array) -> Any:
    q, k, v, mask, out, log_sum = residuals
    d_out = d_out.astype(jnp.float32)
    row_dot_BxGxRxT = jnp.sum(d_out * out, axis=-1)
    d_q, d_k, d_v = backward(setting, q, k, v, mask, log_sum, row_dot_BxGxRxT, d_out)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


def backward(
    setting: Setting,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    log_sum: jax.Array,
    row_dot_BxGxRxT: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients with respect to q, k and v in float32; with a part of the keys, the part of d_q that they add.

    Args:
        setting: of the call.
        q, k, v, mask: the arguments of `forward`.
        log_sum: log-sum-exp of the logits of each query over all its keys, float32 [B, G, R, T].
        row_dot_BxGxRxT: sum of d_out times the result over the head width: for each query, the sum over its keys of
            weight times the gradient with respect to the weight.
        d_out: gradient with respect to the result, float32 [B, G, R, T, K].
    """
    part = functools.partial(_slice, size=setting.block)

    def pair(i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attention weights of query block i and key block j, and the gradient with respect to q k^T."""
        logits, slope, allowed = _logits(setting, part(q, i, 3), k, mask, i, j)
        weights = jnp.where(allowed, jnp.exp(logits - part(log_sum, i, 3)[..., None]), 0)
        values = part(v, j, 2).astype(jnp.float32)
        d_weights = jnp.einsum("bgrtk,bgsk->bgrts", part(d_out, i, 3), values)
        return weights, weights * (d_weights - part(row_dot_BxGxRxT, i, 3)[..., None]) * slope * setting.scale

    def rows(i: jax.Array) -> jax.Array:
        def add(total: jax.Array, j: jax.Array) -> jax.Array:
            return total + jnp.einsum("bgrts,bgsk->bgrtk", pair(i, j)[1], part(k, j, 2).astype(jnp.float32))

        zero = jnp.zeros(part(q, i, 3).shape)
        return _fold(setting, zero, add, i, _block_count(k, 2, setting), rows=True)

    def columns(j: jax.Array) -> tuple[jax.Array, jax.Array]:
        def add(total: Any, i: jax.Array) -> Any:
            weights, d_logits = pair(i, j)
            d_k = jnp.einsum("bgrts,bgrtk->bgsk", d_logits, part(q, i, 3).astype(jnp.float32))
            d_v = jnp.einsum("bgrts,bgrtk->bgsk", weights, part(d_out, i, 3))
            return total[0] + d_k, total[1] + d_v

        zero = jnp.zeros(part(k, j, 2).shape), jnp.zeros(part(v, j, 2).shape)
        return _fold(setting, zero, add, j, _block_count(q, 3, setting), rows=False)

    d_q = _join(jax.lax.map(rows, jnp.arange(_block_count(q, 3, setting))))
    d_k, d_v = (_join(x) for x in jax.lax.map(columns, jnp.arange(_block_count(k, 2, setting))))
    return d_q, d_k, d_v


_attend.defvjp(_forward, _backward)


def _fold(setting: Setting, carry: Any, add: Any, block: jax.Array, count: int, rows: bool) -> Any:
    """Folds `add(carry, other)` over the blocks that one block meets; causal masks skip the forbidden blocks.

    Args:
        setting: of the call.
        carry: initial value.
        add: (carry, number of the other block) -> carry.
        block: number of the one block.
        count: number of the other blocks.
        rows: True: `block` numbers queries and the others keys; False: the reverse.
    """

    def step(carry: Any, other: jax.Array) -> tuple[Any, None]:
        if not setting.causal:
            return add(carry, other), None
        allowed = other <= block if rows else block <= other
        return jax.lax.cond(allowed, add, lambda carry, other: carry, carry, other), None

    return jax.lax.scan(step, carry, jnp.arange(count))[0]


def _logits(
    setting: Setting, q: jax.Array, k: jax.Array, mask: Mask, i: jax.Array, j: jax.Array
) -> tuple[jax.Array, jax.Array | float, jax.Array]:
    """Logits of query block i and key block j, the derivative of the cap at each, and the allowed pairs."""
    size = setting.block
    q = q * jnp.asarray(setting.scale, q.dtype)
    logits = jnp.einsum("bgrtk,bgsk->bgrts", q, _slice(k, j, 2, size), preferred_element_type=jnp.float32)
    slope: jax.Array | float = 1.0
    if setting.cap is not None:
        share = jnp.tanh(logits / setting.cap)
        logits, slope = setting.cap * share, 1 - jnp.square(share)
    rows, columns = Span(i * size, size), Span(j * size, size)
    allowed = mask.block(rows, columns)
    no_padding = columns.numbers() < setting.keys
    allowed = no_padding if allowed is None else allowed & no_padding
    allowed = allowed[:, :, None] if allowed.ndim == 4 else allowed  # [B, 1, 1, t, s], for all heads
    return jnp.where(allowed, logits, _MASKED), slope, allowed


def _slice(x: jax.Array, i: jax.Array, axis: int, size: int) -> jax.Array:
    """Block number i of an axis that is cut into blocks of `size`."""
    return jax.lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _block_count(x: jax.Array, axis: int, setting: Setting) -> int:
    return x.shape[axis] // setting.block


def _join(blocks: jax.Array) -> jax.Array:
    """Joins n blocks: [n, ..., t, K] -> [..., n t, K]."""
    x = jnp.moveaxis(blocks, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])
