"""Checksums detect every change of a stored array, on any mesh; orbax alone does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.train.checkpoint import CheckpointConfig, Checkpoints, checksum
from ssljax.train.state import State


def state_of(x, step):
    empty = {}
    return State(jnp.int32(step), jnp.uint32(0), {"w": x}, {}, {}, None, empty, empty, empty)


def target(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@given(st.integers(0, 63), st.integers(0, 31))
def test_any_flipped_bit_changes_the_checksum(place, bit):
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    y = x.copy()
    y.view(np.uint32)[place] ^= np.uint32(1 << bit)
    assert int(checksum(jnp.asarray(x))) != int(checksum(jnp.asarray(y)))


def test_exchanged_rows_change_the_checksum():
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    assert int(checksum(jnp.asarray(x))) != int(checksum(jnp.asarray(x[[1, 0, 2, 3]])))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_the_checksum_does_not_depend_on_the_mesh(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)) * 3, dtype)
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2, fsdp=4))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    assert int(jax.jit(checksum)(split)) == int(checksum(x))


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1 and 2 with an array so large that it is stored in a separate file."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), {"a": 1})
    x = jax.random.normal(jax.random.key(0), (512, 512))
    for step in (1, 2):
        checkpoints.save(state_of(x + step, step), step)
    checkpoints.wait()
    yield checkpoints, x
    checkpoints.close()


def flip(folder, step):
    file = max((folder / str(step) / "state").glob("**/d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x01
    file.write_bytes(bytes(content))


def test_a_flipped_byte_restores_the_previous_checkpoint(saved, caplog):
    checkpoints, x = saved
    flip(checkpoints.folder, 2)
    state, step = checkpoints.restore(target(state_of(x, 0)))
    assert step == 1
    np.testing.assert_array_equal(state.params["w"], x + 1)
    assert "checkpoint 2 is damaged and skipped" in caplog.text
    with pytest.raises(UserError, match="no checkpoint of step 2"):
        checkpoints.restore(target(state_of(x, 0)), step=2)


def test_a_damaged_checkpoint_does_not_block_later_saves(saved):
    checkpoints, x = saved
    flip(checkpoints.folder, 2)
    checkpoints.restore(target(state_of(x, 0)))
    checkpoints.save(state_of(x + 2, 2), 2)
    checkpoints.save(state_of(x + 3, 3), 3)
    checkpoints.wait()
    assert checkpoints.steps() == [3, 2]
    assert (checkpoints.folder.parent / "damaged-2").exists()


def test_damaged_checkpoints_of_earlier_restarts_are_kept(saved):
    checkpoints, x = saved
    earlier = checkpoints.folder.parent / "damaged-2"
    earlier.mkdir()
    (earlier / "note").write_text("of an earlier fault")
    flip(checkpoints.folder, 2)
    checkpoints.restore(target(state_of(x, 0)))
    assert (earlier / "note").read_text() == "of an earlier fault"
    assert (checkpoints.folder.parent / "damaged-2-again" / "state").is_dir()


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), ValueError("RESOURCE_EXHAUSTED: out of memory")]
)
def test_errors_with_a_cause_outside_the_files_stop_the_run(saved, monkeypatch, error):
    checkpoints, x = saved

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoints, "_read", fail)
    with pytest.raises(UserError, match=r"cannot read the checkpoint of step 2: .*(denied|memory)"):
        checkpoints.restore(target(state_of(x, 0)))
    assert checkpoints.steps() == [2, 1]


def test_another_identity_is_refused_unless_forced(saved, tmp_path):
    checkpoints, x = saved
    checkpoints.identity = {"a": 2}
    with pytest.raises(UserError, match=r"another run.*--resume=force"):
        checkpoints.restore(target(state_of(x, 0)))
    assert checkpoints.restore(target(state_of(x, 0)), force=True)[1] == 2


def test_reading_leaves_checkpoints_under_way_alone(saved):
    checkpoints, x = saved
    unfinished = checkpoints.folder / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    Checkpoints(checkpoints.folder, CheckpointConfig(), {"a": 1}, read_only=True).restore(target(state_of(x, 0)))
    assert unfinished.exists()


def test_restores_onto_another_mesh_bit_for_bit(saved):
    checkpoints, x = saved
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2, fsdp=4))
    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    wanted = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), {"w": x})
    whole = NamedSharding(mesh, PartitionSpec())
    rest = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), state_of(x, 0))
    state, step = checkpoints.restore(rest.replace(params=wanted))
    assert step == 2 and state.params["w"].sharding == place
    np.testing.assert_array_equal(state.params["w"], x + 2)


def test_another_shape_is_refused_with_its_path(saved, caplog):
    checkpoints, x = saved
    with pytest.raises(UserError, match=r"params\['w'\].*\[512, 512\].*\[512, 256\]"):
        checkpoints.restore(target(state_of(x[:, :256], 0)))


def test_a_step_that_does_not_exist_is_named(saved):
    checkpoints, x = saved
    with pytest.raises(UserError, match=r"no checkpoint of step 7 \(there are: \[2, 1\]\)"):
        checkpoints.restore(target(state_of(x, 0)), step=7)
