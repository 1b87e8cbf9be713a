"""Attention by the splash kernel of JAX for TPUs: fused, and blocks that a mask forbids are not computed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from ssljax.layers.masks import Causal, Keys, Mask, Segments, Sliding, parts_of
from ssljax.parallel.rules import partition_spec

LANES = 128  # lengths must be multiples


def refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> str | None:
    """The reason why the kernel does not support a mask; None if it does."""
    parts = parts_of(mask)
    other = [part for part in parts if not isinstance(part, Causal | Sliding | Segments | Keys)]
    if other:
        return f"mask {type(other[0]).__name__} is none of full, causal, sliding, segments and keys"
    if sum(isinstance(part, Segments) for part in parts) > 1:
        return "two masks of segments"
    if any(isinstance(part, Segments) and part.kv_ids is not None for part in parts):
        return "queries and keys have different segments"
    if any(isinstance(part, Keys) for part in parts) and len(parts) > 1:
        return "a query may have no key, which is unknown at compile time"
    if q.shape[1] % LANES or k.shape[1] % LANES:
        return f"{q.shape[1]} queries and {k.shape[1]} keys are not multiples of {LANES}"
    return None


def attend_splash(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scale: float, cap: float | None, interpret: bool = False
) -> jax.Array:
    """softmax(scale q k^T) v over allowed pairs; see `ssljax.layers.attention.attend`.

    On a mesh each device attends for its rows and heads; the compiler does not derive this by itself.

    Args:
        q: [B, T, H, K]. k, v: [B, S, G, K].
        mask: a mask that `refuses` accepts.
        interpret: compute as an ordinary program, on any device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    split = partition_spec(("batch", None, "kv", None), k.shape, dict(mesh.shape))
    rows = PartitionSpec(*split[:1])
    ids = _segment_ids(mask, q.shape[1], k.shape[1])
    run = functools.partial(_attend, mask=mask, scale=scale, cap=cap, interpret=interpret)
    if any(axis is not None for axis in split):
        specs = (split, split, split, None if ids is None else (rows, rows))
        run = jax.shard_map(run, in_specs=specs, out_specs=split, check_vma=False)
    return run(q, k, v, ids)


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
    # The kernel needs the mask as an array on the host, also while a program is traced.
    with jax.ensure_compile_time_eval():
        attention = kernel.make_splash_mha_single_device(
            pairs, block_sizes=blocks, attn_logits_soft_cap=cap, interpret=interpret
        )
    heads_first = [(a * scale if a is q else a).transpose(0, 2, 1, 3) for a in (q, k, v)]
    if ids is None:
        return jax.vmap(attention)(*heads_first).transpose(0, 2, 1, 3)
    out = jax.vmap(attention)(*heads_first, kernel.SegmentIds(*ids)).transpose(0, 2, 1, 3)
    has_keys = (ids[0] >= 0) & (
        ids[1].max(axis=1, keepdims=True) >= 0
    )  # the kernel returns a mean of values for other queries
    return jnp.where(has_keys[:, :, None, None], out, 0)


def _pairs(mask: Mask, shape: tuple[int, int]) -> Any:
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
    """Segments of queries [B, T] and keys [B, S]; pairs of equal ids are allowed. Padding has -1 and -2."""
    for part in parts_of(mask):
        if isinstance(part, Segments):
            ids = part.q_ids.astype(jnp.int32)
            return jnp.where(ids == 0, -1, ids), jnp.where(ids == 0, -2, ids)
        if isinstance(part, Keys):
            valid = part.valid.astype(bool)
            return jnp.zeros((valid.shape[0], queries), jnp.int32), jnp.where(valid, 0, -2)
    return None
