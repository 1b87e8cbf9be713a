"""Puzzles made of an image, whose solutions are labels: rotations, neighbouring patches, shuffled tiles.

Images are float32 [B, H, W, C]; keys [B] come from `views.keys.example_keys`.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.views.keys import fold_in, uniforms

# Rows and columns of the eight neighbours of a patch, in raster order; the index is the label.
NEIGHBOURS = tuple(place for place in itertools.product((-1, 0, 1), repeat=2) if place != (0, 0))


def rotations(images: jax.Array) -> jax.Array:
    """Returns the four rotations of square images, [B, 4, H, W, C]: view k is turned anticlockwise by 90 k degrees.

    Gidaris, Singh, Komodakis 2018, "Unsupervised Representation Learning by Predicting Image Rotations", section 3.

    Raises:
        UserError: the images are not square.
    """
    if images.shape[1] != images.shape[2]:
        raise UserError(f"rotations: got images of {images.shape[1]} x {images.shape[2]}, must be square")
    return jnp.stack([jnp.rot90(images, turns, (1, 2)) for turns in range(4)], 1)


def neighbour_extent(patch: int, gap: int, jitter: int) -> int:
    """Returns the side in pixels of the square that a patch and its eight neighbours need."""
    return 3 * patch + 2 * gap + 2 * jitter


def random_neighbours(
    keys: jax.Array, images: jax.Array, patch: int, gap: int, jitter: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Cuts a patch and one of its eight neighbours out of each image.

    Doersch, Gupta, Efros 2015, "Unsupervised Visual Representation Learning by Context Prediction", section 3: there
    are `gap` pixels between neighbours, and each patch is moved by up to `jitter` pixels in each direction (in the
    paper 96, 48 and 7). The place of the pair is uniform in the image.

    Args:
        keys: random keys [B].
        images: [B, H, W, C].
        patch: side of a patch.
        gap: pixels between neighbouring patches.
        jitter: largest displacement of a patch.

    Returns:
        (patches [B, 2, patch, patch, C], the middle one first; the place of the second, int32 [B], in `NEIGHBOURS`).

    Raises:
        UserError: the nine patches do not fit into the images.
    """
    height, width = images.shape[1:3]
    extent = neighbour_extent(patch, gap, jitter)
    if extent > min(height, width):
        raise UserError(
            f"neighbours: patches of {patch} with a gap of {gap} and a jitter of {jitter} need {extent} pixels, but "
            f"images have {height} x {width}"
        )
    u = uniforms(keys, 7)
    label = jnp.floor(8 * u[:, 0]).astype(jnp.int32)
    corner = jnp.floor(u[:, 1:3] * (jnp.asarray([height, width]) - extent + 1))
    moves = jnp.floor(u[:, 3:].reshape(-1, 2, 2) * (2 * jitter + 1))  # from 0, since the corner has the jitter's room
    steps = jnp.stack([jnp.ones((len(label), 2)), 1 + jnp.asarray(NEIGHBOURS)[label]], 1)  # [B, 2, 2]
    starts = (corner[:, None] + moves + steps * (patch + gap)).astype(jnp.int32)
    return _cut(images, starts, patch), label


def drop_colours(keys: jax.Array, patches: jax.Array, noise: float = 0.01) -> jax.Array:
    """Replaces all channels but a random one of each patch by noise around grey.

    Doersch et al. 2015, section 3.1, "color dropping": the standard deviation of the noise is `noise` times that of the
    channel that stays. Images of one channel stay as they are.

    Args:
        keys: random keys [B].
        patches: [B, V, h, w, C] in [0, 1]; the same channel stays in all patches of an example.
        noise: size of the noise.
    """
    channels = patches.shape[-1]
    if channels == 1:
        return patches
    kept = jnp.floor(channels * uniforms(keys, 1)).astype(jnp.int32)  # [B, 1]
    is_kept = (jnp.arange(channels) == kept)[:, None, None, None]  # [B, 1, 1, 1, C]
    spread = jnp.std(jnp.where(is_kept, patches, 0).sum(-1), (2, 3))[:, :, None, None, None]
    draw = jax.vmap(lambda key: jax.random.normal(key, patches.shape[1:]))(fold_in(keys, 1))
    return jnp.where(is_kept, patches, 0.5 + noise * spread * draw)


