"""Cross-entropy of logits, and cross-entropy fused with the projection to logits."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.losses.reduction import EXACT, present, weighted_mean, weights_of


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore: int = -100,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Literal["token", "example"] = "token",
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Softmax cross-entropy in nats.

    The target of an integer label y is (1 - s) onehot(y) + s / C with s = `smoothing` (Szegedy et al. 2016, section 7);
    soft labels are smoothed the same way.

    Args:
        logits: [N, C], or [N, L, C] of texts; any float type, computed in float32.
        labels: int [N] or [N, L] in [0, C), or soft labels, of the shape of the logits. Another integer whose weight is
            positive gives NaN, so that a wrong label is noticed.
        ignore: label without loss.
        smoothing: s.
        z_loss: weight of the squared logarithm of the softmax's denominator, which keeps logits small (Chowdhery et al.
            2022, "PaLM", section 5).
        reduction: of texts; "token": mean over all tokens of the batch; "example": mean over texts of their means.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]); the weight of a text is then its weight times, for "token", the
            number of its tokens.

    Raises:
        UserError: another `reduction`.
    """
    if reduction not in ("token", "example"):
        raise UserError(f"reduction: got {reduction!r}, must be 'token' or 'example'")
    weights = weights_of(weights, logits.shape[0])
    (logits,) = present(weights, logits.astype(jnp.float32))
    soft = labels.ndim == logits.ndim
    labels = present(weights, labels)[0] if soft else labels
    counted = jnp.ones(logits.shape[:-1], bool) if soft else labels != ignore
    logits = jnp.where(counted[..., None], logits, 0.0)
    values = _cross_entropies(logits, labels, counted, smoothing, z_loss)
    if logits.ndim == 2:
        return weighted_mean(values, jnp.where(counted, weights, 0.0), reduce)
    count = counted.sum(range(1, counted.ndim))
    means = jnp.where(counted, values, 0.0).sum(range(1, counted.ndim)) / jnp.maximum(count, 1)
    return weighted_mean(means, weights * (count if reduction == "token" else count > 0), reduce)


def _cross_entropies(
    logits: jax.Array, labels: jax.Array, counted: jax.Array, smoothing: float, z_loss: float
) -> jax.Array:
    """The loss of each label [...], for logits [..., C]."""
    log_p, classes = jax.nn.log_softmax(logits), logits.shape[-1]
    if labels.ndim == logits.ndim:
        # A class without mass adds 0, even if its logit is -inf.
        values = -jnp.where(labels == 0, 0.0, labels.astype(jnp.float32) * log_p).sum(-1)
        total = labels.astype(jnp.float32).sum(-1)
    else:
        values = -jnp.take_along_axis(log_p, _clipped(labels, classes)[..., None], axis=-1)[..., 0]
        values = jnp.where(counted, _nan_outside(values, labels, classes), 0.0)
        total = jnp.float32(1.0)
    spread = jnp.where(smoothing == 0, 0.0, smoothing * -log_p.mean(-1) * total)
    values = (1 - smoothing) * values + spread
    if isinstance(z_loss, float | int) and z_loss == 0:
        return values
    return values + z_loss * jnp.square(jax.nn.logsumexp(logits, -1))


def binary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    smoothing: float = 0.0,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Binary cross-entropy of logits in nats, mean over the labels of an example.

    Args:
        logits: [N] or [N, C], one for each of C labels that do not exclude each other.
        labels: 0, 1, or probabilities, of the shape of the logits.
        smoothing: s; the target is (1 - s) y + s / 2.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, logits.shape[0])
    logits, labels = present(weights, logits.astype(jnp.float32), labels)
    target = (1 - smoothing) * labels.astype(jnp.float32) + smoothing / 2
    values = jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return weighted_mean(values.reshape(len(values), -1).mean(-1), weights, reduce)


class TokenScores(NamedTuple):
    """Scores of each label under the output projection.

    Attributes:
        nll: float32 [N], minus the log probability of the label, in nats.
        correct: bool [N], True if no other class has a higher logit (ties count as correct). It has no gradient.
    """

    nll: jax.Array
    correct: jax.Array


