"""Analytic FLOPs against the compiler's count, and parameter counts against the published ones."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import models
from ssljax.layers.masks import Causal, Full, Sliding, Span
from ssljax.models.mae import MAEDecoder
from ssljax.models.seq2seq import Seq2SeqConfig
from ssljax.models.tokens import TokenConfig


@dataclasses.dataclass
class Spec:
    elements: dict
    vocab_size: int


def spec(side=32, length=64, vocab=1000):
    return Spec({"image": {"shape": [side, side, 3]}, "tokens": {"shape": [length]}}, vocab)


UNROLLED = {"scan": False, "width": 256, "depth": 2, "heads": 4, "activation": "relu"}
TOKENS = jnp.zeros((1, 64), jnp.int32)


def counted(module, *inputs, method=None, **more):
    """FLOPs that the compiler counts in the forward pass (it counts cheap elementwise work too)."""
    init = {"mask": Full(), "method": "init_all"} if method == "init_all" else more
    params = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **init)))
    run = jax.jit(lambda params, *inputs: module.apply(params, *inputs, method=method, **more))
    return run.lower(params, *inputs).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    "keys", [{}, {"activation": "swiglu", "kv_heads": 2}, {"head_dim": 32, "mlp_dim": 300, "registers": 4}]
)
def test_vit(keys):
    module = models.create({"name": "vit", "patch_size": 4, **UNROLLED, **keys}, spec())
    assert counted(module, jnp.zeros((1, 32, 32, 3))) == pytest.approx(module.flops(), rel=0.03)
    keep = jnp.arange(16)[None]
    got = counted(module, jnp.zeros((1, 32, 32, 3)), keep=keep)
    assert got == pytest.approx(module.flops(tokens=16), rel=0.03)


def of_tokens(name):
    return issubclass(models.REGISTRY.get(name), TokenConfig) and not issubclass(
        models.REGISTRY.get(name), Seq2SeqConfig
    )


@pytest.mark.parametrize("name", [name for name in models.REGISTRY if of_tokens(name)])
def test_token_families(name):
    # The compiler counts all pairs of local layers, and every expert for every token.
    module = models.create({"name": name, **UNROLLED, "layer_kinds": ["global"], "experts": None}, spec())
    batch = jnp.zeros((64, 64), jnp.int32)  # distances are projected once for all
    got = counted(module, batch, method="init_all", mask=Full()) / 64
    assert got == pytest.approx(module.flops(64, predicted=64), rel=0.04)


def test_causal_attention_counts_half_of_the_pairs():
    module = models.create({"name": "gpt", **UNROLLED}, spec())
    # Causal attention counts T (T + 1) / 2 of the T^2 pairs, two products a pair and head width.
    pairs = 64 * 64 - 64 * 65 / 2
    assert module.flops(64) - module.flops(64, causal=True) == 2 * 2 * pairs * 256 * 2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 5, 64, 100])
def test_local_layers_count_the_pairs_of_their_window(window, causal):
    module = models.create({"name": "gpt", **UNROLLED, "layer_kinds": ["global", "local"], "window": window}, spec())
    everywhere = models.create({"name": "gpt", **UNROLLED}, spec()).flops(64, causal=causal)
    allowed = Causal() if causal else Full()
    numbers = Span(0, 64)
    pairs = [
        np.broadcast_to(True if block is None else block, (64, 64)).sum()
        for block in (mask.block(numbers, numbers) for mask in (allowed, allowed & Sliding(window, causal)))
    ]
    assert everywhere - module.flops(64, causal=causal) == 2 * 2 * (pairs[0] - pairs[1]) * 256


def test_repeated_blocks_count_each_time():
    albert = {"name": "albert", **UNROLLED, "depth": 2, "embedding_dim": 32}
    for keys in ({"repeats": 3}, {"repeats": 2, "group": 2}):
        module = models.create({**albert, **keys}, spec())
        got = counted(module, TOKENS, method="init_all", mask=Full())
        assert got == pytest.approx(module.flops(64, predicted=64), rel=0.03)


@pytest.mark.parametrize(
    "keys", [{"talking_heads": True, "kv_heads": 2}, {"disentangled": {"buckets": 32}, "convolution": {"size": 5}}]
)
def test_what_attention_may_do_besides(keys):
    module = models.create({"name": "bert", **UNROLLED, "positions": "none", **keys}, spec())
    batch = jnp.zeros((16, 64), jnp.int32)  # distances are projected once for all
    got = counted(module, batch, method="init_all", mask=Full()) / 16
    assert got == pytest.approx(module.flops(64, predicted=64), rel=0.04)


def test_clip_and_mae_decoder():
    config = {"name": "clip", "image": {**UNROLLED, "patch_size": 4}, "text": {**UNROLLED, "attention": "full"}}
    module = models.create(config, spec())
    assert counted(module, jnp.zeros((1, 32, 32, 3)), TOKENS) == pytest.approx(module.flops(), rel=0.03)
    decoder = MAEDecoder(**UNROLLED).module((8, 8), 48)
    got = counted(decoder, jnp.zeros((1, 16, 128)), jnp.arange(16)[None])
    assert got == pytest.approx(decoder.flops(16, 128), rel=0.03)


def parameters(config, data, method=None):
    module = models.create(config, data)
    inputs = jnp.zeros((1, *data.elements["image"]["shape"])) if config["name"] == "vit" else TOKENS[:, :8]
    more = {} if config["name"] == "vit" else {"mask": Full(), "method": method}
    tree = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs, **more))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_published_sizes():
    """ViT-B/16 at 224 without a classifier; GPT-2; BERT-base uncased with its language-modelling head.

    The often quoted 109,482,240 of BERT-base is the encoder with the tanh pooler (768 * 768 + 768) and without that
    head; the pooler belongs to an objective here, so it is added by hand.
    """
    assert parameters({"name": "vit", "preset": "base"}, spec(224)) == 85_798_656
    gpt2 = {"name": "gpt", "preset": "gpt2"}
    assert parameters(gpt2, spec(length=1024, vocab=50_257), "init_all") == 124_439_808
    bert = {"name": "bert", "preset": "base", "token_types": 2}
    with_head = parameters(bert, spec(length=512, vocab=30_522), "init_all")
    head = (768 * 768 + 768) + 2 * 768 + 30_522  # dense, norm, bias of the vocabulary
    assert with_head == 109_514_298
    assert with_head - head + (768 * 768 + 768) == 109_482_240


@pytest.mark.parametrize(
    ("size", "width", "published"), [("v3-base", 768, 183_831_552), ("v3-large", 1024, 434_012_160)]
)
def test_published_sizes_of_deberta(size, width, published):
    """Without the head of language modelling."""
    head = (width * width + width) + 2 * width + 128_100
    config = {"name": "deberta", "preset": size}
    assert parameters(config, spec(length=512, vocab=128_100), "init_all") == published + head


def test_experts_count_what_a_token_uses():
    """Two of four feed-forward parts and the router, in every second block."""
    sizes = {"name": "gpt", **UNROLLED}
    dense = models.create(sizes, spec()).flops(64)
    sparse = models.create({**sizes, "experts": {"count": 4, "top_k": 2, "every": 2}}, spec()).flops(64)
    assert sparse - dense == 2 * 64 * (2 * 256 * 1024 + 256 * 4)
    narrow = models.create({**sizes, "experts": {"count": 4, "top_k": 2, "every": 2, "mlp_dim": 100}}, spec()).flops(64)
    assert sparse - narrow == 2 * 64 * 2 * 2 * 256 * (1024 - 100)
