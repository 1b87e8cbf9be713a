"""Logical names become mesh axes; the report names dimensions that the mesh does not divide."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from ssljax.base.errors import UserError
from ssljax.parallel import MeshConfig, check_whole, make_mesh, partition_spec, sharding_report

CUBE = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("embed", "mlp"), (8, 16), ("fsdp", "tensor")),
        (("vocab", "embed"), (12, 8), (("tensor", "fsdp"), None)),  # the vocabulary chooses first and takes both
        (("vocab", "embed"), (6, 8), ("tensor", "fsdp")),  # 6 is not divided by 4: the next candidate
        (("vocab", "embed"), (7, 8), (None, "fsdp")),
        (("layers", "embed", "mlp"), (3, 8, 7), (None, "fsdp", None)),
        (("mlp", "heads"), (8, 8), (None, "tensor")),  # one mesh axis splits one dimension
        (("nobody", None), (8, 8), (None, None)),
        ((), (8, 8), ()),  # a parameter without axis names
    ],
)
def test_partition_spec(axes, shape, expected):
    assert partition_spec(axes, shape, CUBE) == PartitionSpec(*expected)


def test_axes_of_size_one_split_nothing():
    assert partition_spec(("embed", "mlp"), (8, 8), {"data": 8, "fsdp": 1, "tensor": 1}) == PartitionSpec(None, None)


def test_the_report_counts_bytes_and_names_dimensions_that_do_not_divide():
    axes = {"table": ("vocab", "embed"), "up": ("embed", "mlp"), "down": ("mlp", "embed"), "bias": ("mlp",)}
    shapes = {"table": (7, 1000), "up": (1000, 500), "down": (500, 1000), "bias": (7,)}
    shapes = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
    line = sharding_report(axes, shapes, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    # table 7,000 / 2, up and down 500,000 / 4, bias 7 / 1: numbers of four bytes
    assert line.startswith("each device holds 1.0 of 4.0 MB; ")
    assert "vocab 7 by tensor=2 (1 arrays)" in line and "mlp 7 by tensor=2 (1 arrays)" in line and "embed" not in line


def test_report_of_a_mesh_that_divides_everything_is_short():
    shapes = {"up": jax.ShapeDtypeStruct((1000, 500), jnp.float32)}
    line = sharding_report({"up": ("embed", "mlp")}, shapes, make_mesh(MeshConfig(fsdp=4, tensor=2, data=1)))
    assert line == "each device holds 0.2 of 2.0 MB"


def test_parameters_that_every_device_holds_whole_are_named_and_limited():
    axes = {"table": ("vocab", "embed"), "norm": {"scale": ("embed",), "odd": ("mlp",)}, "bias": ()}
    shapes = {"table": (1000, 8), "norm": {"scale": (8,), "odd": (7,)}, "bias": (10,)}
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda x: type(x) is tuple)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    assert "; whole on each: 2 arrays of 0.00 MB, 0.21% (bias, norm.odd)" in sharding_report(axes, shapes, mesh)
    share = 17 / 8025
    for limit in (None, 1.0, share + 1e-6):
        check_whole(limit, axes, shapes, mesh)
    with pytest.raises(UserError, match=r"mesh\.whole: got 0\.002, but every device would hold whole 2 arrays"):
        check_whole(0.002, axes, shapes, mesh)
    check_whole(0.0, axes, shapes, make_mesh(MeshConfig(data=8)))  # nothing is to be split


def test_axes_that_cross_slices_must_be_a_multiple_of_their_number():
    devices = [types.SimpleNamespace(slice_index=i // 4) for i in range(8)]
    with pytest.raises(UserError, match=r"mesh: got data=1 and fsdp=1, their product must be a multiple of 2"):
        make_mesh(MeshConfig(data=1, tensor=8), devices)
