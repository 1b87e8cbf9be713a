"""Puzzles: rotations, neighbouring patches and shuffled tiles, pixel by pixel and in large samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssljax import views
from ssljax.base.errors import UserError
from ssljax.views.puzzles import NEIGHBOURS, neighbour_extent

KEY = jax.random.key(0)


def coordinates(batch, height, width):
    """Images whose channels are the row and the column of each pixel."""
    place = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    return jnp.broadcast_to(jnp.asarray(place, jnp.float32), (batch, height, width, 2))


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2 / expected).sum()


def test_rotations_turn_the_first_axis_to_the_second():
    images = jax.random.uniform(KEY, (2, 5, 5, 3))
    made = views.rotations(images)
    for turns in range(4):
        np.testing.assert_array_equal(made[:, turns], np.rot90(images, turns, (1, 2)))
    with pytest.raises(UserError, match="got images of 4 x 5, must be square"):
        views.rotations(jnp.zeros((1, 4, 5, 1)))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 3), st.integers(0, 5), st.integers(0, 5))
def test_neighbours_by_their_pixels(patch, gap, jitter, tall, wide):
    side = neighbour_extent(patch, gap, jitter)
    images = coordinates(64, side + tall, side + wide)
    made, label = views.random_neighbours(views.example_keys(KEY, 64), images, patch, gap, jitter)
    assert made.shape == (64, 2, patch, patch, 2)
    first, second = np.asarray(made[:, 0, 0, 0]), np.asarray(made[:, 1, 0, 0])
    for cut, corner in ((made[:, 0], first), (made[:, 1], second)):  # patches are whole squares of the image
        inside = np.stack(np.meshgrid(np.arange(patch), np.arange(patch), indexing="ij"), -1)
        np.testing.assert_array_equal(cut, corner[:, None, None] + inside)
    moved = second - first - (patch + gap) * np.array(NEIGHBOURS)[np.asarray(label)]
    assert np.abs(moved).max() <= 2 * jitter
    assert min(first.min(), second.min()) >= 0


def test_neighbours_are_everywhere_and_every_one_is_as_likely():
    count = 20_000
    images = coordinates(count, 9, 10)
    made, label = jax.jit(lambda keys: views.random_neighbours(keys, images, 2, 0, 1))(views.example_keys(KEY, count))
    label = np.asarray(label)
    assert chi_square(np.bincount(label, minlength=8)) < 29.9  # 1e-4 of chi-square with 7 degrees
    middle = np.asarray(made[:, 0, 0, 0])
    assert set(middle[:, 0]) == set(range(2, 6)) and set(middle[:, 1]) == set(range(2, 7))
    moved = np.asarray(made[:, 1, 0, 0]) - middle - 2 * np.array(NEIGHBOURS)[label]
    assert chi_square(np.unique(moved[:, 0], return_counts=True)[1][[0, 4]]) < 15.2  # -2 and 2, as likely
    assert abs(np.corrcoef(label, middle[:, 0])[0, 1]) < 0.03
    with pytest.raises(UserError, match="need 8 pixels, but images have 7 x 10"):
        views.random_neighbours(views.example_keys(KEY, 1), coordinates(1, 7, 10), 2, 0, 1)


def test_one_channel_stays_and_it_is_the_same_in_both_patches():
    count = 3_000
    patches = jax.random.uniform(KEY, (count, 2, 4, 4, 3))
    made = np.asarray(views.drop_colours(views.example_keys(KEY, count), patches))
    same = np.isclose(made, patches).all((2, 3))  # [B, 2, C]
    assert (same.sum(-1) == 1).all() and (same[:, 0] == same[:, 1]).all()
    assert chi_square(same[:, 0].sum(0)) < 18.4  # 1e-4 of chi-square with 2 degrees
    kept = np.asarray(patches).std((2, 3))[same].reshape(count, 2)
    noise = (made - 0.5)[np.broadcast_to(~same[:, :, None, None], made.shape)].reshape(count, 2, -1)
    np.testing.assert_allclose((noise.std(-1) / kept).mean(), 0.01, rtol=0.05)
    np.testing.assert_array_equal(
        views.drop_colours(views.example_keys(KEY, 2), patches[:2, ..., :1]), patches[:2, ..., :1]
    )


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([2, 3]), st.integers(2, 5), st.integers(0, 1), st.integers(0, 2))
def test_tiles_by_their_pixels(side, cell, gap, extra):
    permutations = views.far_permutations(6, side * side)
    images = coordinates(32, side * cell + extra, side * cell)
    tiles, label = views.jigsaw(views.example_keys(KEY, 32), images, permutations, gap)
    size = cell - gap
    assert tiles.shape == (32, side * side, size, size, 2)
    cells = np.array(list(itertools.product(range(side), repeat=2)))
    for example, chosen in enumerate(np.asarray(label)):
        for place, tile in enumerate(permutations[chosen]):
            corner = np.asarray(tiles[example, place, 0, 0])
            move = corner - cells[tile] * cell  # of the square, and of the tile in its cell
            assert (move >= 0).all() and (move <= np.array([extra, 0]) + gap).all()
            inner = corner - np.asarray(tiles[example, list(permutations[chosen]).index(0), 0, 0])
            assert (abs(inner - cells[tile] * cell) <= gap).all()


def test_the_square_of_a_jigsaw_has_a_uniform_place():
    """Before, columns 8 and 9 of an image of 10 columns were never seen."""
    count, permutations = 8_000, np.arange(4)[None]
    tiles, _ = views.jigsaw(views.example_keys(KEY, count), coordinates(count, 8, 10), permutations, 0)
    corners = np.asarray(tiles[:, 0, 0, 0])
    assert set(corners[:, 0]) == {0}
    counts = np.bincount(corners[:, 1].astype(int), minlength=3)
    assert len(counts) == 3 and abs(counts - count / 3).max() < 5 * np.sqrt(count / 3)


def test_permutations_and_places_of_tiles_are_uniform():
    count, permutations = 8_000, views.far_permutations(10, 4)
    images = coordinates(count, 8, 8)
    tiles, label = jax.jit(lambda keys: views.jigsaw(keys, images, permutations, 1))(views.example_keys(KEY, count))
    assert chi_square(np.bincount(np.asarray(label), minlength=10)) < 33.7  # 1e-4 of chi-square with 9 degrees
    moved = np.asarray(tiles[:, :, 0, 0]) % 4
    assert set(np.unique(moved)) == {0, 1} and abs(moved.mean() - 0.5) < 0.01


def test_far_permutations_by_their_definition():
    found = views.far_permutations(12, 4)
    assert len({tuple(p) for p in found}) == 12 and all(sorted(p) == [0, 1, 2, 3] for p in found)
    everything = np.array(list(itertools.permutations(range(4))))
    for n in range(1, 12):
        taken = {tuple(p) for p in found[:n]}
        mean = lambda p: np.mean([(p != q).sum() for q in found[:n]])  # noqa: B023, E731
        best = max(mean(p) for p in everything if tuple(p) not in taken)
        assert mean(found[n]) == best
    distances = [(p != q).sum() for p, q in itertools.combinations(views.far_permutations(100), 2)]
    assert np.mean(distances) > 8.0  # 8 on average for random permutations
    with pytest.raises(UserError, match="got 25 of 4 tiles, must be at most 24"):
        views.far_permutations(25, 4)


def test_jigsaw_mistakes():
    keys, images = views.example_keys(KEY, 1), coordinates(1, 6, 6)
    with pytest.raises(UserError, match="got permutations of 5 tiles, must be a square number"):
        views.jigsaw(keys, images, np.arange(5)[None], 0)
    with pytest.raises(UserError, match="got a gap of 3 in cells of 3 pixels"):
        views.jigsaw(keys, images, np.arange(4)[None], 3)
