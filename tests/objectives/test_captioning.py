"""Captioning feeds the decoder as the reference models do, with image vectors at the positions of image tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tiny_objectives as tiny


def test_patches_before_a_caption_equal_image_tokens_before_it():
    objective, batch = tiny.make("captioning"), tiny.batch()
    model = objective.model
    images, tokens = objective.pixels(batch["image"]), batch["tokens"]
    variables = nn.unbox(model.initial(jax.random.key(0)))
    got = model.apply(variables, images, tokens, method="captions")
    patches = model.patch_count(images.shape[1:])
    places = jnp.full((len(tokens), patches), model.config.image_token, tokens.dtype)
    whole = model.apply(variables, jnp.concatenate([places, tokens], axis=1), images).tokens
    np.testing.assert_allclose(got, whole[:, patches - 1 : -1], rtol=1e-5, atol=1e-6)


def test_a_state_depends_on_the_image_and_earlier_tokens_only():
    objective, batch = tiny.make("captioning"), tiny.batch()
    model, at = objective.model, 5
    images, tokens = objective.pixels(batch["image"])[:1], batch["tokens"][:1]
    variables = nn.unbox(model.initial(jax.random.key(0)))

    def states(images, tokens):
        return np.asarray(model.apply(variables, images, tokens, method="captions"))[0]

    before, after = states(images, tokens), states(images, tokens.at[0, at].set(7 + tokens[0, at] % 2))
    np.testing.assert_array_equal(before[: at + 1], after[: at + 1])
    assert (np.abs(before[at + 1 :] - after[at + 1 :]).max(-1) > 1e-4).all()
    assert (np.abs(before - states(images + 0.5, tokens)).max(-1) > 1e-4).all()
