"""Permutation language modelling: its orders, its likelihoods by brute force, and the identity order."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.layers.masks import Causal, Given
from ssljax.objectives.base import Ctx, rows_of

MODEL = {"name": "xlnet", "preset": None, "width": 16, "depth": 2, "heads": 2}


def setting(spec=tiny.SPEC, **options):
    """An objective without dropout, and random parameters."""
    objective = objectives.create({"model": MODEL, "objective": {"name": "xlnet", **options}}, spec, tiny.STEPS)
    params = nn.meta.unbox(objective.init(jax.random.key(1), tiny.batch())).params
    rng = np.random.default_rng(0)
    return objective, jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), params)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_orders_are_uniform_and_their_ends_are_predicted():
    n = 24_000
    candidate = jnp.broadcast_to(jnp.array([False, True, True, True, True, False]), (n, 6))
    order = jax.jit(lambda keys: views.factorization_order(keys, candidate, 0.5))
    rank, last = map(np.asarray, order(views.example_keys(jax.random.key(0), n)))
    assert np.all(rank[:, [0, 5]] == -1) and not last[:, [0, 5]].any() and np.all(last.sum(1) == 2)
    inner = rank[:, 1:5]
    np.testing.assert_array_equal(last[:, 1:5], inner >= 4)
    ranks, counts = np.unique(inner, axis=0, return_counts=True)
    assert {tuple(r) for r in ranks.tolist()} == set(itertools.permutations(range(2, 6)))
    np.testing.assert_allclose(counts / n, 1 / 24, atol=0.006)
    few = jnp.array([[True, False], [False, False], [True, True]])
    found = views.factorization_order(views.example_keys(jax.random.key(0), 3), few, 0.4)[1]
    assert np.asarray(found).sum(1).tolist() == [1, 0, 1]  # at least one of those that there are


@pytest.mark.parametrize("context", ["ordered", "full"])
def test_the_loss_is_that_of_the_two_streams(context):
    """Token by token: a text that is alone in its row, and the masks from the definition of the order."""
    objective, params = setting(context=context, share=0.3)
    batch = tiny.batch()
    inputs = objective.views(views.example_keys(jax.random.key(0), 16), batch, jnp.int32(0))
    ctx = Ctx(jax.random.key(5), jnp.int32(0), rows_of(batch), train=False)
    run = jax.jit(lambda p: objective.loss(p, {}, objective.encode(p, {}, inputs, ctx), inputs, ctx).terms["nll"])
    _, total, count = run(params)
    rank, last = views.factorization_order(
        views.example_keys(jax.random.key(0), 16), np.asarray(batch["segment_ids"]) > 0, 0.3
    )
    rank, last, segments = np.asarray(rank), np.asarray(last), np.asarray(batch["segment_ids"])
    content, query = (np.zeros((16, tiny.LENGTH, tiny.LENGTH), bool) for _ in range(2))
    for b, i, j in np.ndindex(content.shape):
        if segments[b, i] != segments[b, j] or segments[b, j] == 0:
            continue
        seen = rank[b, j] < rank[b, i] and not (context == "full" and last[b, j] and not last[b, i])
        seen |= context == "full" and not last[b, j]
        query[b, i, j], content[b, i, j] = seen, seen or i == j
    everywhere = jnp.broadcast_to(jnp.arange(tiny.LENGTH), (16, tiny.LENGTH))
    masks = {"content": Given(jnp.asarray(content)[:, None]), "query": Given(jnp.asarray(query)[:, None])}
    module, variables = objective.model, {"params": params["encoder"]}
    hidden = module.apply(
        variables, batch["tokens"], everywhere, **masks, positions=batch["positions"], method="streams"
    )[1]
    logits = log_softmax(module.apply(variables, hidden, method="logits"))
    nll = -np.take_along_axis(logits, np.asarray(batch["tokens"])[..., None], -1)[..., 0]
    assert count == last.sum() > 16
    assert float(total) == pytest.approx(nll[last].sum(), rel=1e-5)


def test_likelihoods_of_all_texts_sum_to_one_in_every_order():
    """The query stream does not know its token: else the sum would not be 1."""
    elements = {"tokens": {"shape": [3], "dtype": "int32"}}
    spec = tiny.DataSpec(elements=elements, size=10, vocab_size=4, max_len=3)
    objective, params = setting(spec)
    texts = jnp.array(list(itertools.product(range(4), repeat=3)), jnp.int32)

    @jax.jit
    def likelihood(rank):
        rows = jnp.broadcast_to(rank, texts.shape)
        inputs = objective._inputs({"tokens": texts}, rows, jnp.ones(texts.shape, bool), 3)
        hidden = objective.queries(params, inputs, None)
        return -objective.scores(params, hidden, inputs["target"]).nll.reshape(-1, 3).sum(1)

    found = [np.exp(np.asarray(likelihood(jnp.array(rank)), np.float64)) for rank in itertools.permutations(range(3))]
    np.testing.assert_allclose([p.sum() for p in found], 1, rtol=1e-5)
    assert np.abs(found[0] - found[-1]).max() > 1e-3  # orders differ
    score, count = objective.score(params, {}, {"tokens": texts})
    np.testing.assert_allclose(score, np.log(found[0]), rtol=1e-5)  # from left to right
    assert np.all(count == 3)


def test_the_identity_order_is_a_causal_language_model():
    """Contents are those of the model under a causal mask, and each prediction reads earlier tokens alone."""
    objective, params = setting()
    tokens = tiny.batch()["tokens"]
    rank = jnp.broadcast_to(jnp.arange(tiny.LENGTH), tokens.shape)
    masks = {
        "content": Given((rank[:, None, :] <= rank[:, :, None])[:, None]),
        "query": Given((rank[:, None, :] < rank[:, :, None])[:, None]),
    }
    run = lambda *a, **more: objective.model.apply({"params": params["encoder"]}, *a, **more)  # noqa: E731
    contents, _ = run(tokens, rank, **masks, method="streams")
    np.testing.assert_allclose(contents, run(tokens, mask=Causal()).tokens, atol=1e-5)
    inputs = objective._inputs({"tokens": tokens}, rank, jnp.ones(tokens.shape, bool), tiny.LENGTH)
    other = {**inputs, "tokens": tokens.at[:, 5].set(9)}
    first, second = (objective.queries(params, x, None) for x in (inputs, other))
    np.testing.assert_array_equal(first[:, :6], second[:, :6])
    assert np.all(np.abs(first - second)[:, 6:].max((0, 2)) > 1e-4)


def test_predicted_tokens_are_no_special_tokens():
    objective, _ = setting(share=1.0)
    batch = tiny.batch()
    batch["tokens"] = batch["tokens"].at[:, 0].set(tiny.SPEC.special_ids["cls"])
    inputs = objective.views(views.example_keys(jax.random.key(0), 16), batch, jnp.int32(0))
    counted = np.asarray(inputs["counted"])
    assert not np.any(np.asarray(inputs["chosen_at"])[counted] == 0)
    assert counted.sum() == np.sum(np.asarray(batch["segment_ids"])[:, 1:] > 0)
    assert objective.predicted(48) == 48 and setting(share=1 / 6)[0].predicted(48) == 8


def test_other_models_are_refused():
    with pytest.raises(UserError, match=r"model.name: permutation language modelling needs the two streams of 'xlnet'"):
        tiny.make("xlnet", name="bert", preset=None, width=16, depth=1, heads=2)
