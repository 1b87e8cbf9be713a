"""NT-Xent in blocks and around a ring of devices equals the plain form with less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from programs import largest_array

from ssljax.losses import nt_xent, nt_xent_ring

N, D = 16, 6


@pytest.fixture(scope="module")
def problem():
    z = np.random.default_rng(0).normal(size=(2, N, D))
    weights = np.random.default_rng(1).integers(0, 3, N)
    return *jnp.asarray(z, jnp.float32), jnp.asarray(weights, jnp.float32)


def close(actual, expected):
    # The tolerance scales with the largest entry: gradients are differences of terms of that size.
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * float(jnp.abs(e).max())), actual, expected
    )


@pytest.mark.parametrize("block", [1, 5, 8, 16, 100])
def test_every_block_size_gives_the_plain_loss(problem, block):
    z1, z2, weights = problem

    def loss(block):
        return jax.jit(
            jax.value_and_grad(lambda a, b: nt_xent(a, b, temperature=0.2, weights=weights, block=block), (0, 1))
        )(z1, z2)

    close(loss(block), loss(None))


def test_blocks_store_no_similarity_matrix(problem):
    def size(block):
        loss = lambda a, b: nt_xent(a, b, temperature=0.2, block=block)  # noqa: E731
        return largest_array(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*problem[:2]).jaxpr)

    assert size(None) == (2 * N) ** 2  # without blocks the check finds the matrix
    assert size(2) < (2 * N) ** 2 / 4


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("block", [None, 3])
def test_ring_on_four_devices_equals_one_device(problem, block, check_vma):
    z1, z2, weights = problem
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    ring = jax.shard_map(
        lambda a, b, w: nt_xent_ring(a, b, axis_name="data", temperature=0.2, weights=w, block=block),
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec(),
        check_vma=check_vma,
    )
    actual = jax.jit(jax.value_and_grad(lambda a, b: ring(a, b, weights), (0, 1)))(z1, z2)
    expected = jax.value_and_grad(lambda a, b: nt_xent(a, b, temperature=0.2, weights=weights), (0, 1))(z1, z2)
    close(actual, expected)


def test_unreduced_ring_on_eight_devices_equals_one_device(problem):
    z1, z2, weights = problem
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    ring = jax.shard_map(
        lambda a, b, w: nt_xent_ring(a, b, axis_name="data", temperature=0.2, weights=w, reduce=False),
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
    )

    def total(form):
        def loss(a, b):
            values, w = form(a, b)
            return (values * w * jnp.arange(N)).sum(), values

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(z1, z2)

    close(
        total(lambda a, b: ring(a, b, weights)),
        total(lambda a, b: nt_xent(a, b, temperature=0.2, weights=weights, reduce=False)),
    )


def test_two_equal_views_of_orthogonal_examples():
    # Positives at cosine 1, all 2N - 2 negatives at cosine 0: log(1 + (2N - 2) exp(-1 / t)).
    z, t = jnp.eye(4), 0.5
    np.testing.assert_allclose(nt_xent(z, z, temperature=t), np.log(1 + 6 * np.exp(-1 / t)), rtol=1e-6)
