"""A function of the batch sees the rows of its device, and all rows through collectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import parallel


def shares(axis_name, rows, factor):
    """Share of each row in the sum of the batch, and the number of rows of the device."""
    total = rows.sum() if axis_name is None else jax.lax.psum(rows.sum(), axis_name)
    return factor * rows / total, jnp.full(len(rows), len(rows))


@pytest.mark.parametrize(
    ("mesh", "rows", "local"),
    [
        (None, 8, 8),  # no mesh
        ((1, 1, 8), 8, 8),  # no axis splits the batch
        ((2, 2, 2), 8, 2),  # data and fsdp do
        ((8, 1, 1), 8, 1),
        ((2, 4, 1), 6, 3),  # only data divides the batch
        ((4, 2, 1), 5, 5),  # nothing divides the batch
    ],
)
def test_rows_of_each_device_and_gradients(mesh, rows, local):
    x = jnp.arange(1.0, rows + 1)

    def value(x, factor):
        share, count = parallel.over_batch(shares, x, factor)
        return (share * jnp.arange(rows)).sum(), (share, count)

    run = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))
    if mesh is None:
        found = run(x, 3.0)
    else:
        with parallel.mesh_context(parallel.make_mesh(parallel.MeshConfig(*mesh))):
            found = run(x, 3.0)
    (_, (share, count)), gradients = found
    np.testing.assert_allclose(share, 3 * x / x.sum(), rtol=1e-6)
    assert set(np.asarray(count)) == {local}
    expected = jax.grad(lambda x, f: (f * x / x.sum() * jnp.arange(rows)).sum(), (0, 1))(x, 3.0)
    for found, wanted in zip(gradients, expected):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)
