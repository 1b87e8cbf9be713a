"""Attention behind one function, `attend`, which picks a kernel from an ordered list for the platform.

The first kernel that supports the request (shapes, types, mask, logits) runs; the reasons against the kernels before it
are logged. No mask is ever dropped: the plain kernel "xla" ends every list and supports everything.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError, nearest
from ssljax.layers import ring
from ssljax.layers.blockwise import BLOCK, attend_blockwise
from ssljax.layers.masks import Causal, Full, Mask, Span, is_causal, may_be_empty
from ssljax.layers.ring import attend_ring
from ssljax.parallel import platform
from ssljax.parallel.rules import free_sizes, on_each_device, partition_spec

log = logging.getLogger(__name__)

_MASKED = -1e30  # logit of a forbidden pair
_FLOOR = -1e29  # lower bound of the maximum of a row: in a row without keys, exp(_MASKED - maximum) is exactly 0


class HeadMixing(NamedTuple):
    """Matrices that mix heads: new head n = sum over h of matrix[h, n] head h (Shazeer 2020, "Talking-Heads")."""

    logits: jax.Array  # [H, H], applied to scale q k^T
    weights: jax.Array  # [H, H], applied to the result of the softmax


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    *,
    scale: float | None = None,
    bias: jax.Array | None = None,
    cap: float | None = None,
    mix: HeadMixing | None = None,
    kernel: str = "auto",
    strict: bool = False,
) -> jax.Array:
    """softmax(scale q k^T) v over the pairs that the mask allows (Vaswani et al. 2017, equation 1).

    Query heads may share key and value heads (grouped-query attention, Ainslie et al. 2023).

    Args:
        q: [B, T, H, K].
        k: [B, S, G, K]; H is a multiple of G, head h uses group h // (H / G).
        v: [B, S, G, K].
        mask: allowed pairs; the result of a query without any key is 0, never NaN.
        scale: factor of q k^T; 1/sqrt(K) if None.
        bias: [B or 1, H, T, S], added to the scaled logits (a position term, for example); None: no bias.
        cap: logits x become cap tanh(x / cap), before the bias (Gemma 2); None: no cap.
        mix: matrices that mix heads: logits right after scaling, weights right after the softmax; None: no mixing.
        kernel: name of a kernel to try first; "auto": the first of the platform's list that supports the request.
        strict: raise an error if `kernel`, or a fused kernel of the platform, does not support the request.

    Returns:
        [B, T, H, K] in the type of q; the softmax is computed in float32.

    Raises:
        UserError: `kernel` is unknown, or `strict` is set and a slower kernel would be used.
    """
    transform = LogitTransform(1 / math.sqrt(q.shape[-1]) if scale is None else scale, bias, cap, mix)
    current = platform()
    choice = choose(q, k, v, mask, transform, platform=current, kernel=kernel)
    for name, reason in choice.refused.items():
        costly = KERNELS[name].fused or name == kernel
        if strict and costly:
            raise UserError(f"attention kernel {name!r} can't be used: {reason} (strict=false allows a slower one)")
        _log_once(logging.WARNING if costly else logging.DEBUG, f"not {name}: {reason}")
    _chosen[f"attention on {current}: {choice.name}"] = None
    return KERNELS[choice.name].run(q, k, v, mask, transform)


class Choice(NamedTuple):
    """The chosen kernel, and the kernels that were tried before it."""

    name: str
    refused: dict[str, str]  # {kernel: the reason why it does not support the request}


def choose(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    transform: "LogitTransform",
    *,
    platform: str,
    kernel: str = "auto",
) -> Choice:
    """The first kernel of a platform's list that supports the request.

    Args:
        q: [B, T, H, K].
        k, v: [B, S, G, K].
        mask: allowed pairs.
        transform: operations on q k^T.
        platform: "cpu", "gpu" or "tpu".
        kernel: name of a kernel to try before the list; "auto": the list alone.

    Raises:
        UserError: `kernel` is unknown.
    """
    names = PLATFORMS.get(platform, ("xla",))
    if ring.device_count() > 1:
        names = ("ring", *names)  # the other kernels gather the whole sequence on every device
    if kernel != "auto":
        if kernel not in KERNELS:
            raise UserError(
                f"attention kernel {kernel!r} is unknown{nearest(kernel, KERNELS)} (known: {', '.join(KERNELS)})"
            )
        names = (kernel, *(name for name in names if name != kernel))
    refused: dict[str, str] = {}
    for name in names:
        reason = KERNELS[name].refuses_platform(platform) or KERNELS[name].refuses(q, k, v, mask, transform)
        if reason is None:
            return Choice(name, refused)
        refused[name] = reason
    raise AssertionError("the last kernel of every list refuses nothing")


# Log lines of the chosen kernels, in the order of first use: state of the process that no computation reads. Kernels
# are chosen while jax traces a program, and a traced function returns arrays only, so `attend` cannot return the
# choice.
_chosen: dict[str, None] = {}


def log_choices() -> None:
    """Logs the kernels that were chosen so far, each once per process.

    `attend` does not log them itself: errors may follow the trace of a program, and an error should stand alone.
    """
    for line in _chosen:
        _log_once(logging.INFO, line)


@functools.cache
def _log_once(level: int, message: str) -> None:
    """Logs a message once per process: a program is traced several times, with the same choices."""
    log.log(level, message)


class LogitTransform(NamedTuple):
    """Operations on q k^T, in this order: scale, mix heads, cap, add bias; after mask and softmax, mix heads again."""

    scale: float
    bias: jax.Array | None = None  # [B or 1, H, T, S]
    cap: float | None = None
    mix: HeadMixing | None = None

    def block(self, rows: slice, columns: slice) -> "LogitTransform":
        """The operations for a block of queries (`rows`) and keys (`columns`)."""
        return self if self.bias is None else self._replace(bias=self.bias[:, :, rows, columns])


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> jax.Array:
    allowed = mask.block(Span(0, q.shape[1]), Span(0, k.shape[1]))
    return _from_heads(_softmax_block(*_to_heads(q, k, v), allowed, may_be_empty(mask), transform), q)


def _blocked_causal(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> jax.Array:
    """Attends block by block of queries, each to the keys up to its end: half the work of the full square."""
    q_BxGxRxTxK, k_BxGxSxK, v_BxGxSxK = _to_heads(q, k, v)
    length = q.shape[1]
    rows = _block_rows(length)
    out = []
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        block = q_BxGxRxTxK[:, :, :, start:stop], k_BxGxSxK[:, :, :stop], v_BxGxSxK[:, :, :stop]
        allowed = mask.block(Span(start, stop - start), Span(0, stop))
        block_transform = transform.block(slice(start, stop), slice(0, stop))
        out.append(_softmax_block(*block, allowed, may_be_empty(mask), block_transform))
    return _from_heads(jnp.concatenate(out, axis=3), q)


def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> jax.Array:
    out = attend_blockwise(*_to_heads(q, k, v), mask, scale=transform.scale, cap=transform.cap, block=BLOCK)
    return _from_heads(out, q)


def _ring(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> jax.Array:
    return attend_ring(q, k, v, mask, scale=transform.scale, cap=transform.cap, block=BLOCK)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> jax.Array:
    run = functools.partial(_even, scale=transform.scale, is_causal=isinstance(mask, Causal), implementation="cudnn")
    split = partition_spec(("batch", None, "kv", None), k.shape, free_sizes())
    return on_each_device(run, (split, split, split), split)(q, k, v)


def _even(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
    """Attention by `jax.nn`, whose backward pass through cuDNN takes even lengths only: odd ones are padded by one."""
    queries, keys = q.shape[1], k.shape[1]
    if queries % 2 or keys % 2:
        q, k, v = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0))) for a in (q, k, v))
        lengths = {"query_seq_lengths": queries, "key_value_seq_lengths": keys}
        options |= {name: jnp.full(len(q), length, jnp.int32) for name, length in lengths.items()}
    return jax.nn.dot_product_attention(q, k, v, **options)[:, :queries]


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> jax.Array:
    from ssljax.layers.splash import attend_splash

    return attend_splash(q, k, v, mask, scale=transform.scale, cap=transform.cap)


def _block_rows(length: int) -> int:
    """Queries per block: a multiple of 64, large enough that a sequence has at most 16 blocks (each is compiled)."""
    return max(64, -(-length // (16 * 64)) * 64)


def _to_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Moves heads before positions: q [B, T, H, K] -> [B, G, H/G, T, K]; k, v [B, S, G, K] -> [B, G, S, K]."""
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    q_BxGxRxTxK = q.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    return q_BxGxRxTxK, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def _from_heads(out_BxGxRxTxK: jax.Array, q_BxTxHxK: jax.Array) -> jax.Array:
    """[B, G, R, T, K] -> [B, T, H, K], in the shape and type of the queries."""
    return out_BxGxRxTxK.transpose(0, 3, 1, 2, 4).reshape(q_BxTxHxK.shape).astype(q_BxTxHxK.dtype)