def linear_nll(
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    *,
    cap: float | None = None,
    chunk: int = 512,
) -> TokenScores:
    """-log softmax(hidden @ kernel + bias)[label], computed without an array of shape [N, V].

    The tokens are processed in slabs of `chunk`. The backward pass recomputes the logits of each slab from the saved
    log-normaliser. The extra memory is [chunk, V] and the extra work is one matrix product.

    Args:
        hidden: [N, D]; the product is computed in its dtype and accumulated in float32.
        kernel: [D, V].
        bias: [V] or None.
        labels: int [N]; a label outside [0, V) gives NaN.
        cap: soft cap of the products, x -> cap tanh(x / cap), applied before the bias (Gemma 2); None = no cap.
        chunk: number of tokens per slab; it need not divide N. On a mesh, call the function under `shard_map`
            (`parallel.over_batch`): then each device has slabs of its own.
    """
    n, v = hidden.shape[0], kernel.shape[1]
    bias = jnp.zeros(v, jnp.float32) if bias is None else bias
    slabs = -(-n // chunk)
    padding = slabs * -(-n // slabs) - n
    clipped = jnp.pad(_clipped(labels, v), (0, padding))
    scores = _linear_nll(slabs, cap, jnp.pad(hidden, ((0, padding), (0, 0))), kernel, bias, clipped)
    return TokenScores(_nan_outside(scores.nll[:n], labels, v), scores.correct[:n])


def linear_cross_entropy(
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    chunk: int = 512,
    *,
    bias: jax.Array | None = None,
    ignore: int = -100,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """`cross_entropy(hidden @ weight + bias, labels)`, computed by `linear_nll`: no array has shape [N, V].

    Args:
        hidden: [N, D].
        weight: [D, V].
        labels: int [N]; not read where the weight of the example is 0.
        chunk: number of tokens whose logits are in memory at a time.
        bias: [V]; None: none.
        ignore: label without loss.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = jnp.where(labels != ignore, weights_of(weights, hidden.shape[0]), 0.0)
    hidden, labels = present(weights, hidden, labels)
    scores = linear_nll(hidden, weight, bias, labels, chunk=chunk)
    return weighted_mean(scores.nll, weights, reduce)


def _clipped(labels: jax.Array, classes: int) -> jax.Array:
    return jnp.clip(labels, 0, classes - 1)


def _nan_outside(values: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    return jnp.where((labels >= 0) & (labels < classes), values, jnp.nan)


def _split(x: jax.Array, slabs: int) -> jax.Array:
    # Token r * slabs + s goes to slab s, so every slab has tokens from the whole batch. Contiguous slabs of an array
    # that is sharded along N would each live on one device, and the devices would work one after another.
    return jnp.moveaxis(x.reshape(x.shape[0] // slabs, slabs, *x.shape[1:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, precision=EXACT, preferred_element_type=jnp.float32)


def _products(hidden: jax.Array, kernel: jax.Array, cap: float | None) -> tuple[jax.Array, jax.Array | float]:
    """Returns hidden @ kernel after the cap, and the derivative of the cap."""
    product = _dot(hidden, kernel)
    if cap is None:
        return product, 1.0
    share = jnp.tanh(product / cap)
    return cap * share, 1 - jnp.square(share)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear_nll(slabs, cap, hidden, kernel, bias, labels) -> TokenScores:
    return _forward(slabs, cap, hidden, kernel, bias, labels)[0]


def _forward(slabs, cap, hidden, kernel, bias, labels):
    narrow_kernel = kernel.astype(hidden.dtype)  # once, not in each slab

    def slab(_, slab_inputs):
        h, y = slab_inputs
        logits = _products(h, narrow_kernel, cap)[0] + bias.astype(jnp.float32)
        top = logits.max(-1)
        log_normaliser = top + jnp.log(jnp.exp(logits - top[:, None]).sum(-1))
        at_label = jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
        return None, (log_normaliser - at_label, at_label >= top, log_normaliser)

    _, out = jax.lax.scan(slab, None, (_split(hidden, slabs), _split(labels, slabs)))
    nll, correct, log_normaliser = map(_join, out)
    return TokenScores(nll, correct), (hidden, kernel, bias, labels, log_normaliser)


def _backward(slabs, cap, saved, cotangents):
    hidden, kernel, bias, labels, log_normaliser = saved

    narrow_kernel = kernel.astype(hidden.dtype)

    def slab(sums, slab_inputs):
        d_kernel, d_bias = sums
        h, y, log_z, g = slab_inputs
        product, slope = _products(h, narrow_kernel, cap)
        # At most 0: a recomputed product may be rounded differently, which would overflow for large logits.
        p = jnp.exp(jnp.minimum(product + bias.astype(jnp.float32) - log_z[:, None], 0))
        d_logits = g[:, None] * (p - (y[:, None] == jnp.arange(p.shape[1])))
        narrow = (d_logits * slope).astype(h.dtype)
        d_kernel += _dot(h.T, narrow)
        d_h = _dot(narrow, narrow_kernel.T)
        return (d_kernel, d_bias + d_logits.sum(0)), d_h.astype(h.dtype)

    zeros = (jnp.zeros(kernel.shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32))
    slices = tuple(_split(x, slabs) for x in (hidden, labels, log_normaliser, cotangents.nll))
    (d_kernel, d_bias), d_hidden = jax.lax.scan(slab, zeros, slices)
    return _join(d_hidden), d_kernel.astype(kernel.dtype), d_bias.astype(bias.dtype), None


_linear_nll.defvjp(_forward, _backward)
