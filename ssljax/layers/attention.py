"""Attention behind one function: an ordered list of kernels per platform, each stating what it supports.

A kernel that does not support a request is passed over, with the reason in the log; no mask is ever dropped. The plain
kernel is last in every list and supports everything.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError, nearest
from ssljax.layers.blockwise import BLOCK, attend_blockwise
from ssljax.layers.masks import Causal, Full, Mask, Span, is_causal, may_be_empty
from ssljax.parallel import platform

log = logging.getLogger(__name__)

_MASKED = -1e30  # the logit of a forbidden pair
_FLOOR = -1e29  # lower bound of row maxima, so that exp(_MASKED - maximum) is exactly 0 in a row without keys


class Mix(NamedTuple):
    """Learned sums over heads; head h enters head n with weight [h, n] (Shazeer 2020, "Talking-Heads Attention")."""

    logits: jax.Array  # [H, H], for scale q k^T
    weights: jax.Array  # [H, H], for the softmax


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    *,
    scale: float | None = None,
    bias: jax.Array | None = None,
    cap: float | None = None,
    mix: Mix | None = None,
    kernel: str = "auto",
    strict: bool = False,
) -> jax.Array:
    """softmax(scale q k^T) v over the allowed pairs (Vaswani 2017, equation 1), grouped heads (Ainslie 2023).

    Args:
        q: [B, T, H, K].
        k: [B, S, G, K]; H is a multiple of G, head h uses group h // (H / G).
        v: [B, S, G, K].
        mask: allowed pairs; a query without any key gets zeros, never NaN.
        scale: factor of q k^T; 1/sqrt(K) if None.
        bias: [B or 1, H, T, S], added to the scaled logits (a position term, for example).
        cap: logits x become cap tanh(x / cap), before the bias (Gemma 2).
        mix: of heads; logits are mixed right after scaling, weights after the softmax (Shazeer 2020).
        kernel: "auto" (the first of the platform's list that supports the request) or a name to try first.
        strict: refuse to fall back from the named kernel, or from a fused one.

    Returns:
        [B, T, H, K] in the type of q; softmax in float32.

    Raises:
        UserError: unknown kernel, or `strict` and a fallback.
    """
    logits = Logits(1 / math.sqrt(q.shape[-1]) if scale is None else scale, bias, cap, mix)
    on = platform()
    choice = choose(q, k, v, mask, logits, platform=on, kernel=kernel)
    for name, reason in choice.refused.items():
        costly = KERNELS[name].fused or name == kernel
        if strict and costly:
            raise UserError(f"attention kernel {name!r} can't be used: {reason} (strict=false allows a slower one)")
        _log_once(logging.WARNING if costly else logging.DEBUG, f"not {name}: {reason}")
    _chosen[f"attention on {on}: {choice.name}"] = None
    return KERNELS[choice.name].run(q, k, v, mask, logits)


class Choice(NamedTuple):
    """A kernel, and the kernels before it in the list with the reason why each was passed over."""

    name: str
    refused: dict[str, str]


def choose(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: "Logits", *, platform: str, kernel: str = "auto"
) -> Choice:
    """The first kernel of a platform's list that supports the request; `kernel`, unless "auto", is tried before.

    Raises:
        UserError: unknown kernel.
    """
    names = PLATFORMS.get(platform, ("xla",))
    if kernel != "auto":
        if kernel not in KERNELS:
            raise UserError(
                f"attention kernel {kernel!r} is unknown{nearest(kernel, KERNELS)} (known: {', '.join(KERNELS)})"
            )
        names = (kernel, *(name for name in names if name != kernel))
    refused: dict[str, str] = {}
    for name in names:
        reason = KERNELS[name].needs(platform) or KERNELS[name].refuses(q, k, v, mask, logits)
        if reason is None:
            return Choice(name, refused)
        refused[name] = reason
    raise AssertionError("the last kernel of every list refuses nothing")


# State of the process, for the log alone; no computation depends on it. Kernels are chosen while jax traces a program,
# and a trace returns nothing but arrays, so the choice cannot be returned to the caller who wants to report it.
_chosen: dict[str, None] = {}  # a line for each kernel that was chosen, in the order of their first use


def log_choices() -> None:
    """Logs each kernel that was chosen so far, once in a process.

    The caller decides when: a program is traced before all mistakes of its user are known, and an error should stand
    alone.
    """
    for line in _chosen:
        _log_once(logging.INFO, line)


@functools.cache
def _log_once(level: int, message: str) -> None:
    """Logs a message the first time: a program is traced several times, with the same choices."""
    log.log(level, message)


class Logits(NamedTuple):
    """Operations on q k^T, in this order: scale, mix, cap, bias, mask, softmax, mix."""

    scale: float
    bias: jax.Array | None = None  # [B or 1, H, T, S]
    cap: float | None = None
    mix: Mix | None = None

    def part(self, rows: slice, columns: slice) -> "Logits":
        """The operations for a block of queries and keys."""
        return self if self.bias is None else self._replace(bias=self.bias[:, :, rows, columns])


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: Logits) -> jax.Array:
    allowed = mask.block(Span(0, q.shape[1]), Span(0, k.shape[1]))
    return _from_heads(_softmax_block(*_to_heads(q, k, v), allowed, may_be_empty(mask), logits), q)


def _blocked_causal(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: Logits) -> jax.Array:
    """Blocks of query rows, each against its prefix of the keys only: half the work of the full square."""
    qh, kh, vh = _to_heads(q, k, v)
    length = q.shape[1]
    rows = _block_rows(length)
    out = []
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        block = qh[:, :, :, start:stop], kh[:, :, :stop], vh[:, :, :stop]
        allowed, how = (
            mask.block(Span(start, stop - start), Span(0, stop)),
            logits.part(slice(start, stop), slice(0, stop)),
        )
        out.append(_softmax_block(*block, allowed, may_be_empty(mask), how))
    return _from_heads(jnp.concatenate(out, axis=3), q)


def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: Logits) -> jax.Array:
    return _from_heads(attend_blockwise(*_to_heads(q, k, v), mask, scale=logits.scale, cap=logits.cap, block=BLOCK), q)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: Logits) -> jax.Array:
    causal = isinstance(mask, Causal)
    return jax.nn.dot_product_attention(q, k, v, scale=logits.scale, is_causal=causal, implementation="cudnn")


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: Logits) -> jax.Array:
    from ssljax.layers.splash import attend_splash

    return attend_splash(q, k, v, mask, scale=logits.scale, cap=logits.cap)


def _block_rows(length: int) -> int:
    """Rows per block: 64, more for long sequences so that at most 16 blocks are compiled."""
    return max(64, -(-length // (16 * 64)) * 64)


def _to_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Heads-major layout: q [B, G, H/G, T, K], k and v [B, G, S, K]."""
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    q_BxGxRxTxK = q.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    return q_BxGxRxTxK, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def _from_heads(out: jax.Array, like: jax.Array) -> jax.Array:
    return out.transpose(0, 3, 1, 2, 4).reshape(like.shape).astype(like.dtype)


def _softmax_block(q, k, v, allowed, may_be_empty: bool, how: Logits) -> jax.Array:
    """Attention of q [B, G, R, t, K] to k, v [B, G, s, K]; allowed broadcasts to [B, 1, t, s] or is None."""
    q = q * jnp.asarray(how.scale, q.dtype)
    logits = jnp.einsum("bgrtk,bgsk->bgrts", q, k, preferred_element_type=jnp.float32)
    if how.mix is not None:
        logits = _mixed(logits, how.mix.logits)
    if how.cap is not None:
        logits = how.cap * jnp.tanh(logits / how.cap)
    if how.bias is not None:
        logits = logits + how.bias.reshape(-1, *q.shape[1:3], *how.bias.shape[2:])
    if allowed is not None:
        if allowed.ndim == 4:
            allowed = allowed[:, :, None]  # [B, 1, 1, t, s], for all heads
        logits = jnp.where(allowed, logits, _MASKED)
    # The maximum guards against overflow; the result does not depend on it, so it needs no gradient.
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    if may_be_empty:
        top = jnp.maximum(top, _FLOOR)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if may_be_empty:
        total = jnp.where(total == 0, 1, total)
    if how.mix is not None:
        weights, total = _mixed(weights / total, how.mix.weights), jnp.float32(1)
    out = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out / total  # after the product: K divisions per row instead of S


def _mixed(x_BxGxRxTxS: jax.Array, by_HxH: jax.Array) -> jax.Array:
    x_BxHxTxS = x_BxGxRxTxS.reshape(x_BxGxRxTxS.shape[0], -1, *x_BxGxRxTxS.shape[3:])
    return jnp.einsum("bhts,hn->bnts", x_BxHxTxS, by_HxH.astype(jnp.float32)).reshape(x_BxGxRxTxS.shape)


def _blocked_refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: Logits) -> str | None:
    if not is_causal(mask):
        return "the mask is not causal"
    if q.shape[1] != k.shape[1]:
        return f"{q.shape[1]} queries and {k.shape[1]} keys"
    if q.shape[1] < 128:
        return f"length {q.shape[1]} is under 128"
    return None


