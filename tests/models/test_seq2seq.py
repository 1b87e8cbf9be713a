"""Encoder-decoders whose encoder and decoder are one stack: parameters, gradients, generation and errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ssljax import models
from ssljax.base.errors import UserError
from ssljax.evals.generation import Sampling, generate
from ssljax.interop.export import of_module
from ssljax.layers.masks import Full
from ssljax.layers.noise import Noise

KEY = jax.random.key(0, impl="threefry2x32")
SIZES = {"preset": None, "width": 16, "depth": 3, "heads": 2, "vocab_size": 50, "max_len": 12, "dropout": 0.1}
T5 = {"head_dim": 8, "readout_scale": 0.25}
NAMES = ("t5", "bart")
RNG = np.random.default_rng(0)
READ, WRITTEN = (jnp.asarray(RNG.integers(1, 50, (4, n)), jnp.int32) for n in (9, 7))


@functools.cache
def pair(name):
    """(shared model, its parameters, model of two stacks, parameters of the same values as flat dictionaries)."""
    own = T5 if name == "t5" else {}
    make = lambda shared: models.REGISTRY.get(name)(**SIZES, **own, shared=shared).standalone()  # noqa: E731
    one, two = make(True), make(False)
    values = flatten_dict(nn.unbox(jax.jit(one.initial)(KEY))["params"], sep="/")
    # Norms and biases with values of their own, so that mistaken ones would be seen.
    noise = np.random.default_rng(1)
    values = {key: x + jnp.asarray(noise.normal(0, 0.1, x.shape), x.dtype) for key, x in values.items()}
    names = flatten_dict(jax.eval_shape(two.initial, KEY)["params"], sep="/")
    copies = {key: values[key.replace("encoder/", "decoder/", 1)] for key in names}
    return one, values, two, copies


def weighted(module, values, noise):
    """A number that depends on all logits."""
    weights = jnp.sin(jnp.arange(4 * 7 * 50.0)).reshape(4, 7, 50)
    logits = module.apply({"params": unflatten_dict(values, sep="/")}, READ, WRITTEN, noise)
    return jnp.mean(weights * jax.nn.log_softmax(logits))


@pytest.mark.parametrize("name", NAMES)
def test_only_cross_attention_and_the_readout_are_not_shared(name):
    one, values, two, copies = pair(name)
    sizes = lambda flat: {key: x.size for key, x in flat.items()}  # noqa: E731
    own = {key: n for key, n in sizes(copies).items() if not key.startswith("encoder/")}
    assert sizes(values) == own and all(key.startswith(("decoder/", "embed/")) for key in values)
    encoder = {key.removeprefix("encoder/") for key in copies if key.startswith("encoder/")}
    rest = {key.removeprefix("decoder/") for key in values if key.startswith("decoder/")} - encoder
    assert rest and all("/cross" in key or key == "head_bias" for key in rest)
    # A block of width D has 12 D^2 in its kernels, and 4 D^2 more with cross-attention.
    kernels = sum(x.size for key, x in values.items() if key.endswith("kernel"))
    assert kernels == 3 * 16 * 16**2
    assert sum(x.size for key, x in copies.items() if key.endswith("kernel")) == 3 * 28 * 16**2
    named = lambda module: {  # noqa: E731
        key: leaf.names for key, leaf in flatten_dict(jax.eval_shape(module.initial, KEY)["params"], sep="/").items()
    }
    axes = named(two)
    assert named(one) == {key: axes[key] for key in own}
    layers = next(x for key, x in values.items() if key.endswith("layers/attention/q/kernel"))
    assert all(np.abs(layers[i] - layers[j]).max() > 0.1 for i, j in ((0, 1), (1, 2)))
    assert one.flops(9, 7) == two.flops(9, 7)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_sum_over_both_stacks(name):
    one, values, two, copies = pair(name)
    noise = Noise(KEY, jnp.arange(4))
    (a, shared), (b, apart) = (
        jax.jit(jax.value_and_grad(functools.partial(weighted, module)))(flat, noise)
        for module, flat in ((one, values), (two, copies))
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)
    largest = max(float(np.abs(x).max()) for x in shared.values())
    for key, found in shared.items():
        encoder = key.replace("decoder/", "encoder/", 1)
        both = apart[key] + (apart[encoder] if encoder != key and encoder in apart else 0.0)
        np.testing.assert_allclose(found, both, rtol=1e-4, atol=1e-6 * largest, err_msg=key)
    moved = [key for key in shared if "encoder/" + key.removeprefix("decoder/") in apart]
    assert all(
        np.abs(apart["encoder/" + key.removeprefix("decoder/")]).max() > 0 for key in moved if "k/bias" not in key
    )


@pytest.mark.parametrize("name", NAMES)
def test_encoding_and_generation_are_those_of_two_equal_stacks(name):
    one, values, two, copies = pair(name)
    given = [(module, unflatten_dict(flat, sep="/")) for module, flat in ((one, values), (two, copies))]
    states = [module.apply({"params": p}, READ, mask=Full(), method="encode").tokens for module, p in given]
    np.testing.assert_allclose(*states, rtol=1e-5, atol=1e-6)
    start = (one.config.decoder_start,)
    made = [generate(module, p, list(np.asarray(READ)), Sampling(6), start=start) for module, p in given]
    assert all((x == y).all() for x, y in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_depth": 2}, "the decoder has another size"),
        ({"decoder_mlp_dim": 8}, "the decoder has another size"),
        ({"experts": {"count": 2}}, "must be False for a model with experts"),
    ],
)
def test_what_cannot_be_shared(settings, message):
    spec = type("Spec", (), {"elements": {"tokens": {"shape": [12]}}, "vocab_size": 50})()
    with pytest.raises(UserError, match=message) as found:
        models.create({"name": "t5", **SIZES, "shared": True, **settings}, spec)
    assert "\n" not in str(found.value) and "shared: got True" in str(found.value)
    models.create({"name": "t5", **SIZES, "shared": True, "decoder_depth": 3}, spec)


def test_export_names_the_key():
    """`transformers` has no encoder-decoder of one stack."""
    module, values, *_ = pair("t5")
    with pytest.raises(UserError, match=r"^model\.shared: True: without counterpart in 't5'"):
        of_module(module, unflatten_dict(values, sep="/"), False)