def _softmax_block(
    q_BxGxRxTxK: jax.Array,
    k_BxGxSxK: jax.Array,
    v_BxGxSxK: jax.Array,
    allowed: jax.Array | None,
    may_be_empty: bool,
    transform: LogitTransform,
) -> jax.Array:
    """Attention of one block of queries to one block of keys: float32 [B, G, R, T, K].

    Args:
        q_BxGxRxTxK: queries; R query heads share each of G key heads.
        k_BxGxSxK: keys.
        v_BxGxSxK: values.
        allowed: bool, broadcastable to [B, 1, T, S]; None: every pair.
        may_be_empty: a query may have no allowed key; its result is then 0.
        transform: operations on q k^T of this block.
    """
    q_BxGxRxTxK = q_BxGxRxTxK * jnp.asarray(transform.scale, q_BxGxRxTxK.dtype)
    logits_BxGxRxTxS = jnp.einsum("bgrtk,bgsk->bgrts", q_BxGxRxTxK, k_BxGxSxK, preferred_element_type=jnp.float32)
    if transform.mix is not None:
        logits_BxGxRxTxS = _mix_heads(logits_BxGxRxTxS, transform.mix.logits)
    if transform.cap is not None:
        logits_BxGxRxTxS = transform.cap * jnp.tanh(logits_BxGxRxTxS / transform.cap)
    if transform.bias is not None:
        groups_and_repeats, pairs = q_BxGxRxTxK.shape[1:3], transform.bias.shape[2:]
        logits_BxGxRxTxS = logits_BxGxRxTxS + transform.bias.reshape(-1, *groups_and_repeats, *pairs)
    if allowed is not None:
        if allowed.ndim == 4:
            allowed = allowed[:, :, None]  # [B, 1, 1, T, S], for all heads
        logits_BxGxRxTxS = jnp.where(allowed, logits_BxGxRxTxS, _MASKED)
    # The maximum guards against overflow; the result does not depend on it, so it needs no gradient.
    top_BxGxRxTx1 = jax.lax.stop_gradient(jnp.max(logits_BxGxRxTxS, axis=-1, keepdims=True))
    if may_be_empty:
        top_BxGxRxTx1 = jnp.maximum(top_BxGxRxTx1, _FLOOR)
    weights_BxGxRxTxS = jnp.exp(logits_BxGxRxTxS - top_BxGxRxTx1)
    total = jnp.sum(weights_BxGxRxTxS, axis=-1, keepdims=True)  # [B, G, R, T, 1]
    if may_be_empty:
        total = jnp.where(total == 0, 1, total)
    if transform.mix is not None:  # the mixed weights need no further division
        weights_BxGxRxTxS = _mix_heads(weights_BxGxRxTxS / total, transform.mix.weights)
        total = jnp.float32(1)
    weights_BxGxRxTxS = weights_BxGxRxTxS.astype(v_BxGxSxK.dtype)
    out_BxGxRxTxK = jnp.einsum("bgrts,bgsk->bgrtk", weights_BxGxRxTxS, v_BxGxSxK, preferred_element_type=jnp.float32)
    return out_BxGxRxTxK / total  # after the product: K divisions per query instead of S


