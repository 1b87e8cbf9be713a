"""Reach of tokens: the Jacobian of a model has the pattern of the mask that its objective asks for, nowhere more and
nowhere less."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import daily

from ssljax import models
from ssljax.data import DataSpec
from ssljax.layers.masks import Blocks, Causal, Full, Keys, Prefix, Segments, Sliding, materialize

T = 12
SPEC = DataSpec(elements={"tokens": {"shape": [T], "dtype": "int32"}}, size=100, vocab_size=50, max_len=T)
SIZES = {"preset": None, "width": 16, "heads": 2}
SEGMENTS = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
MASKS = {
    "full": Full(),
    "causal": Causal(),
    "prefix": Prefix(4),
    "local": Sliding(3),
    "local, both sides": Sliding(3, causal=False),
    "blocks": Blocks(4, jnp.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)),
    "packed": Segments(SEGMENTS),
    "packed and causal": Causal() & Segments(SEGMENTS),
    "padded": Keys(jnp.arange(T)[None] < 8),
}
# Masks are a matter of the block, which these use in each of its ways: plain, rotary and grouped, with biases of
# distances, disentangled, parallel. (A convolution of DeBERTa reaches its neighbours besides.)
FAMILIES = {
    "gpt": {},
    "llama": {"kv_heads": 1, "vocab_size": 50},
    "neox": {},
    "bert": {},
    "deberta": {"disentangled": {"buckets": 4, "max_distance": T}},
    "xlnet": {},
    "palm": {},
    "gpt with biases": {"position_bias": "relative"},
    "gpt with talking heads": {"talking_heads": True},
}


def jacobian(module, params, mask, **inputs):
    """bool [T, T]: does the input at s change the output at t?"""
    vectors = jax.random.normal(jax.random.key(1), (1, T, module.width))
    tokens = jnp.zeros((1, T), jnp.int32)

    @jax.jit
    def derivative(vectors):
        run = lambda v: module.apply(params, tokens, mask=mask, vectors=v, **inputs).tokens[0]  # noqa: E731
        # Three random read-outs: the sum of what a norm makes is constant.
        ways = jax.random.normal(jax.random.key(2), (module.width, 3))
        return jnp.abs(jax.jacrev(lambda v: run(v) @ ways)(vectors)).sum((1, 2, 4))

    return np.asarray(derivative(vectors)) != 0


def reachable(mask, depth):
    """Pairs of tokens that attention under a mask can connect within a number of layers; each token sees itself."""
    step = np.asarray(materialize(mask, T, T)[0, 0], int) | np.eye(T, dtype=int)
    return np.linalg.matrix_power(step, depth) > 0


@functools.cache
def model(family, depth):
    keys = {"name": family.split(" ")[0], **SIZES, "depth": depth, **FAMILIES[family]}
    module = models.create(keys, SPEC)
    tokens = jnp.zeros((1, T), jnp.int32)
    return module, nn.unbox(
        jax.jit(lambda key: module.init(key, tokens, mask=Full(), method="init_all"))(jax.random.key(0))
    )


# The other pairs follow under `-m full`.
PAIRS = [
    pytest.param(family, name, marks=() if family == "gpt" else pytest.mark.full)
    for family in FAMILIES
    for name in MASKS
    if name != "packed and causal"
]
PAIRS += daily([(family, "packed and causal") for family in FAMILIES], 4)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_the_jacobian_is_the_mask(family, name):
    np.testing.assert_array_equal(jacobian(*model(family, 1), MASKS[name]), reachable(MASKS[name], 1))


@pytest.mark.parametrize("name", ["prefix", "local", "blocks", "packed and causal"])
def test_layers_reach_further(name):
    np.testing.assert_array_equal(jacobian(*model("gpt", 2), MASKS[name]), reachable(MASKS[name], 2))


def test_local_layers_reach_their_window():
    for kinds, reach in ((["local"], Sliding(3)), (["local", "global"], Causal())):
        module = models.create({"name": "gpt", **SIZES, "depth": 2, "layer_kinds": kinds, "window": 3}, SPEC)
        params = nn.unbox(module.init(jax.random.key(0), jnp.zeros((1, T), jnp.int32), mask=Full(), method="init_all"))
        want = reachable(reach, 2 if kinds == ["local"] else 1)
        np.testing.assert_array_equal(jacobian(module, params, Causal()), want)


@pytest.mark.parametrize(("objective", "mask"), [("causal_lm", Causal()), ("mlm", Full())])
def test_objectives_ask_for_their_mask(objective, mask):
    asked = tiny.make(objective).attention
    np.testing.assert_array_equal(jacobian(*model("gpt", 1), asked), reachable(mask, 1))


def test_a_wrong_mask_is_seen():
    assert (jacobian(*model("gpt", 1), Sliding(11)) != reachable(Causal(), 1)).any()
    assert (jacobian(*model("gpt", 1), Prefix(2)) != reachable(Causal(), 1)).any()


def test_an_encoder_decoder_sees_the_memory_and_what_it_wrote():
    """Encoder: all of it. Decoder: causal over its own tokens, all of the memory that is not padding."""
    module = models.create({"name": "t5", **SIZES, "depth": 1, "vocab_size": 50}, SPEC)
    tokens = jax.random.randint(jax.random.key(3), (1, T), 1, 50)
    params = nn.unbox(jax.jit(module.initial)(jax.random.key(0)))
    memory = jax.random.normal(jax.random.key(1), (1, T, module.width))
    valid = jnp.arange(T)[None] < 9

    @jax.jit
    def derivative(memory):
        masks = {"mask": Causal(), "memory_mask": Keys(valid)}
        run = lambda m: module.apply(params, tokens, m, **masks, method="decode").tokens[0]  # noqa: E731
        ways = jax.random.normal(jax.random.key(2), (module.width, 3))
        return jnp.abs(jax.jacrev(lambda m: run(m) @ ways)(memory)).sum((1, 2, 4))

    np.testing.assert_array_equal(derivative(memory) != 0, np.broadcast_to(np.asarray(valid), (T, T)))


@pytest.mark.parametrize("family", daily(["gpt", "llama", "bert", "deberta", "xlnet"], 2))
def test_hidden_tokens_are_as_if_dropped(family):
    """A model under a mask of keys = the same model on the gathered tokens at their positions."""
    module, params = model(family, 2)
    tokens = jax.random.randint(jax.random.key(4), (1, T), 1, 50)
    kept = np.array([0, 1, 4, 5, 9])
    valid = jnp.zeros((1, T), bool).at[0, kept].set(True)
    whole = module.apply(params, tokens, mask=Keys(valid)).tokens[:, kept]
    if family in ("deberta", "xlnet"):  # distances are those of a row without gaps: what is dropped is its end
        kept = np.arange(5)
        valid = jnp.arange(T)[None] < 5
        whole = module.apply(params, tokens, mask=Keys(valid)).tokens[:, kept]
    few = module.apply(params, tokens[:, kept], mask=Full(), positions=jnp.asarray(kept)[None]).tokens
    np.testing.assert_allclose(whole, few, atol=2e-5, rtol=2e-5)
