"""Attention by JAX's splash kernel for TPUs, which is fused and skips the blocks that a mask forbids."""

import concurrent.futures
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from ssljax.layers.masks import Causal, Keys, Mask, Segments, Sliding, parts_of
from ssljax.parallel.rules import free_sizes, on_each_device, partition_spec

LANES = 128  # sequence lengths must be multiples of this number


def refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> str | None:
    """The reason why the kernel does not support a request; None if it does."""
    parts = parts_of(mask)
    other = [part for part in parts if not isinstance(part, Causal | Sliding | Segments | Keys)]
    if other:
        return f"mask {type(other[0]).__name__} is none of Full, Causal, Sliding, Segments and Keys"
    if sum(isinstance(part, Segments) for part in parts) > 1:
        return "two masks of segments"
    if any(isinstance(part, Segments) and part.kv_ids is not None for part in parts):
        return "queries and keys have different segments"
    if any(isinstance(part, Keys) for part in parts) and len(parts) > 1:
        return "padding together with another mask may leave a query without keys"
    if q.shape[1] % LANES or k.shape[1] % LANES:
        return f"{q.shape[1]} queries and {k.shape[1]} keys are not multiples of {LANES}"
    return None


def attend_splash(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scale: float, cap: float | None, interpret: bool = False
) -> jax.Array:
    """softmax(scale q k^T) v over allowed pairs, [B, T, H, K]; see `ssljax.layers.attention.attend`.

    On a mesh each device has its rows and heads.

    Args:
        q: [B, T, H, K].
        k, v: [B, S, G, K].
        mask: a mask for which `refuses` returns None.
        scale: factor of q k^T.
        cap: logits x become cap tanh(x / cap); None: no cap.
        interpret: emulate the kernel, on any device (for tests).
    """
    split = partition_spec(("batch", None, "kv", None), k.shape, free_sizes())
    rows = PartitionSpec(*split[:1])
    ids = _segment_ids(mask, q.shape[1], k.shape[1])
    run = functools.partial(_attend, mask=mask, scale=scale, cap=cap, interpret=interpret)
    specs = (split, split, split, None if ids is None else (rows, rows))
    return on_each_device(run, specs, split)(q, k, v, ids)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: Any, mask: Mask, scale: float, cap: float | None, interpret: bool
) -> jax.Array:
    shape = (q.shape[1], k.shape[1])
    rows, columns = (next(n for n in (512, 256, LANES) if length % n == 0) for length in shape)
    blocks = kernel.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    pairs = masks.MultiHeadMask([_pairs(mask, shape)] * q.shape[2])
    make = functools.partial(
        kernel.make_splash_mha_single_device, pairs, block_sizes=blocks, attn_logits_soft_cap=cap, interpret=interpret
    )
    # The kernel computes its blocks on the default device. In a thread of its own, jax knows neither the trace of this
    # program nor its mesh, whose devices may be absent.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        attention = jax.tree.map(np.asarray, thread.submit(make).result())
    heads_first = [(a * scale if a is q else a).transpose(0, 2, 1, 3) for a in (q, k, v)]
    if ids is None:
        return jax.vmap(attention)(*heads_first).transpose(0, 2, 1, 3)
    out = jax.vmap(attention)(*heads_first, kernel.SegmentIds(*ids)).transpose(0, 2, 1, 3)
    # For a query without keys the kernel returns a mean of values.
    has_keys = (ids[0] >= 0) & (ids[1].max(axis=1, keepdims=True) >= 0)
    return jnp.where(has_keys[:, :, None, None], out, 0)


def _pairs(mask: Mask, shape: tuple[int, int]) -> Any:
    """The causal and sliding parts of a mask as a mask of the splash kernel; `shape` is (T, S)."""
    out: Any = masks.FullMask(shape)
    for part in parts_of(mask):
        if isinstance(part, Causal):
            new: Any = masks.CausalMask(shape)
        elif isinstance(part, Sliding):
            new = masks.LocalMask(shape, (part.window - 1, 0 if part.causal else part.window - 1), 0)
        else:
            continue
        out = new if isinstance(out, masks.FullMask) else out & new
    return out


def _segment_ids(mask: Mask, queries: int, keys: int) -> tuple[jax.Array, jax.Array] | None:
    """Segment ids of queries [B, T] and keys [B, S]; pairs with equal ids are allowed.

    Padding has id -1 as a query and -2 as a key, so that it matches nothing. None: the mask has no segments and no
    padding.
    """
    for part in parts_of(mask):
        if isinstance(part, Segments):
            ids = part.q_ids.astype(jnp.int32)
            return jnp.where(ids == 0, -1, ids), jnp.where(ids == 0, -2, ids)
        if isinstance(part, Keys):
            valid = part.valid.astype(bool)
            return jnp.zeros((valid.shape[0], queries), jnp.int32), jnp.where(valid, 0, -2)
    return None
