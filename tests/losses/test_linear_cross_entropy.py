"""The fused projection and cross-entropy equals the plain form with less memory, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from programs import largest_array

from ssljax import parallel
from ssljax.losses import cross_entropy, linear_cross_entropy, linear_nll
from ssljax.models.tokens import Readout
from ssljax.objectives.tokens import token_scores
from ssljax.parallel import hlo

N, D, V = 48, 8, 64


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    hidden, kernel, bias = rng.normal(size=(N, D)), rng.normal(size=(D, V)), rng.normal(size=V)
    labels, weights = rng.integers(0, V, N), rng.integers(0, 3, N)
    return *(jnp.asarray(x, jnp.float32) for x in (hidden, kernel, bias)), jnp.asarray(labels), jnp.asarray(weights)


@pytest.mark.parametrize("chunk", [1, 7, 16, 48, 1000])
def test_every_chunk_size_gives_the_plain_loss(problem, chunk):
    hidden, kernel, bias, labels, weights = problem

    def plain(h, k, b):
        return cross_entropy(h @ k + b, labels, weights=weights)

    def fused(h, k, b):
        return linear_cross_entropy(h, k, labels, chunk, weights=weights, bias=b)

    expected = jax.value_and_grad(plain, (0, 1, 2))(hidden, kernel, bias)
    actual = jax.jit(jax.value_and_grad(fused, (0, 1, 2)))(hidden, kernel, bias)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected)


def test_capped_products(problem):
    hidden, kernel, bias, labels, weights = problem

    def plain(h, k, b):
        return cross_entropy(1.5 * jnp.tanh(h @ k / 1.5) + b, labels, weights=weights)

    def fused(h, k, b):
        nll = linear_nll(h, k, b, labels, cap=1.5, chunk=7).nll
        return jnp.sum(nll * weights) / jnp.sum(weights)

    expected = jax.value_and_grad(plain, (0, 1, 2))(hidden, kernel, bias)
    actual = jax.jit(jax.value_and_grad(fused, (0, 1, 2)))(hidden, kernel, bias)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected)


def test_scores_without_a_bias(problem):
    hidden, kernel, _, labels, _ = problem
    logits = hidden @ kernel
    labels = labels.at[:10].set(logits[:10].argmax(-1))
    nll, correct = linear_nll(hidden, kernel, None, labels, chunk=10)
    np.testing.assert_allclose(nll, cross_entropy(logits, labels, reduce=False)[0], rtol=1e-5)
    np.testing.assert_array_equal(correct, logits.argmax(-1) == labels)


def test_no_array_has_the_size_of_all_logits(problem):
    hidden, kernel, bias, labels, _ = problem

    def size(chunk):
        loss = lambda h, k, b: linear_cross_entropy(h, k, labels, chunk, bias=b)  # noqa: E731
        return largest_array(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(hidden, kernel, bias).jaxpr)

    assert size(48) == N * V  # with one chunk the check finds the logits
    assert size(6) == D * V


def test_bfloat16_inputs_are_summed_in_float32(problem):
    hidden, kernel, bias, labels, _ = problem
    h16, k16 = hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)

    def exact(h, k):
        return cross_entropy(h @ k + bias, labels)

    def fused(h, k):
        return linear_cross_entropy(h, k, labels, 7, bias=bias)

    expected, (dh, dk) = jax.value_and_grad(exact, (0, 1))(h16.astype(jnp.float32), k16.astype(jnp.float32))
    value, (dh16, dk16) = jax.value_and_grad(fused, (0, 1))(h16, k16.astype(jnp.float32))
    assert dh16.dtype == jnp.bfloat16 and dk16.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(dh16.astype(jnp.float32), dh, atol=0.02 * float(jnp.abs(dh).max()))
    np.testing.assert_allclose(dk16, dk, atol=0.02 * float(jnp.abs(dk).max()))


def test_every_slab_is_shared_by_all_devices(problem):
    hidden, kernel, bias, labels, _ = problem
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    loss = jax.value_and_grad(lambda h, k, b, y: linear_cross_entropy(h, k, y, 16, bias=b), (0, 1, 2))
    compiled = jax.jit(loss, in_shardings=(split, whole, whole, split)).lower(hidden, kernel, bias, labels).compile()
    assert f"f32[{16 // 8},{V}]" in compiled.as_text()
    assert f"f32[16,{V}]" not in compiled.as_text()
    actual = compiled(*jax.device_put((hidden, kernel, bias, labels), (split, whole, whole, split)))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6),
        actual,
        loss(hidden, kernel, bias, labels),
    )


def test_vmap_over_kernels(problem):
    hidden, kernel, bias, labels, _ = problem
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    loss = jax.value_and_grad(lambda k: linear_cross_entropy(hidden, k, labels, 16, bias=bias))
    stacked = jax.vmap(loss)(kernels)
    for i in range(3):
        jax.tree.map(
            lambda a, e, i=i: np.testing.assert_allclose(a[i], e, rtol=1e-5, atol=1e-6), stacked, loss(kernels[i])
        )


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_devices_keep_their_tokens(sizes):
    """On a mesh the read-out of a model moves its kernel, once, and no tokens; values and gradients are those of one
    device."""
    rows, length, width, vocabulary = 8, 700, 8, 64  # 700 tokens of a device are two slabs, with padding
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (rows, length, width))
    kernel = jax.random.normal(keys[1], (width, vocabulary))
    bias = jax.random.normal(keys[2], (vocabulary,))
    labels = jnp.arange(rows * length).reshape(rows, length) * 31 % vocabulary

    def loss(hidden, kernel, bias):
        scores = token_scores(Readout(hidden, kernel, bias), labels)
        return jnp.sum(scores.nll * jnp.linspace(0, 1, rows * length)), scores.correct

    graded = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    expected = graded(hidden, kernel, bias)
    mesh = parallel.make_mesh(parallel.MeshConfig(**{"data": 1, **sizes}))
    vocab = parallel.partition_spec(("vocab",), (vocabulary,), dict(mesh.shape))[0]
    places = [PartitionSpec(("data", "fsdp")), PartitionSpec(None, vocab), PartitionSpec(vocab)]
    places = tuple(NamedSharding(mesh, place) for place in places)
    jitted = jax.jit(graded, in_shardings=places, out_shardings=(None, places))
    with parallel.mesh_context(mesh):
        compiled = jitted.lower(hidden, kernel, bias).compile()
    actual = compiled(*jax.device_put((hidden, kernel, bias), places))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5), actual, expected)
    between_batches = [
        c for c in hlo.collectives(hlo.parse(compiled.as_text())) if {"data", "fsdp"} & set(c.axes(dict(mesh.shape)))
    ]
    assert {c.count for c in between_batches} == {1}, "a loop over slabs communicates"
    # Scores of tokens, one number each, may be gathered by what follows.
    assert max(c.bytes for c in between_batches) <= 4 * rows * length < hidden.nbytes
