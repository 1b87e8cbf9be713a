"""Times of a step in closed form, and FLOPs of traced programs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssljax.parallel import MeshConfig, hardware, make_mesh
from ssljax.parallel.hlo import Collective
from ssljax.parallel.roofline import Roofline, matrix_products, roofline, seconds

H100, V5P = hardware.chip("NVIDIA H100 80GB HBM3"), hardware.chip("TPU v5")


def mesh_of(devices):
    devices = np.array(devices)
    return types.SimpleNamespace(devices=devices, size=devices.size)


def gpus(hosts, each):
    return mesh_of([types.SimpleNamespace(process_index=h) for h in range(hosts) for _ in range(each)])


def chips(x, y, z):
    places = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
    return mesh_of([types.SimpleNamespace(coords=p, core_on_chip=0, process_index=0) for p in places])


def collective(kind, size, groups, count=1):
    return Collective(kind, size, np.array(groups), count)


def test_within_a_host():
    found = seconds(collective("all-reduce", 8e9, [range(8)], 3), H100, gpus(1, 8))
    assert found == pytest.approx(3 * 2 * 7 / 8 * 8e9 / 450e9)


def test_across_hosts_each_gpu_sends_its_share():
    everyone = [range(16)]
    found = seconds(collective("all-gather", 16e9, everyone), H100, gpus(2, 8))
    assert found == pytest.approx(7 / 8 * 16e9 / 450e9 + 1 / 2 * 16e9 / 8 / 50e9)
    pairs = [[i, i + 8] for i in range(8)]  # groups with one GPU of each host
    found = seconds(collective("all-reduce", 1e9, pairs), H100, gpus(2, 8))
    assert found == pytest.approx(2 * 1 / 2 * 1e9 / 50e9)
    found = seconds(collective("collective-permute", 1e9, pairs), H100, gpus(2, 8))
    assert found == pytest.approx(1e9 / 50e9)


@pytest.mark.parametrize(
    ("group", "links"),
    [
        ([0, 1, 2, 3], 1.0),  # a ring of 4 along x
        ([0, 4], 0.5),  # 2 chips along y: an open axis
        ([0, 1, 2, 3, 4, 5, 6, 7], 1.5),  # both
    ],
)
def test_axes_of_a_network_add_up(group, links):
    found = seconds(collective("all-gather", 1e9, [group]), V5P, chips(4, 2, 1))
    n = len(group)
    assert found == pytest.approx((n - 1) / n * 1e9 / (1.8e11 * links))


def test_times_of_a_step():
    products = {("bfloat16", False): 8 * 989e12, ("float32", True): 8 * 67e12}
    ring = collective("all-gather", 450e9 * 8 / 7, [range(8)])
    found = roofline(H100, products, 3.35e12, [ring], gpus(1, 8), 4 * 989e12)
    assert (found.compute, found.memory, found.network) == pytest.approx((2, 1, 1))
    assert (found.overlapped, found.serial) == pytest.approx((2, 3)) and found.bound == "compute"
    assert found.mfu_ceiling == pytest.approx(0.25)
    assert Roofline(1, 1, 1, None, 1).mfu_ceiling is None


def products_of(function, *shapes, dtype=jnp.float32):
    with jax.default_matmul_precision("default"):  # other tests compute at the highest
        return matrix_products(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, dtype) for s in shapes)).jaxpr)


def test_flops_of_products_and_convolutions():
    assert products_of(jnp.matmul, (3, 5), (5, 7)) == {("float32", False): 2 * 3 * 5 * 7}
    exact = products_of(lambda a, b: jnp.dot(a, b, precision="highest"), (3, 5), (5, 7))
    assert exact == {("float32", True): 2 * 3 * 5 * 7}
    batched = products_of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 3, 5), (4, 5, 7), dtype=jnp.bfloat16)
    assert batched == {("bfloat16", False): 4 * 2 * 3 * 5 * 7}

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert products_of(convolve, (2, 8, 8, 3), (3, 3, 3, 16)) == {("float32", False): 2 * 2 * 8 * 8 * 16 * 27}


def test_flops_of_loops_branches_and_recomputation():
    one = 2 * 8 * 8 * 8

    def layer(x, w):
        return x @ w, None

    def loss(x, ws):
        return jax.lax.scan(jax.checkpoint(layer), x, ws)[0].sum()

    assert products_of(loss, (8, 8), (5, 8, 8)) == {("float32", False): 5 * one}
    graded = products_of(jax.grad(loss, (0, 1)), (8, 8), (5, 8, 8))
    assert graded[("float32", False)] == 3 * 5 * one  # the product itself need not be computed again

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert products_of(branch, (8, 8)) == {("float32", False): 2 * one}


@pytest.mark.parametrize("axes", [("data", "fsdp", "tensor"), ("data", "fsdp")])
def test_flops_of_all_devices(axes):
    """A function of the rows of a device counts once for each part of the rows."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spec = PartitionSpec(axes)

    def local(x):
        return x @ x.T @ x

    def function(x):
        return jax.shard_map(local, in_specs=spec, out_specs=spec, axis_names=set(axes), check_vma=False)(x)

    with jax.set_mesh(mesh):
        found = products_of(function, (16, 8))
    parts = 2 ** len(axes)
    assert found == {("float32", False): parts * 2 * 2 * (16 // parts) ** 2 * 8}
