"""Logical names become mesh axes; the report names dimensions that the mesh does not divide."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from ssljax.parallel import MeshConfig, make_mesh, partition_spec, sharding_report

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
