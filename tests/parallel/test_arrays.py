"""Global arrays from the rows of a process. Jobs of several processes are in tests/test_jobs.py."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax import parallel
from ssljax.parallel import arrays

MESHES = [{"data": 8}, {"data": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "context": 2}, {"tensor": 8}]


@pytest.mark.parametrize("sizes", MESHES)
def test_a_batch_is_split_like_by_device_put(sizes):
    mesh = parallel.make_mesh(parallel.MeshConfig(**{"data": 1, **sizes}))
    batch = {"image": np.random.default_rng(0).normal(size=(16, 3)), "nested": {"label": np.arange(16, dtype=np.int32)}}
    placed = parallel.put_batch(batch, mesh)
    for found, value in zip(jax.tree.leaves(placed), jax.tree.leaves(batch)):
        expected = jax.device_put(value, parallel.batch_sharding(mesh))
        assert found.sharding == expected.sharding and found.dtype == expected.dtype
        for shard, other in zip(found.addressable_shards, expected.addressable_shards):
            np.testing.assert_array_equal(shard.data, other.data)
    np.testing.assert_array_equal(parallel.fetch(placed)["nested"]["label"], batch["nested"]["label"])
    np.testing.assert_array_equal(parallel.own_rows(mesh, 16), np.arange(16))


def test_the_rows_of_a_process_are_those_of_its_devices(monkeypatch):
    """A process may hold shares that do not follow each other."""
    mesh = parallel.make_mesh(parallel.MeshConfig(data=8))
    held = {(0, 3): [0, 1, 6, 7], (1,): [2, 3]}
    for blocks, rows in held.items():
        monkeypatch.setattr(arrays, "_own_blocks", lambda mesh, blocks=blocks: np.array(blocks))
        np.testing.assert_array_equal(parallel.own_rows(mesh, 16), rows)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("data"), PartitionSpec(None, "data")])
def test_a_value_that_all_have_is_split_as_asked(spec):
    mesh = parallel.make_mesh(parallel.MeshConfig(data=8))
    value = np.arange(128.0, dtype=np.float32).reshape(16, 8)
    placed = parallel.put_whole(value, NamedSharding(mesh, spec))
    np.testing.assert_array_equal(placed, value)
    assert placed.sharding.spec == spec
