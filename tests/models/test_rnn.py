"""Recurrent networks against their equations in float64, values and gradients; texts in a row; caches; FLOPs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import models
from ssljax.base.errors import UserError
from ssljax.data import DataSpec
from ssljax.evals.generation import Sampling, generate
from ssljax.layers.masks import Causal, Full, Keys, Prefix, Sliding
from ssljax.layers.noise import Noise

T, D, V, L = 9, 5, 11, 2
SPEC = DataSpec(elements={"tokens": {"shape": [T], "dtype": "int32"}}, size=100, vocab_size=V, max_len=T)
CELLS = ("rnn", "lstm", "gru")
TOKENS = np.random.default_rng(0).integers(0, V, (3, T))
SEGMENTS = np.array([[1] * 4 + [2] * 5, [1] * 2 + [2] + [3] * 3 + [0] * 3, [1] * 6 + [0] * 3])


@functools.cache
def make(cell, **keys):
    """A network and random parameters, none of which is constant."""
    config = {"name": "rnn", "cell": cell, "width": D, "depth": L, **keys}
    module = models.create(config, SPEC)
    shapes = nn.unbox(jax.eval_shape(module.initial, jax.random.key(0)))["params"]
    rng = np.random.default_rng(1)
    return module, jax.tree.map(lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unit(cell, p, x, h, c):
    """One step of a unit for one text, by the formulas of the papers: (output, content of the cells)."""
    pre = lambda gate: x @ p[f"{gate}_in"] + h @ p[f"{gate}_state"] + p[f"{gate}_bias"]  # noqa: E731
    if cell == "rnn":
        return np.tanh(pre("hidden")), c
    if cell == "lstm":
        c = sigmoid(pre("forget")) * c + sigmoid(pre("input")) * np.tanh(pre("cell"))
        return sigmoid(pre("output")) * np.tanh(c), c
    inner = h @ p["candidate_state"] + p["candidate_state_bias"]
    candidate = np.tanh(x @ p["candidate_in"] + p["candidate_bias"] + sigmoid(pre("reset")) * inner)
    z = sigmoid(pre("update"))
    return z * h + (1 - z) * candidate, c


def defined(cell, params, tokens, segments):
    """Outputs float64 [T, D] of one row, token by token; 0 at padding."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = params["embed"]["embedding"][tokens]
    for layer in range(L):
        p = {name: value[layer] for name, value in params["layers"].items()}
        h, c, out = np.zeros(D), np.zeros(D), np.zeros((T, D))
        for t in range(T):
            if t and segments[t] != segments[t - 1]:
                h, c = np.zeros(D), np.zeros(D)
            if segments[t]:
                h, c = unit(cell, p, x[t], h, c)
                out[t] = h
        x = out
    return x


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_gradients_are_those_of_the_equations(cell, segmented):
    module, params = make(cell)
    segments = SEGMENTS if segmented else np.ones_like(TOKENS)
    given = jnp.asarray(segments) if segmented else None
    way = np.random.default_rng(2).normal(size=(3, T, D)) * (segments > 0)[..., None]

    def run(params):
        return module.apply({"params": params}, TOKENS, mask=Causal(), segment_ids=given).tokens

    def reference(params):
        return np.stack([defined(cell, params, *row) for row in zip(TOKENS, segments)])

    valid = (segments > 0)[..., None]
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(run(params) * valid, reference(params), atol=2e-6)
        grads = jax.grad(lambda params: jnp.sum(run(params) * way))(params)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for (path, leaf), grad in zip(jax.tree.leaves_with_path(wide), jax.tree.leaves(grads), strict=True):
        direction, eps = np.random.default_rng(3).normal(size=leaf.shape), 1e-5

        def moved(by, leaf=leaf, direction=direction):
            return jax.tree.map(lambda x: x + by * direction if x is leaf else x, wide)

        slope = np.sum(way * (reference(moved(eps)) - reference(moved(-eps)))) / (2 * eps)
        np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-4, atol=1e-5, err_msg=str(path))


