"""Positions: rotary products depend on distances only; tables; stretching."""

import jax.numpy as jnp
import numpy as np

from ssljax.layers.positions import resize_table, rotary_tables, rotate, sincos_2d, sinusoidal

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


def test_sincos_2d_is_a_column_half_and_a_row_half():
    table = sincos_2d((3, 4), 8).reshape(3, 4, 8)
    for r in range(3):
        for c in range(4):
            np.testing.assert_array_equal(table[r, c], np.concatenate([sinusoidal(c, 4), sinusoidal(r, 4)]))
    assert len(np.unique(table.reshape(12, 8), axis=0)) == 12


def test_resized_tables_keep_constants_and_slopes():
    rows = jnp.arange(8.0)[:, None, None] * jnp.ones((1, 6, 1))
    table = jnp.concatenate([rows, jnp.ones((8, 6, 1))], -1).reshape(48, 2)
    assert resize_table(table, (8, 6), (8, 6)) is table
    small = np.asarray(resize_table(table, (8, 6), (4, 3))).reshape(4, 3, 2)
    np.testing.assert_allclose(small[..., 1], 1, rtol=1e-5)
    np.testing.assert_allclose(small[1:3, 0, 0], [2.5, 4.5], rtol=1e-4)  # centres of patches twice as large
    large = np.asarray(resize_table(table, (8, 6), (16, 12))).reshape(16, 12, 2)
    np.testing.assert_allclose(np.diff(large[4:-4, 0, 0]), 0.5, rtol=1e-3)
