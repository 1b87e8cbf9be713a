"""The block against a float64 transcription of its equations; scanned = unrolled = rematerialised, with dropout."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from daily import daily
from scipy.special import erf

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.layers.config import BlockConfig
from ssljax.layers.masks import Causal, Full
from ssljax.layers.noise import Noise
from ssljax.layers.positions import Linear
from ssljax.layers.sequence_conv import ConvolutionConfig
from ssljax.layers.stack import Stack
from ssljax.layers.terms.disentangled import DisentangledConfig, log_buckets

DEPTH, B, T, D = 3, 4, 6, 16
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)
NOISE = Noise(jax.random.key(3), jnp.arange(B))
BASE = BlockConfig(width=D, heads=4)

CONFIGS = {
    "pre": BASE,
    "post": dataclasses.replace(BASE, norm_position="post", norm_eps=1e-12, activation="relu"),
    "llama": dataclasses.replace(
        BASE, norm="rms", activation="swiglu", rope_theta=100.0, bias=False, kv_heads=2, mlp_dim=24
    ),
    "wide_heads": dataclasses.replace(BASE, head_dim=6, activation="geglu", layer_scale=0.3, rope_theta=50.0),
    "gpt2": dataclasses.replace(BASE, activation="gelu_tanh", init="gpt2"),
    "parallel": dataclasses.replace(BASE, norm_position="parallel", rope_theta=100.0, rope_fraction=0.5),
    "parallel_one": dataclasses.replace(BASE, norm_position="parallel_one", bias=False, activation="reglu"),
    "sandwich": dataclasses.replace(
        BASE, norm_position="sandwich", norm="rms_plus_one", bias=False, attention_cap=2.0, attention_scale=0.3
    ),
    "qk_norm": dataclasses.replace(BASE, qk_norm=True, bias=False, bias_except=("q", "v"), activation="geglu_tanh"),
    "after": dataclasses.replace(
        BASE,
        norm_position="after",
        norm="rms",
        bias=False,
        qk_norm=True,
        qk_norm_over="projection",
        kv_heads=2,
        rope_theta=50.0,
    ),
    "gemma3": dataclasses.replace(
        BASE,
        norm="rms_plus_one",
        bias=False,
        qk_norm=True,
        layer_kinds=("local", "global"),
        window=2,
        rope_theta=100.0,
        rope_theta_local=10.0,
        rope_scaling=Linear(3.0),
        rope_scaling_local=False,
    ),
    "without_rotary_in_some_layers": dataclasses.replace(BASE, rope_theta=100.0, rope_layers=(False, True)),
    "windows": dataclasses.replace(BASE, layer_kinds=("local", "global", "local"), window=2, rope_theta=100.0),
    "relative": dataclasses.replace(BASE, position_bias="relative", relative_buckets=(6, 5)),
    "alibi": dataclasses.replace(BASE, position_bias="alibi", activation="quick_gelu"),
    "repeats": dataclasses.replace(BASE, repeats=2, norm_position="post", activation="tanh"),
    "groups": dataclasses.replace(BASE, repeats=2, group=3, rope_theta=100.0),
    "talking_heads": dataclasses.replace(BASE, talking_heads=True, kv_heads=2, attention_cap=3.0),
    "disentangled": dataclasses.replace(
        BASE,
        norm_position="post",
        disentangled=DisentangledConfig(buckets=4, max_distance=6),
        convolution=ConvolutionConfig(activation="tanh"),
    ),
    "disentangled_apart": dataclasses.replace(
        BASE,
        kv_heads=2,
        bias=False,
        disentangled=DisentangledConfig(buckets=None, max_distance=3, shared=False, norm=False),
        convolution=ConvolutionConfig(size=5),
    ),
    "content_to_position": dataclasses.replace(BASE, disentangled=DisentangledConfig(("c2p",), 6, 9, shared=False)),
    "position_to_content": dataclasses.replace(BASE, disentangled=DisentangledConfig(("p2c",), None, 9)),
}


def unstack_layers(tree, depth):
    """One tree per layer."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(depth)]


