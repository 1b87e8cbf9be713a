"""Every objective has finite losses, metrics and gradients on batches without variety."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import at_most, daily

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.objectives.base import Ctx, stream


def alike(batch):
    """Sixteen copies of the first example."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), batch)


PREDICT_TOKENS = ("mlm", "causal_lm", "prefix_lm", "captioning", *tiny.SEQUENCES)
BATCHES = {
    "identical examples": alike,
    "black images, one token": lambda b: {
        **b,
        "image": jnp.zeros_like(b["image"]),
        "tokens": jnp.full_like(b["tokens"], 5),
    },
    "padding alone": lambda b: {
        **b,
        "tokens": jnp.zeros_like(b["tokens"]),
        "segment_ids": jnp.zeros_like(b["segment_ids"]),
        "positions": jnp.zeros_like(b["positions"]),
    },
}


@pytest.mark.parametrize("name", at_most(objectives.REGISTRY, 3))
def test_losses_and_gradients_are_finite(name):
    objective = tiny.make(name)
    ctx = Ctx(stream(0, 0, "encode"), jnp.int32(0), jnp.arange(tiny.BATCH, dtype=jnp.int32))

    @jax.jit
    def run(batch):
        variables = nn.unbox(objective.init(stream(0, 0, "init"), batch))
        return tiny.gradients(objective, variables.params, variables.extra, batch, ctx, 1)

    for kind, change in BATCHES.items():
        found = run(change(tiny.batch()))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((found.value, found.grads, found.loss))), kind
        if kind == "padding alone" and name in PREDICT_TOKENS:
            assert found.value == 0


@pytest.mark.parametrize("name", daily(["simclr", "swav"], 2))
def test_features_of_zero_have_finite_gradients(name):
    """A projector whose output is zero (dead units) has no direction to normalise."""
    objective = tiny.make(name)
    batch = tiny.batch()
    variables = nn.unbox(objective.init(stream(0, 0, "init"), batch))
    dead = jax.tree.map(jnp.zeros_like, variables.params["projector"])
    ctx = Ctx(stream(0, 0, "encode"), jnp.int32(0), jnp.arange(tiny.BATCH, dtype=jnp.int32))
    params = {**variables.params, "projector": dead}
    found = jax.jit(lambda p: tiny.gradients(objective, p, variables.extra, batch, ctx, 1))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((found.value, found.grads)))


def test_a_patch_of_one_value_has_no_normalised_target():
    patches = jax.random.normal(jax.random.key(0), (2, 5, 1))
    np.testing.assert_array_equal(views.normalize_patches(patches), 0)
    spec = tiny.SPEC.__class__(**{**vars(tiny.SPEC), "elements": {"image": {"shape": [4, 4, 1], "dtype": "uint8"}}})
    groups = tiny.config("mae")
    groups["model"] = {**groups["model"], "patch_size": 1}
    with pytest.raises(UserError, match=r"objective\.normalize_targets: got True, but a patch of one value"):
        objectives.create(groups, spec, tiny.STEPS)
    groups["objective"] = {**groups["objective"], "normalize_targets": False}
    objectives.create(groups, spec, tiny.STEPS)
