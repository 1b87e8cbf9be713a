"""Losses that identify the partner of an example among all other examples of the batch."""

import jax
import jax.numpy as jnp

from ssljax.losses.reduction import EXACT, NEG_INF, l2_normalize, weighted_mean, weights_of


def nt_xent(
    z1: jax.Array,
    z2: jax.Array,
    *,
    temperature: float,
    weights: jax.Array | None = None,
    reduce: bool = True,
    block: int | None = None,
):
    """NT-Xent (Chen et al. 2020, "A Simple Framework for Contrastive Learning", eq. 1), in nats.

    For each of the 2N views i with partner j: -log exp(s_ij / t) / sum over k != i of exp(s_ik / t), s the cosine.
    The value of an example is the mean over its two views.

    Args:
        z1, z2: [N, D] the two views; L2-normalised inside, in float32.
        temperature: t > 0.
        weights: [N]; an example of weight 0 is neither anchor nor negative. Other weights only weight the anchors.
        reduce: False returns (values [N], weights [N]).
        block: number of examples whose columns of the similarity matrix (two each) are in memory at a time; the
            backward pass recomputes them. None: the whole matrix is stored.
    """
    n = z1.shape[0]
    weights = weights_of(weights, n)
    z_2xNxD = jnp.stack([l2_normalize(z1), l2_normalize(z2)])
    row = jnp.arange(n)
    log_z = _log_normaliser(z_2xNxD, row, z_2xNxD, row, weights > 0, temperature, block)
    return weighted_mean(_mean_over_views(z_2xNxD, log_z, temperature), weights, reduce)


def nt_xent_ring(
    z1: jax.Array,
    z2: jax.Array,
    *,
    axis_name: str,
    temperature: float,
    weights: jax.Array | None = None,
    reduce: bool = True,
    block: int | None = None,
):
    """`nt_xent` of a batch that is sharded over the mesh axis `axis_name`; call it inside a `shard_map`.

    The embeddings travel around a ring of devices. A device with n examples stores at most [2n, 2n] similarities at a
    time (fewer with `block`), never all similarities of the batch. To differentiate, take the gradient of the whole
    `shard_map` from outside; it equals the gradient of `nt_xent`.

    Args:
        z1, z2: [n, D], the examples of this device, in the order of the global batch.
        axis_name: the mesh axis that the batch is sharded over.
        weights: [n], the weights of this device.
        reduce: True returns the mean over the global batch, equal on all devices; False returns (values [n],
            weights [n]) of this device.
        temperature, block: see `nt_xent`.
    """
    n, size = z1.shape[0], jax.lax.axis_size(axis_name)
    weights = weights_of(weights, n)
    z_2xnxD = jnp.stack([l2_normalize(z1), l2_normalize(z2)])
    row = jax.lax.axis_index(axis_name) * n + jnp.arange(n)
    ring = [(i, (i + 1) % size) for i in range(size)]

    def hop(carry, _):
        travelling, log_z = carry
        travelling = jax.tree.map(lambda x: jax.lax.ppermute(x, axis_name, ring), travelling)
        keys, key_row, key_valid = travelling
        return (travelling, jnp.logaddexp(log_z, similarities(keys, key_row, key_valid))), None

    # Recomputed in the backward pass, so that only the embeddings [2, n, D] of each hop are stored.
    @jax.checkpoint
    def similarities(keys, key_row, key_valid):
        return _log_normaliser(z_2xnxD, row, keys, key_row, key_valid, temperature, block)

    own = (z_2xnxD, row, weights > 0)
    (_, log_z), _ = jax.lax.scan(hop, (own, similarities(*own)), length=size - 1)
    values, weights = weighted_mean(_mean_over_views(z_2xnxD, log_z, temperature), weights, reduce=False)
    if not reduce:
        return values, weights
    total = jax.lax.psum(weights.sum(), axis_name)
    return jax.lax.psum((values * weights).sum(), axis_name) / jnp.where(total > 0, total, 1.0)


def clip_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Symmetric cross-entropy over the N x N image-text similarities (Radford et al. 2021, figure 3), in nats.

    The value of a pair is the mean of image-to-text and text-to-image.

    Args:
        image, text: [N, D]; L2-normalised inside, in float32.
        logit_scale: factor of the cosines: 1 / temperature, the exponential of CLIP's parameter.
        weights: [N]; a pair of weight 0 is neither anchor nor negative. Other weights only weight the anchors.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, image.shape[0])
    valid = weights > 0
    logits_NxN = logit_scale * jnp.matmul(l2_normalize(image), l2_normalize(text).T, precision=EXACT)
    to_text = jax.nn.logsumexp(jnp.where(valid[None, :], logits_NxN, NEG_INF), axis=1)
    to_image = jax.nn.logsumexp(jnp.where(valid[:, None], logits_NxN, NEG_INF), axis=0)
    return weighted_mean((to_text + to_image) / 2 - jnp.diagonal(logits_NxN), weights, reduce)


def _mean_over_views(z_2xNxD: jax.Array, log_z_2xN: jax.Array, temperature: float) -> jax.Array:
    positive = (z_2xNxD[0] * z_2xNxD[1]).sum(-1) / temperature
    return log_z_2xN.mean(0) - positive


def _log_normaliser(q_2xNxD, q_row, k_2xMxD, k_row, k_valid, temperature, block: int | None) -> jax.Array:
    """Log of the sum of exp(q k / t) over all valid keys except the query itself (same view and row): [2, N]."""

    def dense(k, k_row, k_valid):
        s = jnp.einsum("vnd,umd->vnum", q_2xNxD, k, precision=EXACT) / temperature
        same_view = jnp.eye(2, dtype=bool)[:, None, :, None]
        itself = same_view & (q_row[:, None] == k_row)[None, :, None, :]
        return jax.nn.logsumexp(jnp.where(itself | ~k_valid, NEG_INF, s), axis=(2, 3))

    m = k_row.shape[0]
    if block is None or block >= m:
        return dense(k_2xMxD, k_row, k_valid)

    # The last block is padded with invalid keys. The first block is computed before the loop, as its initial carry:
    # inside a shard_map the carry must vary over the same mesh axes as the result of a step.
    padding = -m % block
    k = jnp.moveaxis(jnp.pad(k_2xMxD, ((0, 0), (0, padding), (0, 0))).reshape(2, -1, block, k_2xMxD.shape[-1]), 1, 0)
    row = jnp.pad(k_row, (0, padding)).reshape(-1, block)
    valid = jnp.pad(k_valid, (0, padding)).reshape(-1, block)
    dense = jax.checkpoint(dense)

    def add(log_z, block_inputs):
        return jnp.logaddexp(log_z, dense(*block_inputs)), None

    log_z, _ = jax.lax.scan(add, dense(k[0], row[0], valid[0]), (k[1:], row[1:], valid[1:]))
    return log_z