def make(config, seed=0):
    """A stack and its parameters, all moved away from their (often constant) initial values."""
    stack = Stack(config, DEPTH)
    params = nn.unbox(jax.jit(stack.init)(jax.random.key(seed), X, Full()))["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    leaves = [leaf + jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return stack, jax.tree.unflatten(tree, leaves)


def np_norm(x, p, c, kind=None):
    if (kind or c.norm) != "layer":
        scale = p["scale"] + ((kind or c.norm) == "rms_plus_one")
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * scale
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.norm_eps) * p["scale"]
    return y + p.get("bias", 0)


def np_rotate(x, theta, fraction, factor=1.0):
    """Pairs (i, i + R/2) of the first R elements as complex numbers, turned by position / factor * theta^(-2i/R)."""
    turned = int(x.shape[-1] * fraction)
    half, rest = turned // 2, x[..., turned:]
    z = x[..., :half] + 1j * x[..., half:turned]
    z = z * np.exp(1j * np.arange(x.shape[1])[:, None, None] / factor * theta ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag, rest], -1)


def np_dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def np_bucket(c, distance, causal):
    """Raffel et al. 2020: half of the buckets for each sign; the first half of those exact, the others logarithmic."""
    (buckets, furthest), base = c.relative_buckets, 0
    if not causal:
        buckets //= 2
        base = buckets if distance > 0 else 0
    far = max(-distance, 0) if causal else abs(distance)
    exact = buckets // 2
    if far < exact:
        return base + far
    large = exact + int(np.log(far / exact) / np.log(furthest / exact) * (buckets - exact))
    return base + min(large, buckets - 1)


def np_bias(c, h, t, s, causal, table):
    if c.position_bias == "alibi":
        return -(2.0 ** (-8 * (h + 1) / c.heads)) * abs(t - s)
    return table[np_bucket(c, s - t, causal), h] if c.position_bias == "relative" else 0.0


def np_row(d, distance):
    """Row of the vector for query position - key position: exact up to half of the buckets, then logarithmic."""
    if d.buckets and abs(distance) > d.buckets // 2:
        half = d.buckets // 2
        share = np.log(abs(distance) / half) / np.log((d.max_distance - 1) / half)
        distance = np.sign(distance) * (np.ceil(share * (half - 1)) + half)
    span = d.buckets or d.max_distance
    return int(min(max(distance + span, 0), 2 * span - 1))


