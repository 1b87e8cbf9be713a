"""Prefix language models: splits, the loss token by token, what a token sees, and continuations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.evals.generation import Sampling, generate
from ssljax.layers.masks import Causal, Prefix
from ssljax.objectives.base import still, views_of

KEY = jax.random.key(0)


def one_text(batch):
    """The batch with one text in each row."""
    segments = (batch["segment_ids"] > 0).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    return {**batch, "segment_ids": segments, "positions": positions}


def made(**settings):
    """(objective, parameters, a batch with one text in each row)."""
    batch = one_text(tiny.batch())
    objective = tiny.make("prefix_lm", dropout=0.0)
    objective = type(objective)(**{**vars(objective), **settings})
    return objective, jax.jit(lambda: nn.unbox(objective.init(KEY, batch)))().params, batch


def test_splits_are_equally_likely():
    n = 20_000
    lengths = np.repeat([0, 1, 2, 9], n)
    keys = views.example_keys(KEY, len(lengths))
    found = np.asarray(jax.jit(views.prefix_lengths)(keys, jnp.asarray(lengths))).reshape(4, n)
    assert (found[:2] == 0).all() and (found[2] == 1).all()
    counts = np.bincount(found[3], minlength=9)
    assert counts[0] == 0 and len(counts) == 9
    assert np.abs(counts[1:] - n / 8).max() < 5 * np.sqrt(n / 8 * 7 / 8)
    shares = views.prefix_lengths(keys[:4], jnp.array([1, 2, 10, 11]), 0.25)
    assert shares.tolist() == [0, 1, 3, 3]


@functools.partial(jax.jit, static_argnames="model")
def logits_after(model, params, tokens, mask, t):
    """Logits [B, V] from the first t tokens of each row alone."""
    seen = jnp.where(jnp.arange(tokens.shape[1]) < t, tokens, 0)
    hidden = model.apply({"params": params}, seen, mask=mask).tokens[:, t - 1]
    return model.apply({"params": params}, hidden, method="logits")


@pytest.mark.parametrize("settings", [{}, {"share": 0.3}, {"bidirectional": False}])
def test_loss_and_scores_token_by_token(settings):
    """Each token after the prefix is predicted by a pass over the tokens before it alone."""
    objective, params, batch = made(**settings)
    inputs = views_of(objective, KEY, batch, jnp.int32(0))
    ctx = still(KEY, batch)
    outputs = objective.encode(params, {}, inputs, ctx)
    _, total, count = objective.loss(params, {}, outputs, inputs, ctx).terms["nll"]
    halves = views.prefix_lengths(jnp.zeros((tiny.BATCH, 1)), (batch["segment_ids"] > 0).sum(1), objective.share or 0.5)
    log_prob, counted = objective.score(params, {}, batch)
    nll, seen = np.zeros((2, tiny.BATCH)), np.zeros((2, tiny.BATCH))
    for kind, splits in enumerate((inputs["prefix"], halves)):
        for t in range(1, tiny.LENGTH):
            mask = Prefix(jnp.minimum(splits, t)) if objective.bidirectional else Causal()
            logits = logits_after(objective.model, params["encoder"], batch["tokens"], mask, t)
            logits = np.asarray(logits, np.float64)
            predicted = (t >= np.asarray(splits)) & (np.asarray(batch["segment_ids"])[:, t] > 0)
            own = np.log(np.exp(logits).sum(-1)) - logits[np.arange(tiny.BATCH), batch["tokens"][:, t]]
            nll[kind] += predicted * own
            seen[kind] += predicted
    assert float(count) == seen[0].sum() and np.array_equal(counted, seen[1])
    np.testing.assert_allclose(total, nll[0].sum(), rtol=1e-5)
    np.testing.assert_allclose(-log_prob, nll[1], rtol=1e-4)
    np.testing.assert_array_equal(np.asarray(objective.scored(batch)).sum(1), seen[1])


def test_the_prefix_is_read_in_both_directions_and_the_rest_in_one():
    objective, params, batch = made(share=0.5)
    batch = {k: v[:1] for k, v in batch.items() if k in ("tokens", "segment_ids", "positions")}
    batch["segment_ids"] = jnp.ones_like(batch["segment_ids"])
    inputs = views_of(objective, KEY, batch, jnp.int32(0))
    states = lambda tokens: objective.hidden(params, {**inputs, "tokens": tokens}, None).tokens[0]  # noqa: E731
    before, split, length = states(inputs["tokens"]), int(inputs["prefix"][0]), inputs["tokens"].shape[1]
    for at in range(length):
        changed = states(inputs["tokens"].at[0, at].add(1))
        moved = np.abs(changed - before).max(-1) > 1e-5
        assert moved.tolist() == [at < split or t >= at for t in range(length)]


def test_without_the_prefix_it_is_the_causal_model():
    """A causal language model has the same loss at the same positions."""
    objective, params, batch = made(bidirectional=False)
    causal = tiny.make("causal_lm", dropout=0.0)
    inputs = views_of(objective, KEY, batch, jnp.int32(0))
    scores, _ = causal._scores(params, causal.hidden(params, batch, None).tokens[:, :-1], batch)
    weights = np.arange(tiny.LENGTH) >= np.asarray(inputs["prefix"])[:, None]
    weights = (weights & (np.asarray(batch["segment_ids"]) > 0))[:, 1:].reshape(-1)
    loss = objective.loss(params, {}, objective.encode(params, {}, inputs, still(KEY, batch)), inputs, None)
    np.testing.assert_allclose(loss.terms["nll"][1], np.sum(scores.nll * weights), rtol=1e-5)


def test_continuations_read_the_prompt_in_both_directions():
    objective, params, _ = made()
    model, params = objective.model, jax.tree.map(lambda x: 8 * x, params["encoder"])  # far from equal logits
    prompts = [np.array([5, 9, 33, 20]), np.array([7, 40])]
    tokens = generate(model, params, prompts, Sampling(5), prefix=True)
    apply = jax.jit(lambda row, n: model.apply({"params": params}, row, mask=Prefix(n)).tokens[:, -1])
    for prompt, new in zip(prompts, tokens):
        row = list(prompt)
        for token in new:
            hidden = apply(jnp.asarray([row]), jnp.int32(len(prompt)))
            assert int(model.apply({"params": params}, hidden, method="logits").argmax()) == token
            row.append(int(token))
    plain = generate(model, params, prompts, Sampling(5))
    assert any((a != b).any() for a, b in zip(plain, tokens))


def test_n_grams_learn_from_all_tokens_that_a_causal_model_predicts():
    objective, causal = tiny.make("prefix_lm"), tiny.make("causal_lm")
    batch = tiny.batch()
    assert np.array_equal(objective.fitted(batch), causal.scored(batch))
    assert 0 < objective.scored(batch).sum() < objective.fitted(batch).sum()


T5 = {"name": "t5", "preset": None, "width": 32, "depth": 2, "heads": 4}


@pytest.mark.parametrize("settings", [{}, {"share": 0.3}])
def test_an_encoder_decoder_writes_the_rest_token_by_token(settings):
    """Each token after the split is predicted from the prefix, read without padding, and the tokens between."""
    groups = {"objective": {"name": "prefix_lm", "last": (2,), **settings}, "model": T5}
    objective, batch = objectives.create(groups, tiny.SPEC, tiny.STEPS), one_text(tiny.batch())
    params = jax.jit(lambda: nn.unbox(objective.init(KEY, batch)))().params
    inputs, ctx = views_of(objective, KEY, batch, jnp.int32(0)), still(KEY, batch)
    assert (inputs["tokens"].shape[1], inputs["target"].shape[1]) == objective.lengths(tiny.SPEC)
    loss = jax.jit(lambda: objective.loss(params, {}, objective.encode(params, {}, inputs, ctx), inputs, ctx))()
    log_prob, counted = jax.jit(objective.score)(params, {}, batch)

    @functools.partial(jax.jit, static_argnames="cut")
    def logits_of(row, cut):
        before = jnp.concatenate([jnp.array([objective.model.config.decoder_start]), row[cut:-1]])
        return objective.model.apply({"params": params["encoder"]}, row[None, :cut], before[None])[0]

    lengths = np.asarray((batch["segment_ids"] > 0).sum(1))
    own = views.prefix_lengths(views.example_keys(KEY, tiny.BATCH), jnp.asarray(lengths), objective.share)
    halves = views.prefix_lengths(jnp.zeros((tiny.BATCH, 1)), jnp.asarray(lengths), objective.share or 0.5)
    nll, seen, exact = np.zeros((2, tiny.BATCH)), np.zeros((2, tiny.BATCH)), 0
    for kind, splits in enumerate((own, halves)):
        for row, (cut, n) in enumerate(zip(splits.tolist(), lengths)):
            logits = np.asarray(logits_of(batch["tokens"][row], cut), np.float64)[: n - cut]
            target = np.asarray(batch["tokens"])[row, cut:n]
            nll[kind, row] = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(n - cut), target]).sum()
            seen[kind, row] = n - cut
            exact += kind == 0 and n - cut >= 2 and bool((logits.argmax(-1) == target)[-2:].all())
    np.testing.assert_allclose(loss.terms["nll"][1], nll[0].sum(), rtol=1e-5)
    assert float(loss.terms["nll"][2]) == seen[0].sum() and np.array_equal(counted, seen[1])
    assert [float(x) for x in loss.metrics["exact_2"]] == [exact, (seen[0] >= 2).sum()]
    np.testing.assert_allclose(-log_prob, nll[1], rtol=1e-4)
    scored = np.asarray(objective.scored(batch))
    assert (scored == (np.arange(tiny.LENGTH) >= np.asarray(halves)[:, None]) & (batch["segment_ids"] > 0)).all()
    assert not (scored & ~np.asarray(objective.fitted(batch))).any()


def test_gradients_of_an_encoder_decoder_in_slices():
    tiny.check_slices(tiny.make("prefix_lm", **T5, dropout=0.1))


@pytest.mark.parametrize("name", ["prefix_lm", "span_corruption"])
def test_an_encoder_reads_in_both_directions(name):
    groups = {"objective": {"name": name, "bidirectional": False}, "model": {**T5, "vocab_size": 72}}
    with pytest.raises(UserError, match=r"objective\.bidirectional: got False, must be True for an encoder-decoder"):
        objectives.create(groups, tiny.SPEC, tiny.STEPS)
