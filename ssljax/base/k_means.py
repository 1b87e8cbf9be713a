"""k-means: assignment, update and first centroids, as functions to be jitted."""

import functools

import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST


def squared_distances(x_NxD: jax.Array, centroids_KxD: jax.Array) -> jax.Array:
    """Squared Euclidean distances [N, K], at least 0."""
    x, centroids = x_NxD.astype(jnp.float32), centroids_KxD.astype(jnp.float32)
    product = jnp.matmul(x, centroids.T, precision=EXACT)
    square = jnp.square(x).sum(-1)[:, None] - 2 * product + jnp.square(centroids).sum(-1)
    return jnp.maximum(square, 0.0)


def assign(x_NxD: jax.Array, centroids_KxD: jax.Array) -> jax.Array:
    """Returns the nearest centroid of each row, int32 [N]; of equally near ones the first."""
    return jnp.argmin(squared_distances(x_NxD, centroids_KxD), -1).astype(jnp.int32)


def move(x_NxD: jax.Array, clusters_N: jax.Array, centroids_KxD: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Returns the means of the clusters, [K, D].

    Args:
        x_NxD: the points.
        clusters_N: int [N], the cluster of each point.
        centroids_KxD: the centroids so far.
        key: an empty cluster gets the mean of a random other one, moved by normal noise of a hundredth of the standard
            deviation of the points, so that both share its points (Caron et al. 2018, section 3.3); None: it keeps its
            centroid.
    """
    member_NxK = jax.nn.one_hot(clusters_N, len(centroids_KxD))
    sizes = member_NxK.sum(0)
    means = jnp.matmul(member_NxK.T, x_NxD.astype(jnp.float32), precision=EXACT) / jnp.maximum(sizes, 1)[:, None]
    if key is None:
        return jnp.where(sizes[:, None] > 0, means, centroids_KxD)
    choice, noise = jax.random.split(key)
    other = jax.random.categorical(choice, jnp.where(sizes > 0, 0.0, -jnp.inf), shape=sizes.shape)
    moved = means[other] + 0.01 * jnp.std(x_NxD, 0) * jax.random.normal(noise, means.shape)
    return jnp.where(sizes[:, None] > 0, means, moved)


def plus_plus(key: jax.Array, x_NxD: jax.Array, clusters: int) -> jax.Array:
    """Returns first centroids [K, D], points of x drawn by k-means++.

    Arthur & Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding": the first is uniform, each further one
    has a probability in proportion to the squared distance from the nearest centroid so far. Where all distances are 0,
    points are drawn uniformly.

    Args:
        key: random key.
        x_NxD: the points.
        clusters: number of centroids (K).
    """
    x = x_NxD.astype(jnp.float32)
    first, *rest = jax.random.split(key, clusters)
    start = x[jax.random.randint(first, (), 0, len(x))]

    def draw(nearest_N: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        odds = jnp.where(jnp.max(nearest_N) > 0, nearest_N, 1.0)
        new = x[jax.random.categorical(key, jnp.log(odds))]
        return jnp.minimum(nearest_N, jnp.square(x - new).sum(-1)), new

    nearest = jnp.square(x - start).sum(-1)
    if not rest:
        return start[None]
    _, further = jax.lax.scan(draw, nearest, jnp.stack(rest))
    return jnp.concatenate([start[None], further])


@functools.partial(jax.jit, static_argnames=("clusters", "iterations"))
def k_means(key: jax.Array, x_NxD: jax.Array, clusters: int, iterations: int = 20) -> tuple[jax.Array, jax.Array]:
    """Clusters points by Lloyd's algorithm, from first centroids of k-means++.

    Args:
        key: random key.
        x_NxD: the points.
        clusters: number of clusters (K).
        iterations: number of updates of the centroids.

    Returns:
        (centroids [K, D], clusters int32 [N] of the points: the nearest of these centroids).
    """
    seed, *keys = jax.random.split(key, iterations + 1)

    def iterate(centroids: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return move(x_NxD, assign(x_NxD, centroids), centroids, key), None

    centroids = plus_plus(seed, x_NxD, clusters)
    if keys:
        centroids, _ = jax.lax.scan(iterate, centroids, jnp.stack(keys))
    return centroids, assign(x_NxD, centroids)