def np_positions(q, k, p, c, stack):
    """He et al. 2021, equation 4: the query with the key of the distance, and the key with the query of the distance.

    k has a head for each of q. Both terms take the distance of the query from the key, as the published models do.
    """
    d, table, out = c.disentangled, stack["distances"], np.zeros((len(q), c.heads, q.shape[1], k.shape[1]))
    if d.norm:
        table = np_norm(table, stack["distances_norm"], c)
    for t in range(q.shape[1]):
        for s in range(k.shape[1]):
            r = table[np_row(d, t - s)]
            if "c2p" in d.terms:
                key = np_dense(r, p["k" if d.shared else "distance_k"]).reshape(-1, c.head_width)
                out[:, :, t, s] += (q[:, t] * np.repeat(key, c.heads // c.groups, 0)).sum(-1)
            if "p2c" in d.terms:
                query = np_dense(r, p["q" if d.shared else "distance_q"]).reshape(-1, c.head_width)
                out[:, :, t, s] += (k[:, s] * query).sum(-1)
    return out


def np_qk_norm(x, p, c):
    """RMSNorm of queries or keys [B, T, H, K]."""
    flat = x if c.qk_norm_over == "head" else x.reshape(*x.shape[:2], -1)
    return np_norm(flat, p, c, "rms" if c.norm == "layer" else c.norm).reshape(x.shape)


def np_attention(x, p, c, causal, kind="global", stack=None, rotates=True):
    q, k, v = (np_dense(x, p[n]).reshape(*x.shape[:2], -1, c.head_width) for n in "qkv")
    if c.qk_norm:
        q, k = np_qk_norm(q, p["q_norm"], c), np_qk_norm(k, p["k_norm"], c)
    if c.rope_theta and rotates:
        theta = c.rope_theta if kind == "global" else c.rope_theta_local or c.rope_theta
        scaled = c.rope_scaling and (kind == "global" or c.rope_scaling_local)
        q, k = (np_rotate(a, theta, c.rope_fraction, c.rope_scaling.factor if scaled else 1.0) for a in (q, k))
    k, v = (np.repeat(a, c.heads // c.groups, 2) for a in (k, v))
    terms = len(c.disentangled.terms) if c.disentangled else 0
    scale = c.attention_scale or (c.head_width * (1 + terms)) ** -0.5
    logits = np.einsum("bthk,bshk->bhts", q, k) * scale
    if c.talking_heads:  # Shazeer et al. 2020
        logits = np.einsum("bhts,hn->bnts", logits, p["mix_logits"])
    if c.attention_cap:
        logits = c.attention_cap * np.tanh(logits / c.attention_cap)
    if terms:
        logits = logits + scale * np_positions(q, k, p, c, stack)
    every = range(x.shape[1])
    table = stack.get("relative_bias")
    logits = logits + [[[np_bias(c, h, t, s, causal, table) for s in every] for t in every] for h in range(c.heads)]
    seen = [[(s <= t or not causal) and (kind == "global" or abs(t - s) < c.window) for s in every] for t in every]
    w = np.exp(logits) * np.array(seen)
    w = w / w.sum(-1, keepdims=True)
    if c.talking_heads:
        w = np.einsum("bhts,hn->bnts", w, p["mix_weights"])
    return np_dense(np.einsum("bhts,bshk->bthk", w, v).reshape(*x.shape[:2], -1), p["out"])


PHI = {
    "gelu": lambda a: a * (1 + erf(a / np.sqrt(2))) / 2,
    "gelu_tanh": lambda a: a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))) / 2,
    "relu": lambda a: np.maximum(a, 0),
    "silu": lambda a: a / (1 + np.exp(-a)),
    "quick_gelu": lambda a: a / (1 + np.exp(-1.702 * a)),
    "tanh": np.tanh,
}


def np_mlp(x, p, c):
    gates = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu"}
    h = np_dense(x, p["in"])
    if c.activation in gates:
        h = PHI[gates[c.activation]](np_dense(x, p["gate"])) * h
    else:
        h = PHI[c.activation](h)
    return np_dense(h, p["out"])


def np_convolution(x, p, c, causal):
    """Each token: the matrix of an offset times the token at that offset, summed; none comes later if causal."""
    size, y = c.convolution.size, np.zeros_like(x) + p["conv"]["bias"]
    matrices = p["conv"]["kernel"].reshape(size, x.shape[-1], -1)
    for t in range(x.shape[1]):
        for i in range(size):
            s = t + i - size // 2
            if 0 <= s < (t + 1 if causal else x.shape[1]):
                y[:, t] += x[:, s] @ matrices[i]
    return PHI[c.convolution.activation](y)


def applied(layers, c):
    """Yields the parameters of each block in the order of application."""
    for unit in unstack_layers(layers, DEPTH // c.group):
        for _ in range(c.repeats):
            block = unit.get("block", unit)
            yield from [block[f"block_{i}"] for i in range(c.group)] if c.group > 1 else [block]


def np_stack(params, x, c, causal):
    first = x
    for i, p in enumerate(applied(params["layers"], c)):
        entry, kind = x, c.layer_kinds[i % len(c.layer_kinds)]
        rotates = c.rope_layers[i % len(c.rope_layers)]
        attention = functools.partial(np_attention, causal=causal, kind=kind, stack=params, rotates=rotates)
        for name, part in (("attention", attention), ("mlp", np_mlp)):
            h = x
            if c.norm_position.startswith("parallel"):
                h = np_norm(entry, p[f"{name if c.norm_position == 'parallel' else 'attention'}_norm"], c)
            elif c.norm_position not in ("post", "after"):
                h = np_norm(x, p[f"{name}_norm"], c)
            y = part(h, p[name], c) * p.get(f"{name}_scale", 1)
            x = x + (np_norm(y, p[f"{name}_norm_after"], c) if c.norm_position in ("sandwich", "after") else y)
            if c.norm_position == "post":
                x = np_norm(x, p[f"{name}_norm"], c)
        if i == 0 and c.convolution:
            x = np_norm(x + np_convolution(first, params["convolution"], c, causal), params["convolution"], c)
    return np_norm(x, params["norm"], c) if c.norm_position != "post" else x


@pytest.mark.parametrize("name", daily(CONFIGS, 6))
@pytest.mark.parametrize("causal", [False, True])
def test_values_and_gradients(name, causal):
    stack, params = make(CONFIGS[name])
    c, mask = CONFIGS[name], Causal() if causal else Full()
    exact, x = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, X))
    want = np_stack(exact, x, c, causal)
    probe = RNG.normal(size=want.shape)

    @jax.jit
    def run(params, x):
        out, _ = stack.apply({"params": params}, x, mask)
        return jnp.vdot(out, probe.astype(np.float32)), out

    (_, out), grads = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(params, X)
    np.testing.assert_allclose(out, want, rtol=2e-4, atol=2e-4)
    # The gradient along random directions against central differences of the float64 transcription.
    for _ in range(3):
        way = jax.tree.map(lambda a: RNG.normal(size=a.shape), (exact, x))
        ends = []
        for step in (1e-5, -1e-5):
            moved = jax.tree.map(lambda a, d, s=step: a + s * d, (exact, x), way)
            ends.append(np.vdot(np_stack(*moved, c, causal), probe))
        slope = (ends[0] - ends[1]) / 2e-5
        got = sum(np.vdot(np.asarray(g, np.float64), d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(way)))
        np.testing.assert_allclose(got, slope, rtol=1e-3, atol=1e-3 * np.abs(slope) + 1e-2)