@pytest.mark.parametrize("cell", CELLS)
def test_texts_in_a_row_are_texts_alone(cell):
    module, params = make(cell)
    run = lambda tokens, **more: module.apply({"params": params}, tokens, mask=Causal(), **more)  # noqa: E731
    together = run(TOKENS, segment_ids=SEGMENTS)
    np.testing.assert_allclose(together.tokens[0, 4:], run(TOKENS[:1, 4:]).tokens[0], atol=1e-6)
    np.testing.assert_allclose(together.tokens[1, 3:6], run(TOKENS[1:2, 3:6]).tokens[0], atol=1e-6)
    np.testing.assert_allclose(together.pooled[2], run(TOKENS[2:, :6]).pooled[0], atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_the_cache_is_the_state_after_the_last_token_of_each_row(cell):
    module, params = make(cell)
    run = lambda tokens, **more: module.apply({"params": params}, tokens, mask=Causal(), **more)  # noqa: E731
    whole, lengths = run(TOKENS), np.array([4, 1, 6])
    first = run(TOKENS, cache=module.empty_cache(3), valid=np.arange(T) < lengths[:, None])
    follow = np.take_along_axis(TOKENS, np.minimum(lengths[:, None] + np.arange(3), T - 1), 1)
    then = run(follow, cache=first.cache, start=lengths)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(then.tokens[row], whole.tokens[row, n : n + 3], atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_decoding_takes_the_most_probable_token(cell):
    module, params = make(cell)
    prompts = [TOKENS[0, :3], TOKENS[1, :7]]
    made = generate(module, params, prompts, Sampling(5))
    rows = np.stack([np.concatenate([p, new, np.zeros(12 - len(p) - 5, int)]) for p, new in zip(prompts, made)])
    hidden = module.apply({"params": params}, rows, mask=Causal()).tokens
    best = np.argmax(module.apply({"params": params}, hidden, method="logits"), -1)
    for prompt, new, row in zip(prompts, made, best):
        np.testing.assert_array_equal(new, row[len(prompt) - 1 : len(prompt) + 4])


def test_masks_that_hide_earlier_tokens_are_refused():
    module, params = make("gru")
    run = lambda mask: module.apply({"params": params}, TOKENS, mask=mask).tokens  # noqa: E731
    for mask in (Full(), Prefix(3)):
        np.testing.assert_array_equal(run(mask), run(Causal()))
    for mask in (Sliding(3), Keys(np.ones((3, T), bool)), Causal() & Sliding(3)):
        with pytest.raises(UserError, match=r"model.name: a recurrent network reads all earlier tokens"):
            run(mask)


def test_dropout_acts_on_inputs_of_layers_and_the_output():
    """With the rate near 1, nothing is left of the tokens; without noise the rate changes nothing."""
    module, params = make("lstm", dropout=0.5)
    plain, _ = make("lstm")
    run = lambda m, **more: m.apply({"params": params}, TOKENS, mask=Causal(), states=True, **more)  # noqa: E731
    np.testing.assert_array_equal(run(module).tokens, run(plain).tokens)
    noisy = run(module, noise=Noise(jax.random.key(0), jnp.arange(3)))
    assert 0.3 < np.mean(np.asarray(noisy.tokens) == 0) < 0.7  # of the output
    assert not np.any(noisy.states[1:] == 0)  # states are whole
    np.testing.assert_array_equal(noisy.states[0], run(plain).states[0])


def test_flops_are_those_that_the_compiler_counts():
    """A loop counts once, so a single token goes through one layer."""
    for cell in CELLS:
        module = models.create({"name": "rnn", "cell": cell, "width": 128, "depth": 1}, SPEC)
        params = nn.unbox(jax.eval_shape(module.initial, jax.random.key(0)))
        run = jax.jit(lambda params, tokens, m=module: m.apply(params, tokens, mask=Full(), method="init_all"))
        got = run.lower(params, jnp.zeros((64, 1), jnp.int32)).compile().cost_analysis()["flops"] / 64
        assert got == pytest.approx(module.flops(1, predicted=1), rel=0.05)
        deep = models.create({"name": "rnn", "cell": cell, "width": 128, "depth": 3}, SPEC)
        assert deep.flops(7) == pytest.approx(21 * module.flops(1))


def test_initial_values():
    """Matrices are uniform with variance 1 / D, forget gates open."""
    module = models.create({"name": "rnn", "cell": "lstm", "width": 64, "forget_bias": 2.0}, SPEC)
    params = nn.unbox(module.initial(jax.random.key(0)))["params"]["layers"]
    for name, value in params.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(value, 2.0 if name == "forget_bias" else 0.0)
        else:
            assert np.abs(value).max() == pytest.approx((3 / 64) ** 0.5, rel=0.01)
            assert np.std(value) == pytest.approx(64**-0.5, rel=0.05)
