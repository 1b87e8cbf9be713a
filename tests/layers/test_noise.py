"""Noise depends on (key, row) only, not on the batch, its order or its slices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from jax.sharding import NamedSharding, PartitionSpec

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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NOISES)
def test_the_mean_over_masks_is_the_input_in_half_precision(name, dtype):
    """1 / 0.9 rounded to bfloat16 is 0.16% too small, and so is 1 / 0.9 times any activation of value 1."""
    rows, rate = (4_000_000, 0.1) if name == "drop_path" else (40_000, 0.1)
    x = jnp.ones((rows, 1) if name == "drop_path" else (rows, 10, 10), dtype)
    y = NOISES[name](x, rate, Noise(KEY, jnp.arange(rows)))
    assert y.dtype == x.dtype
    draws = np.asarray(y.astype(jnp.float32), np.float64).ravel()
    error = 4 * np.sqrt(rate / (1 - rate) / draws.size)  # four standard deviations of the mean
    assert abs(draws.mean() - 1) < error < 0.0012
    kept = draws[draws != 0]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=float(jnp.finfo(dtype).eps))
    assert len(np.unique(kept)) == 2, "rounded up or down"


@pytest.mark.parametrize("name", NOISES)
def test_half_precision_changes_neither_masks_nor_exact_values(name):
    noise = Noise(KEY, jnp.arange(64))
    x = jax.random.normal(jax.random.key(1), (64, 5, 7), jnp.bfloat16)
    whole, half = (NOISES[name](x.astype(dtype), 0.5, noise) for dtype in ("float32", "bfloat16"))
    np.testing.assert_array_equal(half.astype(jnp.float32), whole)  # a factor of 2 is exact
    infinite = NOISES[name](jnp.full((64, 5, 7), jnp.inf, jnp.bfloat16), 0.1, noise)
    assert not jnp.isfinite(infinite).all(), "an overflow stays visible"


@pytest.mark.parametrize("name", NOISES)
def test_gradients_in_half_precision(name):
    noise = Noise(KEY, jnp.arange(64))
    x = jax.random.normal(jax.random.key(1), (64, 5, 7), jnp.bfloat16)
    apply = {"dropout": dropout, "drop_path": drop_path}[name]
    half, whole = (
        jax.jit(jax.grad(lambda x: jnp.sum(apply(x, 0.1, noise).astype(jnp.float32))))(x.astype(dtype))
        for dtype in ("bfloat16", "float32")
    )
    np.testing.assert_array_equal(half, whole.astype(jnp.bfloat16))


def test_words_are_those_of_the_cipher():
    """Known answer of Threefry-2x32 with 20 rounds: key 13198a2e 03707344, counters 243f6a88 85a308d3."""
    key = jax.random.wrap_key_data(jnp.array([0x13198A2E, 0x03707344], jnp.uint32))
    pair = threefry_2x32(tuple(jax.random.key_data(key)), jnp.array([0x243F6A88, 0x85A308D3], jnp.uint32))
    assert [hex(word) for word in pair.tolist()] == ["0xc4923a9c", "0x483df7a0"]
    words = Noise(key, jnp.array([7, 3])).words(5)
    for row, number in enumerate((7, 3)):
        pairs = [threefry_2x32(tuple(jax.random.key_data(key)), jnp.array([number, i], jnp.uint32)) for i in range(3)]
        np.testing.assert_array_equal(words[row], np.concatenate(pairs)[:5])


@pytest.mark.parametrize(
    ("spec", "part"), [(("data", "sharded"), "u32[2,16,4]"), (("data", None, "sharded"), "u32[2,64,1]")]
)
def test_a_device_computes_the_words_of_its_part(spec, part):
    """Before, arrays sharded over tokens or features had the words of all of them on every device."""
    mesh = jax.make_mesh((2, 4), ("data", "sharded"), devices=jax.devices()[:8])
    x = jax.device_put(jnp.ones((4, 64, 16)), NamedSharding(mesh, PartitionSpec(*spec)))
    program = jax.jit(lambda x: dropout(x, 0.5, Noise(KEY, jnp.arange(4))))
    text = program.lower(x).compile().as_text()
    assert part in text and "u32[2,64,4]" not in text and not re.search("all-gather|all-to-all|permute", text)
    np.testing.assert_array_equal(program(x), dropout(jnp.ones((4, 64, 16)), 0.5, Noise(KEY, jnp.arange(4))))


def test_uses_are_distinct():
    """Paths of names and layers, in either order, have different hashes, and one that is traced has the same."""
    names = [f"{part}/{kind}" for part in ("attention", "cross", "mlp") for kind in ("dropout", "drop_path")]
    noise, layers = Noise(KEY, jnp.arange(2)), jnp.arange(64)
    uses = [
        jax.vmap(lambda i, top=top, name=name: noise.at(top).at(i).at(name).use)(layers)
        for top in ("encoder", "decoder", "image", "text")
        for name in names
    ]
    uses.append(jax.vmap(lambda i, j: noise.at(i).at(j).use)(*(x.reshape(-1) for x in jnp.meshgrid(layers, layers))))
    found = np.concatenate([[noise.use], *uses])
    assert len(np.unique(found, axis=0)) == len(found)
    traced = jax.jit(lambda i: noise.at("text").at(i).at("mlp/dropout").use)(jnp.int32(5))
    np.testing.assert_array_equal(traced, noise.at("text").at(5).at("mlp/dropout").use)


def test_words_of_uses_rows_and_places_are_independent():
    """Bits agree in half of all places, within 5 standard deviations, for every pair of 24 streams of 2^15 bits."""
    noise = Noise(KEY, jnp.array([0, 1, 2, 1000]))
    uses = [noise, noise.at(0), noise.at(1), noise.at("a"), noise.at("a").at(0), noise.at(0).at("a")]
    words = np.stack([np.asarray(use.words(1024)) for use in uses]).reshape(24, -1)
    bits = np.unpackbits(words.view(np.uint8), axis=1).astype(np.int32)
    agreement = (bits[:, None] == bits[None]).mean(-1) + np.eye(24) * -0.5
    assert np.abs(agreement - 0.5).max() < 5 * 0.5 / bits.shape[1] ** 0.5
    assert np.abs(bits.mean(1) - 0.5).max() < 5 * 0.5 / bits.shape[1] ** 0.5