def test_buckets_of_distances():
    """Buckets are exact for small distances, and odd and growing up to the last, as in the definition."""
    distance = np.arange(-511, 512)
    got = log_buckets(distance, 256, 512)
    np.testing.assert_array_equal(got[383:640], distance[383:640])
    np.testing.assert_array_equal(got, -got[::-1])
    assert (np.diff(got) >= 0).all() and got[-1] == 255
    share = np.log(distance[640:] / 128) / np.log(511 / 128) * 127
    clear = np.abs(share - np.round(share)) > 1e-3  # where rounding to float32 cannot decide
    np.testing.assert_array_equal(got[640:][clear], (np.ceil(share) + 128)[clear])
    config = DisentangledConfig(buckets=None, max_distance=4)
    np.testing.assert_array_equal(config.rows(np.arange(-6, 7)), [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7])


NOISY = dataclasses.replace(BASE, dropout=0.2, drop_path=0.5)


@functools.cache
def noisy_result(scan: bool, remat: str):
    config = dataclasses.replace(NOISY, scan=scan, remat=remat)
    _, params = make(NOISY)

    @jax.jit
    def run(params, x):
        out, _ = Stack(config, DEPTH).apply({"params": params}, x, Causal(), None, NOISE)
        return jnp.sum(jnp.sin(out)), out

    (_, out), grads = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(params, X)
    return out, grads


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), (True, "full"), (True, "dots"), (False, "full")])
def test_scanned_unrolled_and_rematerialised_are_the_same_function(scan, remat):
    plain, other = noisy_result(True, "none"), noisy_result(scan, remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), plain, other)
    _, params = make(NOISY)
    silent, _ = Stack(NOISY, DEPTH).apply({"params": params}, X, Causal())
    assert np.abs(plain[0] - silent).max() > 0.1, "the noise did nothing"