def jigsaw(keys: jax.Array, images: jax.Array, permutations: jax.Array, gap: int) -> tuple[jax.Array, jax.Array]:
    """Cuts images into a square of tiles and shuffles them.

    Noroozi & Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", section 4: each
    cell of the square has a tile smaller by `gap` pixels at a random place (in the paper 64 of 75 pixels), and a random
    row of `permutations` orders the tiles. The square, the largest whose cells have whole pixels, has a random place.

    Args:
        keys: random keys [B].
        images: [B, H, W, C].
        permutations: int [P, T], T a square number; tile `permutations[p, i]` comes to place i.
        gap: pixels by which a tile is smaller than its cell.

    Returns:
        (tiles [B, T, t, t, C]; p, int32 [B]).

    Raises:
        UserError: T is not a square number, or the gap leaves no tile.
    """
    height, width = images.shape[1:3]
    tiles = permutations.shape[1]
    side = math.isqrt(tiles)
    cell = min(height, width) // side
    if side * side != tiles:
        raise UserError(f"jigsaw: got permutations of {tiles} tiles, must be a square number")
    if not 0 <= gap < cell:
        raise UserError(f"jigsaw: got a gap of {gap} in cells of {cell} pixels, must be at least 0 and smaller")
    u = uniforms(keys, 3 + 2 * tiles)
    label = jnp.floor(len(permutations) * u[:, 0]).astype(jnp.int32)
    place = jnp.floor(u[:, None, 1:3] * jnp.array([height - side * cell + 1, width - side * cell + 1]))  # [B, 1, 2]
    moves = jnp.floor(u[:, 3:].reshape(-1, tiles, 2) * (gap + 1))
    corners = cell * jnp.asarray(list(itertools.product(range(side), repeat=2)))
    starts = (place + corners + moves).astype(jnp.int32)  # [B, T, 2], in raster order
    order = jnp.asarray(permutations)[label]
    return _cut(images, jnp.take_along_axis(starts, order[..., None], 1), cell - gap), label


@functools.lru_cache(maxsize=4)
def far_permutations(count: int, tiles: int = 9, seed: int = 0) -> np.ndarray:
    """Returns permutations that differ in many places, int32 [count, tiles] (Noroozi & Favaro 2016, algorithm 1).

    The first one is random; each next one has the largest mean Hamming distance to all before, ties at random.

    Raises:
        UserError: there are fewer permutations.
    """
    if count > math.factorial(tiles):
        raise UserError(f"permutations: got {count} of {tiles} tiles, must be at most {math.factorial(tiles)}")
    rng = np.random.default_rng(seed)
    pool = np.array(list(itertools.permutations(range(tiles))), np.int8)
    distance, chosen = np.zeros(len(pool)), [int(rng.integers(len(pool)))]
    free = np.ones(len(pool), bool)
    while len(chosen) < count:
        free[chosen[-1]] = False
        distance += (pool != pool[chosen[-1]]).sum(1)
        best = np.flatnonzero(free & (distance == distance[free].max()))
        chosen.append(int(rng.choice(best)))
    return pool[chosen].astype(np.int32)


def _cut(images: jax.Array, starts: jax.Array, side: int) -> jax.Array:
    """Cuts squares out of images: starts int [B, V, 2] of images [B, H, W, C] -> [B, V, side, side, C]."""

    def one(image: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), (side, side, image.shape[-1]))

    return jax.vmap(jax.vmap(one, (None, 0)))(images, starts)
