"""word2vec: its loss and gradients by brute force in float64, counts, and vectors that find the structure of a text."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.objectives.base import Ctx, rows_of
from ssljax.objectives.contrastive.word2vec import nearest

FORMS = ("skip_gram", "cbow")


def setting(**options):
    model = tiny.CONFIGS["word2vec"]["model"]
    return objectives.create({"model": model, "objective": {"name": "word2vec", **options}}, tiny.SPEC, tiny.STEPS)


def random_params(objective, batch):
    params = nn.meta.unbox(objective.init(jax.random.key(1), batch)).params
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32), params)


def defined(form, window, params, words, noise):
    """Sum of the losses, and number of predictions, of given words and noise: loops in float64."""
    v, u = (np.asarray(params["encoder"][name]["embedding"], np.float64) for name in ("embed", "context"))
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))  # noqa: E731
    total, count = 0.0, 0
    tokens, segments, reach = (np.asarray(x) for x in words)
    for row in range(len(tokens)):
        for t in range(tokens.shape[1]):
            near = [s for s in range(tokens.shape[1]) if s != t and abs(s - t) <= reach[row, t]]
            near = [s for s in near if segments[row, s] == segments[row, t] > 0]
            if form == "cbow":
                pairs = [(np.mean(v[tokens[row, near]], 0), tokens[row, t], noise[None][row, t])] if near else []
            else:
                pairs = [(v[tokens[row, t]], tokens[row, s], noise[s - t][row, t]) for s in near]
            for vector, word, others in pairs:
                total -= log_sigmoid(u[word] @ vector) + sum(log_sigmoid(-u[k] @ vector) for k in others)
                count += 1
    return total, count


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_by_brute_force(form, monkeypatch):
    """The random words are recorded; the loss of these words is then computed token by token."""
    objective, batch = setting(form=form, window=3, negatives=2, subsample=0.02), tiny.batch()
    batch["tokens"] = batch["tokens"].at[0, 1].set(tiny.SPEC.special_ids["sep"])  # no word
    params = random_params(objective, batch)
    extra = {"counts": jnp.asarray(np.random.default_rng(3).integers(1, 50, 64), jnp.float32)}
    drawn, noise = [], {}
    original = views.subsampled_words
    monkeypatch.setattr(views, "subsampled_words", lambda *a: drawn.append(original(*a)) or drawn[-1])

    def recorded(keys, counts, target):
        """Noise that depends on the target's place alone, so that a loop may draw it again."""
        place = jnp.arange(target.shape[1])[:, None] * 7 + jnp.arange(2)
        return jnp.broadcast_to((target[..., None] * 5 + place) % 64, (*target.shape, 2))

    monkeypatch.setattr(type(objective), "_noise", lambda self, keys, counts, target: recorded(keys, counts, target))
    inputs = objective.views(views.example_keys(jax.random.key(0), 16), batch, jnp.int32(0))
    ctx = Ctx(jax.random.key(5), jnp.int32(0), rows_of(batch))

    def loss(params):
        found = objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx)
        return found.terms["negative_sampling"][1], found

    with jax.default_matmul_precision("highest"):
        (total, found), grads = jax.value_and_grad(loss, has_aux=True)(params)
    words = drawn[0]
    assert not np.any(np.asarray(words.tokens)[np.asarray(words.segment_ids) > 0] == tiny.SPEC.special_ids["sep"])
    if form == "cbow":
        noise[None] = np.asarray(recorded(None, None, words.tokens))
    else:
        for offset in views.offsets(3).tolist():
            noise[offset] = np.asarray(recorded(None, None, views.context_at(words, offset)[0]))
    want, count = defined(form, 3, params, words, noise)
    assert found.terms["negative_sampling"][2] == count > 50
    assert float(total) == pytest.approx(want, rel=1e-5)
    for name in ("embed", "context"):
        way = np.random.default_rng(4).normal(size=grads["encoder"][name]["embedding"].shape)

        def moved(by, name=name, way=way):
            table = np.asarray(params["encoder"][name]["embedding"], np.float64) + by * way
            encoder = {**params["encoder"], name: {"embedding": table}}
            return defined(form, 3, {"encoder": encoder}, words, noise)[0]

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert np.sum(np.asarray(grads["encoder"][name]["embedding"]) * way) == pytest.approx(slope, rel=1e-4)


