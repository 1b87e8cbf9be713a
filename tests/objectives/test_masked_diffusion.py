"""Masked diffusion: its masks, and its bound by brute force over all masks and all orders of a small text."""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.objectives.base import Ctx, rows_of
from ssljax.views.keys import uniforms

LENGTH = 4


def setting(**options):
    """An objective without dropout, its variables, and texts of four tokens, of which one has padding."""
    model = {**tiny.CONFIGS["masked_diffusion"]["model"], "dropout": 0.0}
    objective = objectives.create(
        {"model": model, "objective": {"name": "masked_diffusion", **options}}, tiny.SPEC, tiny.STEPS
    )
    tokens = jnp.array([[7, 9, 8, 30], [11, 5, 0, 0]], jnp.int32)
    batch = {
        "tokens": tokens,
        "segment_ids": (tokens > 0).astype(jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(4), (2, 4)),
    }
    params = nn.meta.unbox(objective.init(jax.random.key(1), batch)).params
    return objective, jax.tree.map(lambda x: 3 * x, params), batch


def nll(objective, params, batch, masked):
    """-log p of the true tokens [B, T], with the tokens of `masked` [T] hidden; float64 softmax."""
    tokens = jnp.where(jnp.array(masked), objective.mask_id, batch["tokens"])
    hidden = objective.hidden(params, {**batch, "tokens": tokens}, None).tokens
    logits = np.array(objective.model.apply({"params": params["encoder"]}, hidden, method="logits"), np.float64)
    logits -= logits.max(-1, keepdims=True)
    p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(p, np.array(batch["tokens"])[..., None], -1)[..., 0]


def bounds(objective, params, batch):
    """The bound of each text: the mean over all orders of its tokens of their autoregressive likelihood."""
    out = []
    for row, n in enumerate((4, 2)):
        total = 0.0
        for order in itertools.permutations(range(n)):
            hidden = np.zeros(LENGTH, bool)
            hidden[list(order)] = True
            for place in order:
                total += nll(objective, params, batch, hidden)[row, place]
                hidden[place] = False
        out.append(total / math.factorial(n))
    return np.array(out)


def test_the_loss_is_the_mean_over_all_orders():
    objective, params, batch = setting()
    wanted = bounds(objective, params, batch)
    found = np.zeros(2)
    for row, n in enumerate((4, 2)):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(range(n), k))
            for chosen in subsets:
                masked = np.zeros(LENGTH, bool)
                masked[list(chosen)] = True
                found[row] += n / k * nll(objective, params, batch, masked)[row, masked].sum() / len(subsets) / n
    np.testing.assert_allclose(found, wanted, rtol=1e-9)  # the identity of the docstring
    loss = jax.jit(lambda key: one_loss(objective, params, batch, key))
    drawn = np.mean([float(loss(jax.random.key(i))) for i in range(4000)])
    assert drawn == pytest.approx(wanted.sum() / 6, rel=0.02)  # nats per token of the batch


def one_loss(objective, params, batch, key):
    inputs = objective.views(views.example_keys(key, 2), objective.prepare(batch), jnp.int32(0))
    ctx = Ctx(key, jnp.int32(0), rows_of(batch), train=False)
    ((_, total, weight),) = objective.loss(
        params, {}, objective.encode(params, {}, inputs, ctx), inputs, ctx
    ).terms.values()
    return total / weight


def test_scores_estimate_the_bound_and_do_not_depend_on_the_batch():
    objective, params, batch = setting(samples=4000)
    found, count = jax.jit(objective.score)(params, {}, batch)
    np.testing.assert_allclose(-found, bounds(objective, params, batch), rtol=0.02)
    assert count.tolist() == [4.0, 2.0]
    objective, params, batch = setting(samples=8)
    both, _ = objective.score(params, {}, batch)
    alone, _ = objective.score(params, {}, jax.tree.map(lambda x: x[1:], batch))
    np.testing.assert_allclose(both[1:], alone, rtol=1e-5)


def test_masks_have_all_numbers_and_all_subsets_equally():
    rows, candidate = 60_000, jnp.array([True, True, False, True])
    keys = views.example_keys(jax.random.key(0), rows)
    share = uniforms(views.fold_in(keys, 1), 1)[:, 0]
    chosen, weight = views.diffusion_mask(keys, jnp.broadcast_to(candidate, (rows, 4)), share)
    k = np.array(chosen.sum(1))
    assert not chosen[:, 2].any()
    np.testing.assert_allclose(np.array(weight), 3 / k, rtol=1e-6)
    np.testing.assert_allclose(np.bincount(k, minlength=4) / rows, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.01)
    pairs = np.array(chosen)[k == 2][:, [0, 1, 3]] @ [1, 2, 4]
    np.testing.assert_allclose(np.bincount(pairs, minlength=8)[[3, 5, 6]] / len(pairs), 1 / 3, atol=0.02)


def test_a_row_without_candidates_has_no_weight():
    keys = views.example_keys(jax.random.key(0), 2)
    chosen, weight = views.diffusion_mask(keys, jnp.zeros((2, 5), bool), jnp.array([0.0, 0.99]))
    assert not chosen.any() and weight.tolist() == [0.0, 0.0]


def test_a_tokenizer_without_a_mask_is_refused():
    spec = dataclasses.replace(tiny.SPEC, special_ids={"pad": 0})
    config = tiny.config("masked_diffusion")
    with pytest.raises(UserError, match="needs a mask token"):
        objectives.create(config, spec, tiny.STEPS)
