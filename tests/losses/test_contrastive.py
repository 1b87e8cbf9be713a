"""NT-Xent in blocks and around a ring of devices: equal to the plain form, without its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, PartitionSpec

from ssljax.losses import nt_xent, nt_xent_ring

N, D = 16, 6


@pytest.fixture(scope="module")
def problem():
    z = np.random.default_rng(0).normal(size=(2, N, D))
    weights = np.random.default_rng(1).integers(0, 3, N)
    return *jnp.asarray(z, jnp.float32), jnp.asarray(weights, jnp.float32)


def close(actual, expected):
    # Round-off scales with the largest entry: gradients are differences of terms of its size.
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * float(jnp.abs(e).max())), actual, expected
    )


@pytest.mark.parametrize("block", [1, 5, 8, 16, 100])
def test_blocks(problem, block):
    z1, z2, weights = problem

    def loss(block):
        return jax.jit(
            jax.value_and_grad(lambda a, b: nt_xent(a, b, temperature=0.2, weights=weights, block=block), (0, 1))
        )(z1, z2)

    close(loss(block), loss(None))


def test_blocks_store_no_similarity_matrix(problem):
    def largest(jaxpr) -> int:
        inner = [largest(sub) for e in jaxpr.eqns for sub in jaxprs_in_params(e.params)]
        return max([v.aval.size for e in jaxpr.eqns for v in e.outvars] + inner, default=0)

    def size(block):
        loss = lambda a, b: nt_xent(a, b, temperature=0.2, block=block)  # noqa: E731
        return largest(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*problem[:2]).jaxpr)

    assert size(None) == (2 * N) ** 2  # the check sees the matrix if there is one
    assert size(2) < (2 * N) ** 2 / 4


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("block", [None, 3])
def test_ring_equals_one_device(problem, block, check_vma):
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


def test_ring_values_of_each_device_and_eight_devices(problem):
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
