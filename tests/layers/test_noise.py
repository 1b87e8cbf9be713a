"""Noise depends on (key, row) only, not on the batch, its order or its slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.layers.noise import Noise, drop_path, dropout

KEY = jax.random.key(0)
NOISES = {"dropout": jax.jit(dropout, static_argnums=1), "drop_path": jax.jit(drop_path, static_argnums=1)}


def ones(rows: int, width: int = 7) -> jax.Array:
    return jnp.ones((rows, 5, width))


@pytest.mark.parametrize("name", NOISES)
def test_slices_and_order_do_not_change_masks(name):
    apply = NOISES[name]
    whole = apply(ones(8), 0.5, Noise(KEY, jnp.arange(8)))
    halves = [apply(ones(4), 0.5, Noise(KEY, jnp.arange(4) + 4 * i)) for i in range(2)]
    np.testing.assert_array_equal(whole, jnp.concatenate(halves))
    order = jnp.array([3, 0, 7])
    np.testing.assert_array_equal(whole[order], apply(ones(3), 0.5, Noise(KEY, order)))
    assert len(np.unique(np.asarray(whole).reshape(8, -1), axis=0)) > 1, "every example drew the same mask"


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate_and_scale_in_a_large_sample(name, rate):
    rows = 20_000 if name == "drop_path" else 400
    y = np.asarray(NOISES[name](ones(rows, 10), rate, Noise(KEY, jnp.arange(rows))))
    draws = y.reshape(rows, -1)[:, 0] if name == "drop_path" else y.ravel()
    error = 5 * np.sqrt(rate * (1 - rate) / draws.size)
    assert abs(np.mean(draws == 0) - rate) < error
    np.testing.assert_allclose(draws[draws != 0], 1 / (1 - rate), rtol=1e-4)


def test_drop_path_drops_whole_examples():
    y = np.asarray(drop_path(ones(64), 0.5, Noise(KEY, jnp.arange(64)))).reshape(64, -1)
    assert (y == y[:, :1]).all() and 0 < (y[:, 0] == 0).sum() < 64


def test_dropout_bits_are_independent_along_the_width():
    """Two 16-bit numbers come from one 32-bit word; neighbours must not be correlated."""
    y = np.asarray(NOISES["dropout"](jnp.ones((2000, 2)), 0.5, Noise(KEY, jnp.arange(2000)))) == 0
    assert abs(np.corrcoef(y[:, 0], y[:, 1])[0, 1]) < 0.1


@pytest.mark.parametrize("name", NOISES)
def test_identity_without_noise_or_rate(name):
    x = ones(2)
    apply = {"dropout": dropout, "drop_path": drop_path}[name]
    assert apply(x, 0.5, None) is x
    assert apply(x, 0.0, Noise(KEY, jnp.arange(2))) is x


def test_traced_rates_and_rows():
    noise = Noise(KEY, jnp.arange(4))
    traced = jax.jit(drop_path)(ones(4), jnp.float32(0.3), noise)
    np.testing.assert_allclose(traced, drop_path(ones(4), 0.3, noise), rtol=1e-6)
    masks = [NOISES["dropout"](ones(4), 0.5, noise.at(place)) for place in (0, 1, "a", "b")]
    assert all((a != b).any() for i, a in enumerate(masks) for b in masks[:i])
    folded = jax.jit(lambda i: dropout(ones(4), 0.5, noise.at(i)))(jnp.int32(1))
    np.testing.assert_array_equal(folded, masks[1])