def test_slices_of_a_batch_equal_the_batch():
    _, params = make(NOISY)
    variables, stack = {"params": params}, Stack(NOISY, DEPTH)
    run = jax.jit(lambda x, row: stack.apply(variables, x, Full(), None, NOISE._replace(row=row))[0])
    halves = [run(X[i : i + 2], NOISE.row[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(run(X, NOISE.row), jnp.concatenate(halves), rtol=1e-5, atol=1e-5)


def transparent(rows, **rates):
    """A post-norm stack in which one feed-forward layer outputs ones and all other branches output zeros."""
    depth = 5
    stack = Stack(dataclasses.replace(BASE, norm_position="post", **rates), depth)
    zeros = jnp.zeros((rows, 1, D))
    params = nn.unbox(jax.jit(stack.init)(jax.random.key(0), zeros[:1], Full()))["params"]
    params = jax.tree.map(jnp.zeros_like, params)
    layers = params["layers"]
    for norm in ("attention_norm", "mlp_norm"):
        layers[norm]["scale"] = jnp.ones((depth, D))
    noise = Noise(jax.random.key(0), jnp.arange(rows))

    @jax.jit
    def run(bias):
        layers["mlp"]["out"]["bias"] = bias
        return stack.apply({"params": params}, zeros, Full(), None, noise)[0][:, 0]

    return lambda layer, ones: np.asarray(run(jnp.zeros((depth, D)).at[layer].set(ones)))


def test_layers_have_independent_dropout():
    run = transparent(8, dropout=0.5)
    drawn = [run(layer, jnp.ones(D)) > 0 for layer in range(5)]
    assert all(0.2 < (a != b).mean() < 0.8 for i, a in enumerate(drawn) for b in drawn[:i])


def test_drop_path_grows_linearly_from_zero():
    run = transparent(2000, drop_path=0.8)
    for layer in (0, 2, 4):
        kept = np.mean(run(layer, jnp.zeros(D).at[0].set(1.0))[:, 0] > 0.5)
        assert abs(kept - (1 - 0.8 * layer / 4)) < 0.05, layer


def test_bfloat16_activations_are_near_float32():
    stack, params = make(BASE)
    out, _ = Stack(dataclasses.replace(BASE, dtype="bfloat16"), DEPTH).apply({"params": params}, X, Full())
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype("float32"), stack.apply({"params": params}, X, Full())[0], atol=0.1)
    boxed = jax.eval_shape(Stack(dataclasses.replace(BASE, dtype="bfloat16"), DEPTH).init, jax.random.key(0), X, Full())
    assert {leaf.dtype for leaf in jax.tree.leaves(boxed)} == {jnp.dtype("float32")}


def test_logical_axes_of_every_parameter():
    boxed = jax.eval_shape(Stack(CONFIGS["wide_heads"], DEPTH).init, jax.random.key(0), X, Full())["params"]
    specs = nn.get_partition_spec(boxed)
    layers = specs["layers"]
    assert tuple(layers["attention"]["q"]["kernel"]) == ("layers", "embed", "heads")
    assert tuple(layers["attention"]["k"]["kernel"]) == ("layers", "embed", "kv")
    assert tuple(layers["attention"]["out"]["kernel"]) == ("layers", "heads", "embed")
    assert tuple(layers["mlp"]["gate"]["kernel"]) == ("layers", "embed", "mlp")
    assert tuple(layers["mlp"]["out"]["bias"]) == ("layers", "embed")
    assert tuple(layers["mlp_scale"]) == ("layers", "embed")
    for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        assert len(leaf.names) == leaf.value.ndim <= 3, path


def test_residual_initialisation_shrinks_with_depth():
    params = nn.unbox(Stack(CONFIGS["gpt2"], DEPTH).init(jax.random.key(0), X, Full()))["params"]["layers"]
    assert abs(params["mlp"]["in"]["kernel"].std() - 0.02) < 0.002
    assert abs(params["mlp"]["out"]["kernel"].std() - 0.02 / np.sqrt(2 * DEPTH)) < 0.001


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 16, "heads": 3}, "block.heads: 3 does not divide the width 16"),
        ({"width": 16, "heads": 4, "kv_heads": 3}, "block.kv_heads: 3 does not divide the 4 heads"),
        ({"width": 12, "heads": 4, "rope_theta": 10.0}, "block.rope_theta: rotary positions need an even head width"),
        ({"width": 16}, "block.heads: missing"),
        ({"width": 16, "heads": 4, "dropout": 1.0}, "block.dropout: got 1.0, must be < 1"),
        ({"width": 16, "heads": 4, "activation": "gleu"}, "did you mean 'gelu'"),
        (
            {"width": 16, "heads": 4, "rope_theta": 10.0, "disentangled": {}},
            "block.rope_theta: got 10.0, which disentangled attention excludes",
        ),
        ({"width": 16, "heads": 4, "convolution": {"size": 4}}, "block.convolution.size: got 4, must be odd"),
    ],
)
def test_impossible_values_are_named(values, message):
    with pytest.raises(UserError, match=message):
        schema.build(BlockConfig, values, "block")
    schema.build(BlockConfig, {"width": 16, "heads": 3, "head_dim": 8}, "block")
