"""Patches, patch masks, token corruption and mixtures: exact counts, and rates on large samples."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import views
from ssljax.base.errors import UserError

KEY = jax.random.key(0)
patch_mask = jax.jit(views.random_patch_mask, static_argnums=(1, 2))


def keys_of(count):
    return views.example_keys(KEY, count)


# --- patches ----------------------------------------------------------------------------------------------------------


@hypothesis.given(rows=st.integers(1, 4), columns=st.integers(1, 4), patch=st.integers(1, 3), c=st.sampled_from([1, 3]))
def test_patches(rows, columns, patch, c):
    images = np.random.default_rng(0).random((2, rows * patch, columns * patch, c)).astype(np.float32)
    patches = np.asarray(views.patchify(images, patch))
    for n in range(rows * columns):
        y, x = n // columns * patch, n % columns * patch
        np.testing.assert_array_equal(patches[:, n], images[:, y : y + patch, x : x + patch].reshape(2, -1))
    np.testing.assert_array_equal(views.unpatchify(patches, images.shape[1:]), images)


def test_images_that_are_not_divisible_are_refused():
    with pytest.raises(UserError, match="got images of 6 x 8, must be divisible into patches of 4 x 4"):
        views.patchify(jnp.zeros((1, 6, 8, 3)), 4)
    with pytest.raises(UserError, match="got 4 of 12 values, which do not make up"):
        views.unpatchify(jnp.zeros((1, 4, 12)), (6, 4, 3))


def test_normalised_patches():
    x = np.random.default_rng(0).normal(3, 2, (2, 3, 12))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(views.normalize_patches(jnp.float32(x)), expected, atol=1e-5)
    assert np.isfinite(views.normalize_patches(jnp.ones((1, 2, 12)))).all()


# --- patch masks ------------------------------------------------------------------------------------------------------


@hypothesis.given(patches=st.sampled_from([4, 9, 16]), ratio=st.sampled_from([0.0, 0.5, 0.75]))
def test_every_example_hides_exactly_the_share(patches, ratio):
    keep, mask = patch_mask(keys_of(5), patches, ratio)
    visible = patches - round(patches * ratio)
    assert keep.shape == (5, visible) and keep.dtype == jnp.int32 and mask.dtype == bool
    for row, hidden in zip(np.asarray(keep), np.asarray(mask)):
        assert (np.diff(row) > 0).all()
        assert row.tolist() == np.flatnonzero(~hidden).tolist()


def test_hidden_patches_are_a_uniform_subset():
    _, mask = patch_mask(keys_of(8000), 9, 2 / 3)
    mask = np.asarray(mask, float)
    np.testing.assert_allclose(mask.mean(0), 2 / 3, atol=0.025)
    both = mask.T @ mask / len(mask)
    np.testing.assert_allclose(both[~np.eye(9, dtype=bool)], (6 * 5) / (9 * 8), atol=0.03)
    np.testing.assert_array_equal(views.random_patch_mask(keys_of(4), 9, 2 / 3)[1], mask[:4])


@pytest.mark.parametrize("ratio", [1.0, 0.99, -0.1])
def test_a_ratio_without_visible_patches_is_refused(ratio):
    with pytest.raises(UserError, match="mask ratio"):
        views.random_patch_mask(keys_of(2), 9, ratio)


# --- masked language modelling ----------------------------------------------------------------------------------------

V, MASK, SPECIAL = 40, 5, (0, 1, 7, 39)


@functools.cache
def corrupted(batch=3000, length=33, rate=0.15):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (batch, length)).astype(np.int32)
    lengths = rng.integers(0, length + 1, batch)
    maskable = np.arange(length) < lengths[:, None]
    made = jax.jit(
        lambda t, m: views.mlm_corrupt(keys_of(batch), t, m, vocab_size=V, mask_id=MASK, rate=rate, special_ids=SPECIAL)
    )(tokens, maskable)
    inputs, chosen = made.tokens, made.chosen
    assert inputs.dtype == tokens.dtype
    return tokens, maskable & ~np.isin(tokens, [MASK, *SPECIAL]), np.asarray(inputs), np.asarray(chosen)


def test_only_candidates_are_chosen_and_only_chosen_tokens_change():
    tokens, candidate, inputs, chosen = corrupted()
    assert not (chosen & ~candidate).any()
    assert (inputs == tokens)[~chosen].all()
    assert not np.isin(inputs[chosen], SPECIAL).any()


def test_the_number_of_chosen_tokens_is_the_rate_up_to_rounding():
    _, candidate, _, chosen = corrupted()
    n, count = candidate.sum(1), chosen.sum(1)
    assert ((count == np.floor(0.15 * n)) | (count == np.ceil(0.15 * n))).all()
    assert count.max() <= views.mlm_budget(33, 0.15) == 5
    np.testing.assert_allclose(count.sum() / n.sum(), 0.15, rtol=0.03)
    # All candidates of a row are equally likely.
    rank = np.cumsum(candidate, 1) - 1
    for k in (0, 5, 10):
        rows = n >= 12
        np.testing.assert_allclose(chosen[rows][(rank == k)[rows] & candidate[rows]].mean(), 0.15, atol=0.03)


def test_mask_random_and_kept_shares_are_80_10_10():
    tokens, _, inputs, chosen = corrupted()
    new, old = inputs[chosen], tokens[chosen]
    assert len(new) > 5000
    ordinary = V - 1 - len(SPECIAL)
    np.testing.assert_allclose((new == MASK).mean(), 0.8, atol=0.025)
    np.testing.assert_allclose((new == old).mean(), 0.1 + 0.1 / ordinary, atol=0.018)
    random = new[(new != MASK) & (new != old)]
    found, counts = np.unique(random, return_counts=True)
    assert found.tolist() == [v for v in range(V) if v != MASK and v not in SPECIAL]
    assert counts.min() > counts.mean() - 5 * np.sqrt(counts.mean())
    assert counts.max() < counts.mean() + 5 * np.sqrt(counts.mean())


def test_a_row_of_tokens_is_independent_of_the_batch():
    tokens = jnp.arange(4 * 20, dtype=jnp.int32).reshape(4, 20)
    corrupt = jax.jit(lambda t, m: views.mlm_corrupt(keys_of(len(t)), t, m, vocab_size=81, mask_id=80))
    whole, part = corrupt(tokens, tokens >= 0), corrupt(tokens[:2], tokens[:2] >= 0)
    np.testing.assert_array_equal(whole[0][:2], part[0])
    np.testing.assert_array_equal(whole[1][:2], part[1])
    assert (np.asarray(whole.chosen).sum(1) == 3).all()
    assert len({tuple(row) for row in np.asarray(whole.chosen)}) > 1


# --- mixing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [views.mixup, views.cutmix])
def test_labels_mix_as_pixels_do(mix):
    # Image i is constant, so the share of its partner follows from the mean pixel.
    images = jnp.broadcast_to(jnp.arange(1, 7.0)[:, None, None, None], (6, 8, 8, 1))
    mixed, labels = jax.jit(mix, static_argnums=3)(keys_of(6), images, jnp.eye(6), 1.0)
    np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed.mean((1, 2, 3)), labels @ jnp.arange(1, 7.0), rtol=1e-5)
    partner = np.roll(np.eye(6), 1, axis=0)
    assert ((np.asarray(labels) > 0) <= (np.eye(6) + partner > 0)).all()
    assert len(np.unique(np.asarray(labels).max(1))) > 3  # shares differ between examples


def test_mixup_shares_have_a_beta_distribution():
    n, alpha = 4000, 0.3
    _, labels = views.mixup(keys_of(n), jnp.zeros((n, 1)), jnp.tile(jnp.eye(2), (n // 2, 1)), alpha)
    share = np.asarray(labels)[np.arange(n), np.arange(n) % 2]
    np.testing.assert_allclose(share.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.05)


def test_cutmix_replaces_one_box():
    images = jnp.arange(64.0)[:, None, None, None] * jnp.ones((1, 10, 10, 1))
    mixed, _ = jax.jit(views.cutmix)(keys_of(64), images, jnp.eye(64), 1.0)
    replaced = np.asarray(mixed != images)[..., 0]
    assert 0.1 < replaced.mean() < 0.6
    for box in replaced:
        assert box.sum() == box.any(0).sum() * box.any(1).sum()
