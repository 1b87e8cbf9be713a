"""Rotary products depend on distances only; sinusoids, tables and their interpolation."""

import jax.numpy as jnp
import numpy as np

from ssljax.layers.positions import (
    resize_table,
    rotary_2d,
    rotary_tables,
    rotate,
    sincos_2d,
    sinusoidal,
)
from ssljax.layers.terms.grid import grid_pairs, grid_rows

RNG = np.random.default_rng(0)


def test_rotary_products_depend_on_the_distance_only():
    q, k = (jnp.asarray(RNG.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def product(i, j):
        turn = [rotate(x, rotary_tables(jnp.array([[p]]), 8, 100.0)) for x, p in ((q, i), (k, j))]
        return float(jnp.vdot(*turn))

    np.testing.assert_allclose(product(3, 1), product(12, 10), rtol=1e-5)
    np.testing.assert_allclose(product(5, 5), float(jnp.vdot(q, k)), rtol=1e-5)
    assert abs(product(3, 1) - product(4, 1)) > 1e-3


def test_sinusoids():
    got = sinusoidal(np.arange(5), 6, 100.0)
    for t in range(5):
        for i in range(3):
            np.testing.assert_allclose(got[t, i], np.sin(t / 100 ** (2 * i / 6)), atol=1e-6)
            np.testing.assert_allclose(got[t, 3 + i], np.cos(t / 100 ** (2 * i / 6)), atol=1e-6)


def test_sincos_2d_has_a_half_for_columns_and_a_half_for_rows():
    table = sincos_2d((3, 4), 8).reshape(3, 4, 8)
    for r in range(3):
        for c in range(4):
            np.testing.assert_array_equal(table[r, c], np.concatenate([sinusoidal(c, 4), sinusoidal(r, 4)]))
    assert len(np.unique(table.reshape(12, 8), axis=0)) == 12


def test_resized_tables_keep_constants_and_lines():
    rows = jnp.arange(8.0)[:, None, None] * jnp.ones((1, 6, 1))
    table = jnp.concatenate([rows, jnp.ones((8, 6, 1))], -1).reshape(48, 2)
    assert resize_table(table, (8, 6), (8, 6)) is table
    small = np.asarray(resize_table(table, (8, 6), (4, 3))).reshape(4, 3, 2)
    np.testing.assert_allclose(small[..., 1], 1, rtol=1e-5)
    np.testing.assert_allclose(small[1:3, 0, 0], [2.5, 4.5], rtol=1e-4)  # centres of patches twice as large
    large = np.asarray(resize_table(table, (8, 6), (16, 12))).reshape(16, 12, 2)
    # Under this kernel (a = -0.75) a line gets a ripple whose period is the old spacing. Values at a distance of one
    # old spacing still lie on a line.
    np.testing.assert_allclose(large[6:-4, 0, 0] - large[4:-6, 0, 0], 1, rtol=1e-5)
    quarter = [-0.75 * (1.25**3 - 5 * 1.25**2 + 8 * 1.25 - 4), 1.25 * 0.25**3 - 2.25 * 0.25**2 + 1]
    quarter += [1.25 * 0.75**3 - 2.25 * 0.75**2 + 1, -0.75 * (1.75**3 - 5 * 1.75**2 + 8 * 1.75 - 4)]
    np.testing.assert_allclose(sum(quarter), 1, rtol=1e-12)
    # New point 9 lies at 4.25 in the old grid.
    np.testing.assert_allclose(large[9, 0, 0], np.dot(quarter, [3, 4, 5, 6]), rtol=1e-5)


def test_rows_and_columns_rotate_half_of_the_head_each():
    cos, sin = (t.reshape(3, 5, 4) for t in rotary_2d((3, 5), 8, 100.0))
    for r in range(3):
        for c in range(5):
            for i in range(2):
                for k, where in enumerate(((r + 0.5) / 3 * 2 - 1, (c + 0.5) / 5 * 2 - 1)):
                    angle = 2 * np.pi * where / 100 ** (4 * i / 8)
                    np.testing.assert_allclose(cos[r, c, 2 * k + i], np.cos(angle), atol=1e-6)
                    np.testing.assert_allclose(sin[r, c, 2 * k + i], np.sin(angle), atol=1e-6)


def test_pairs_of_patches_index_their_distance():
    grid, prefix = (2, 3), 2
    index = grid_pairs(grid, grid, prefix).rows_TxT
    rows = grid_rows(grid)
    assert index.shape == (8, 8) and index.max() == rows - 1 and index.min() == 0
    assert (index[:2, :2] == rows - 1).all()
    assert (index[:2, 2:] == rows - 3).all() and (index[2:, :2] == rows - 2).all()
    seen = {}
    for i in range(6):
        for j in range(6):
            distance = (i // 3 - j // 3, i % 3 - j % 3)
            assert seen.setdefault(distance, index[2 + i, 2 + j]) == index[2 + i, 2 + j]
    assert len(set(seen.values())) == len(seen) == rows - 3


def test_biases_are_interpolated_linearly_to_another_grid():
    own, new = (4, 4), (8, 8)
    distance = np.stack(np.meshgrid(np.arange(-3, 4), np.arange(-3, 4), indexing="ij"), -1).reshape(-1, 2)
    table = np.concatenate([distance @ np.array([2.0, 5.0]), [11.0, 12.0, 13.0]])
    pairs = grid_pairs(new, own, 1)
    stretched = (pairs.stretch @ table)[pairs.rows_TxT]
    assert pairs.stretch.shape == (grid_rows(new), grid_rows(own))
    assert (stretched[0, 1:] == 11).all() and (stretched[1:, 0] == 12).all() and stretched[0, 0] == 13
    patches = stretched[1:, 1:].reshape(8, 8, 8, 8)
    # 15 distances replace 7, so one step is 7/15 of an old step. Far from the border a plane stays a plane.
    step = np.array([2, 1, 0, -1, -2]) * 7 / 15
    np.testing.assert_allclose(patches[4, 4, 2:7, 4] - patches[4, 4, 4, 4], 2 * step, atol=1e-5)
    np.testing.assert_allclose(patches[4, 4, 4, 3] - patches[4, 4, 4, 4], 5 * 7 / 15, atol=1e-5)