def _mix_heads(x_BxGxRxTxS: jax.Array, matrix_HxH: jax.Array) -> jax.Array:
    """Sums over heads: new head n = sum over h of matrix[h, n] head h."""
    x_BxHxTxS = x_BxGxRxTxS.reshape(x_BxGxRxTxS.shape[0], -1, *x_BxGxRxTxS.shape[3:])
    mixed_BxHxTxS = jnp.einsum("bhts,hn->bnts", x_BxHxTxS, matrix_HxH.astype(jnp.float32))
    return mixed_BxHxTxS.reshape(x_BxGxRxTxS.shape)


def _blocked_refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> str | None:
    if not is_causal(mask):
        return "the mask is not causal"
    if q.shape[1] != k.shape[1]:
        return f"{q.shape[1]} queries and {k.shape[1]} keys"
    if q.shape[1] < 128:
        return f"length {q.shape[1]} is less than 128"
    return None


def _blockwise_refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> str | None:
    if transform.mix is not None:
        return "heads are mixed (talking_heads)"
    if transform.bias is not None:
        return "logits have a bias, which is as large as the logits that this kernel avoids to store"
    if min(q.shape[1], k.shape[1]) < 2 * BLOCK:
        return f"{q.shape[1]} queries and {k.shape[1]} keys are fewer than {2 * BLOCK}"
    return None


