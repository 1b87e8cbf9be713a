"""XLNet against its equations in float64; tokens that its two streams may depend on."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from ssljax.layers.masks import Full, Given
from ssljax.layers.noise import Noise
from ssljax.models.xlnet import XLNetConfig

RNG = np.random.default_rng(0)
CONFIG = XLNetConfig(preset=None, width=12, depth=2, heads=2, head_dim=4, mlp_dim=20, vocab_size=30, max_len=7)
TOKENS = RNG.integers(0, 30, (3, 7))
TYPES = np.array([[0] * 7, [0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 2, 2]])
RANK = np.argsort(RNG.random((3, 7)), axis=1)  # rank of each token in the order of prediction
TARGETS = np.array([[0, 3, 6], [5, 1, 2], [2, 2, 4]])
CONTENT, QUERY = RANK[:, None, :] <= RANK[:, :, None], RANK[:, None, :] < RANK[:, :, None]


@pytest.fixture(scope="module")
def model():
    module = CONFIG.standalone()
    params = nn.unbox(jax.jit(module.initial)(jax.random.key(0)))["params"]
    return module, jax.tree.map(lambda a: a + jnp.asarray(0.3 * RNG.normal(size=a.shape), jnp.float32), params)


def streams(module, params, tokens=TOKENS, **more):
    masks = {"content": Given(jnp.asarray(CONTENT)[:, None]), "query": Given(jnp.asarray(QUERY)[:, None])}
    variables, types = {"params": params}, jnp.asarray(TYPES)
    return module.apply(variables, tokens, TARGETS, **masks, token_types=types, method="streams", **more)


def np_norm(x, p):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-12) * p["scale"] + p["bias"]


def np_attention(p, x, here, h, seen, types):
    """Attention of one vector x at position `here` to the vectors h at the positions that it may see."""
    heads = lambda a: a.reshape(2, 4)  # noqa: E731
    out, r = np.zeros((2, 4)), p["relative"]
    q, (same, other) = heads(x @ p["q"]["kernel"]), (heads(s) for s in r["segments"])
    for n in range(2):
        scores = []
        for j in seen:
            waves = (here - j) * 10_000.0 ** (-np.arange(6) / 6)
            distance = heads(np.concatenate([np.sin(waves), np.cos(waves)]) @ r["distance"]["kernel"])[n]
            segment = (same if types[here] == types[j] else other)[n]
            k = heads(h[j] @ p["k"]["kernel"])[n]
            u, v, w = (heads(r[f"{name}_bias"])[n] for name in ("content", "distance", "segment"))
            scores.append(((q[n] + u) @ k + (q[n] + v) @ distance + (q[n] + w) @ segment) / 2)
        weights = np.exp(scores) / np.exp(scores).sum() if scores else []
        out[n] = sum((a * heads(h[j] @ p["v"]["kernel"])[n] for a, j in zip(weights, seen)), np.zeros(4))
    return out.reshape(-1) @ p["out"]["kernel"]


def np_layer(p, x, here, h, seen, types):
    x = np_norm(x + np_attention(p["attention"], x, here, h, seen, types), p["attention_norm"])
    y = x @ p["mlp"]["in"]["kernel"] + p["mlp"]["in"]["bias"]
    y = y * (1 + erf(y / np.sqrt(2))) / 2 @ p["mlp"]["out"]["kernel"] + p["mlp"]["out"]["bias"]
    return np_norm(x + y, p["mlp_norm"])


def np_streams(params):
    contents, queries = [], []
    for tokens, types, rank, targets in zip(TOKENS, TYPES, RANK, TARGETS):
        h, g = params["embed"]["embedding"][tokens], [params["query"]] * len(targets)
        for i in range(CONFIG.depth):
            p = jax.tree.map(lambda a, i=i: a[i], params["stack"]["layers"])
            before = [np.flatnonzero(rank < rank[t]) for t in range(7)]
            g = [np_layer(p, x, t, h, before[t], types) for x, t in zip(g, targets)]
            h = [np_layer(p, h[t], t, h, sorted([*before[t], t]), types) for t in range(7)]
        contents.append(h)
        queries.append(g)
    return np.asarray(contents), np.asarray(queries)


def test_both_streams_and_their_gradients(model):
    module, params = model
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    want = np_streams(exact)
    probes = [RNG.normal(size=w.shape) for w in want]

    @jax.jit
    def run(params):
        made = streams(module, params)
        return sum(jnp.vdot(m, p) for m, p in zip(made, probes)), made

    (_, got), grads = jax.value_and_grad(run, has_aux=True)(params)
    for g, w in zip(got, want):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)
    for _ in range(2):
        way = jax.tree.map(lambda a: RNG.normal(size=a.shape), exact)
        ends = [np_streams(jax.tree.map(lambda a, d, s=s: a + s * d, exact, way)) for s in (1e-5, -1e-5)]
        slope = sum(np.vdot(a - b, p) for a, b, p in zip(*ends, probes)) / 2e-5
        along = sum(np.vdot(np.asarray(g, np.float64), d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(way)))
        np.testing.assert_allclose(along, slope, rtol=1e-3, atol=1e-2)


def test_the_query_stream_depends_on_positions_but_not_on_its_token(model):
    module, params = model
    run = jax.jit(lambda tokens: streams(module, params, tokens))
    contents, queries = run(TOKENS)
    first, *later = np.argsort(RANK[0, TARGETS[0]])  # the targets in the order of prediction
    here = TARGETS[0, first]
    other = TOKENS.copy()
    other[0, here] = (other[0, here] + 1) % 30
    contents2, queries2 = run(other)
    np.testing.assert_array_equal(queries[0, first], queries2[0, first])
    assert np.abs(contents[0, here] - contents2[0, here]).max() > 1e-3
    assert all(np.abs(queries[0, i] - queries2[0, i]).max() > 1e-4 for i in later)
    np.testing.assert_array_equal(queries[2, 0], queries[2, 1])  # one position twice


def test_calling_the_model_gives_the_content_stream(model):
    module, params = model
    contents, _ = jax.jit(lambda: streams(module, params))()
    run = jax.jit(
        lambda mask: module.apply({"params": params}, TOKENS, mask=mask, token_types=jnp.asarray(TYPES)).tokens
    )
    np.testing.assert_allclose(run(Given(jnp.asarray(CONTENT)[:, None])), contents, rtol=1e-5, atol=1e-5)
    full = run(Full())
    # If all tokens are of one segment, its number does not matter, and it may be left out.
    alone = jax.jit(lambda types: module.apply({"params": params}, TOKENS, mask=Full(), token_types=types).tokens)
    np.testing.assert_allclose(full[0], alone(None)[0], rtol=1e-5, atol=1e-5)
    assert np.abs(full[1] - alone(None)[1]).max() > 1e-3


@pytest.mark.full
def test_noise_depends_on_the_example_only(model):
    module, params = model
    noisy = dataclasses.replace(CONFIG, dropout=0.3).standalone()
    masks = [jnp.asarray(m)[:, None] for m in (CONTENT, QUERY)]

    @jax.jit
    def run(rows):
        content, query = (Given(m[rows]) for m in masks)
        call = {"content": content, "query": query, "method": "streams"}
        noise = Noise(jax.random.key(1), rows)
        tokens, targets = jnp.asarray(TOKENS)[rows], jnp.asarray(TARGETS)[rows]
        variables = {"params": params}
        quiet = module.apply(variables, tokens, targets, **call)
        return noisy.apply(variables, tokens, targets, noise=noise, **call), quiet

    whole, quiet = run(jnp.arange(3))
    for some, all_, still in zip(run(jnp.arange(2, 3))[0], whole, quiet):
        np.testing.assert_allclose(all_[2:], some, rtol=1e-5, atol=1e-5)
        assert np.abs(all_ - still).max() > 1e-2