def test_counts_are_those_of_the_words_so_far_plus_one():
    objective, batch = setting(), tiny.batch()
    extra = nn.meta.unbox(objective.init(jax.random.key(1), batch)).extra
    special = list(tiny.SPEC.special_ids.values())
    once = np.where(np.isin(np.arange(64), special), 0, 1)  # special tokens are no noise
    np.testing.assert_array_equal(extra["counts"], once)
    inputs = objective.views(views.example_keys(jax.random.key(0), 16), batch, jnp.int32(0))
    zeros = dict.fromkeys(("loss", "right", "count"), jnp.zeros(16))
    sums = objective.loss({}, extra, zeros, inputs, None).sums
    words = np.asarray(batch["tokens"])[np.asarray(batch["segment_ids"]) > 0]
    np.testing.assert_array_equal(
        objective.update(extra, {}, sums, (), jnp.int32(0))["counts"], once + np.bincount(words, minlength=64)
    )


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_a_token_that_is_no_word_is_no_noise(power):
    counts = jnp.ones(8).at[jnp.array([0, 3, 7])].set(0.0)
    drawn = np.asarray(views.noise_tokens(views.example_keys(jax.random.key(0), 50), counts, power, (100,)))
    assert set(drawn.reshape(-1)) == {1, 2, 4, 5, 6}


def test_words_of_two_texts_of_a_window_are_no_contexts():
    """Windows have no segments; a separator ends a text, a mask does not."""
    objective, ids = setting(window=3), tiny.SPEC.special_ids
    tokens = np.array([[20, 21, ids["sep"], 22, 23, ids["mask"], 24, 25, 26, 27, 28, 29]])
    batches = {"window": {"tokens": jnp.asarray(tokens)}}
    batches["packed"] = {**batches["window"], "segment_ids": jnp.asarray([[1] * 3 + [1] * 5 + [2] * 3 + [0]])}
    for name, ends in (("window", ()), ("packed", (8, 11))):
        got = np.asarray(objective.views(None, batches[name], 0)["segment_ids"])[0]
        words = [t for t in range(12) if t not in (2, 5) and not (name == "packed" and t == 11)]
        assert [t for t in range(12) if got[t] > 0] == words
        text = lambda t: sum(t > end for end in (2, *(e - 1 for e in ends)))  # noqa: E731, B023
        for a in words:
            for b in words:
                assert (got[a] == got[b]) == (text(a) == text(b))


def test_noise_and_subsampling_read_the_counts():
    """A token of a large count is dropped often, and is most of the noise."""
    objective, batch = setting(subsample=1e-3, negatives=20), tiny.batch()
    counts = jnp.ones(64).at[30].set(1e9)
    noise = objective._noise(views.example_keys(jax.random.key(0), 16), counts, batch["tokens"])
    assert noise.shape == (16, tiny.LENGTH, 20) and np.mean(np.asarray(noise) == 30) > 0.99
    batch = {**batch, "tokens": jnp.full_like(batch["tokens"], 30)}
    params = random_params(objective, batch)
    inputs = objective.views(views.example_keys(jax.random.key(0), 16), batch, jnp.int32(0))
    ctx = Ctx(jax.random.key(5), jnp.int32(0), rows_of(batch))
    number = lambda counts: objective.encode(params, {"counts": counts}, inputs, ctx)["count"].sum()  # noqa: E731
    assert number(counts) < 0.05 * number(jnp.ones(64) * 1e-9 + counts * 0)


@pytest.mark.parametrize("form", FORMS)
def test_vectors_of_words_of_one_kind_become_alike(form):
    """Texts of two halves of the vocabulary that never meet: nearest words are of the same half."""
    objective = setting(form=form, window=2, subsample=None)
    rng = np.random.default_rng(0)
    half = rng.integers(0, 2, (64, 1))
    batch = {"tokens": jnp.asarray(4 + 2 * rng.integers(0, 30, (64, tiny.LENGTH)) + half, jnp.int32)}
    params, extra = nn.meta.unbox(objective.init(jax.random.key(1), batch))

    @jax.jit
    def step(params, number):
        keys = views.example_keys(jax.random.fold_in(jax.random.key(0), number), 64)
        inputs = objective.views(keys, batch, number)
        ctx = Ctx(jax.random.key(number), number, rows_of(batch))

        def mean(params):
            ((_, total, weight),) = objective.loss(
                params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx
            ).terms.values()
            return total / weight

        value, grads = jax.value_and_grad(mean)(params)
        return jax.tree.map(lambda p, g: p - 20 * g, params, grads), value

    losses = []
    for number in range(150):
        params, value = step(params, jnp.int32(number))
        losses.append(float(value))
    assert losses[0] == pytest.approx(6 * np.log(2), rel=1e-3) and losses[-1] < losses[0] - 0.3
    table = np.asarray(params["encoder"]["embed"]["embedding"])
    counts = np.zeros(64)
    counts[4:] = 2
    share = np.mean([(nearest(table, counts, token) - token) % 2 == 0 for token in range(4, 64)])
    assert share > 0.95


def test_other_models_are_refused():
    with pytest.raises(UserError, match=r"model.name: word2vec trains two tables, so the model must be 'word_vectors'"):
        tiny.make("word2vec", name="bert", preset=None, width=16, depth=1, heads=2)