def _ring_refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> str | None:
    if transform.mix is not None:
        return "heads are mixed (talking_heads)"
    if transform.bias is not None:
        return "logits have a bias"
    return ring.refuses(q, k, mask)


def _cudnn_refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> str | None:
    if transform.mix is not None:
        return "heads are mixed (talking_heads)"
    if transform.bias is not None or transform.cap is not None:
        return "logits have a bias" if transform.cap is None else "logits are capped"
    if not isinstance(mask, Full | Causal):
        return f"mask {type(mask).__name__} is not full or causal"
    if isinstance(mask, Causal) and q.shape[1] != k.shape[1]:
        return f"causal with {q.shape[1]} queries and {k.shape[1]} keys"
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        return f"compute type {q.dtype} is not bfloat16 or float16"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"head width {q.shape[-1]} is not a multiple of 8 up to 128"
    return None


def _splash_refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, transform: LogitTransform) -> str | None:
    if transform.mix is not None:
        return "heads are mixed (talking_heads)"
    if transform.bias is not None:
        return "logits have a bias"
    from ssljax.layers.splash import refuses

    return refuses(q, k, v, mask)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An implementation of attention, with the requests and the platform that it supports."""

    run: Callable[[jax.Array, jax.Array, jax.Array, Mask, LogitTransform], jax.Array]
    # (q, k, v, mask, transform) -> the reason why the kernel does not support the request; None: it does
    refuses: Callable[[jax.Array, jax.Array, jax.Array, Mask, LogitTransform], str | None]
    fused: bool = False  # other kernels are much slower: falling back is a warning, and an error under `strict`
    platform: str | None = None  # the only platform that it runs on; None: any

    def refuses_platform(self, platform: str) -> str | None:
        """The reason why the kernel does not run on a platform; None if it does."""
        if self.platform in (None, platform):
            return None
        return {"gpu": "it needs an NVIDIA GPU", "tpu": "it needs a TPU"}[self.platform]


KERNELS = {
    "ring": Kernel(_ring, _ring_refuses, fused=True),
    "cudnn": Kernel(_cudnn, _cudnn_refuses, fused=True, platform="gpu"),
    "splash": Kernel(_splash, _splash_refuses, fused=True, platform="tpu"),
    "blocked_causal": Kernel(_blocked_causal, _blocked_refuses),
    "blockwise": Kernel(_blockwise, _blockwise_refuses),
    "xla": Kernel(_xla, lambda q, k, v, mask, transform: None),
}
PLATFORMS = {
    "gpu": ("cudnn", "blocked_causal", "blockwise", "xla"),
    "tpu": ("splash", "blocked_causal", "blockwise", "xla"),
    "cpu": ("blocked_causal", "blockwise", "xla"),
}