def _blockwise_refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: Logits) -> str | None:
    if logits.mix is not None:
        return "heads are mixed (talking_heads)"
    if logits.bias is not None:
        return "logits have a bias, which is as large as the square itself"
    if min(q.shape[1], k.shape[1]) < 2 * BLOCK:
        return f"{q.shape[1]} queries and {k.shape[1]} keys are under {2 * BLOCK}"
    return None


def _cudnn_refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: Logits) -> str | None:
    if logits.mix is not None:
        return "heads are mixed (talking_heads)"
    if logits.bias is not None or logits.cap is not None:
        return "logits have a bias" if logits.cap is None else "logits are capped"
    if not isinstance(mask, Full | Causal):
        return f"mask {type(mask).__name__} is not full or causal"
    if isinstance(mask, Causal) and q.shape[1] != k.shape[1]:
        return f"causal with {q.shape[1]} queries and {k.shape[1]} keys"
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        return f"compute type {q.dtype} is not bfloat16 or float16"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"head width {q.shape[-1]} is not a multiple of 8 up to 128"
    return None


def _splash_refuses(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, logits: Logits) -> str | None:
    if logits.mix is not None:
        return "heads are mixed (talking_heads)"
    if logits.bias is not None:
        return "logits have a bias"
    from ssljax.layers.splash import refuses

    return refuses(q, k, v, mask)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One way to compute attention. `refuses` returns the reason why it cannot on its platform, or None."""

    run: Callable[[jax.Array, jax.Array, jax.Array, Mask, Logits], jax.Array]
    refuses: Callable[[jax.Array, jax.Array, jax.Array, Mask, Logits], str | None]
    fused: bool = False  # passing it over costs much: worth a warning, and an error under strict
    platform: str | None = None  # the only platform that it runs on; None: any

    def needs(self, platform: str) -> str | None:
        """The reason why the kernel cannot run on a platform, or None."""
        if self.platform in (None, platform):
            return None
        return {"gpu": "it needs an NVIDIA GPU", "tpu": "it needs a TPU"}[self.platform]


KERNELS = {
    "cudnn": Kernel(_cudnn, _cudnn_refuses, fused=True, platform="gpu"),
    "splash": Kernel(_splash, _splash_refuses, fused=True, platform="tpu"),
    "blocked_causal": Kernel(_blocked_causal, _blocked_refuses),
    "blockwise": Kernel(_blockwise, _blockwise_refuses),
    "xla": Kernel(_xla, lambda q, k, v, mask, logits: None),
}
PLATFORMS = {
    "gpu": ("cudnn", "blocked_causal", "blockwise", "xla"),
    "tpu": ("splash", "blocked_causal", "blockwise", "xla"),
    "cpu": ("blocked_causal", "blockwise", "xla"),
}
