"""Copies of arrays that differ between devices are found, and the device is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ssljax import run
from ssljax.base.errors import UserError
from ssljax.train.replicas import Replicas

SPECS = {"kernel": PartitionSpec(), "embedding": PartitionSpec("fsdp", None), "head": PartitionSpec(None, "data")}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def state_on(mesh, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        name: jax.device_put(jnp.asarray(rng.normal(size=(4, 8)), dtype), NamedSharding(mesh, spec))
        for name, spec in SPECS.items()
    } | {"step": jax.device_put(jnp.int32(7), NamedSharding(mesh, PartitionSpec()))}


def target_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def corrupted(x, *numbers):
    """The array with one flipped bit in the copies on some devices."""
    shards = []
    for shard in x.addressable_shards:
        values = np.array(shard.data)
        if shard.device.id in numbers:
            values.view(np.uint8).reshape(-1)[5] ^= 4
        shards.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equal_copies_pass(mesh, dtype):
    state = state_on(mesh, dtype)
    Replicas(target_of(state), mesh).check(3, state)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("number", [0, 5, 7])
def test_the_device_of_a_flipped_bit_is_named(mesh, name, number):
    state = state_on(mesh)
    replicas = Replicas(target_of(state), mesh)
    state[name] = corrupted(state[name], number)
    if name == "head":  # two copies: one of them is wrong, and nothing says which
        others = [d.id for d in mesh.devices.reshape(4, 2)[number // 2]]
        listed = ", ".join(f"device {i} of process 0 (cpu)" for i in others)
    else:
        listed = f"device {number} of process 0 (cpu)"
    with pytest.raises(UserError) as raised:
        replicas.check(40, state)
    line = str(raised.value)
    assert line.startswith(f"step 40: the copy of {name} on {listed} differs") and "\n" not in line


def test_several_arrays_and_devices_are_one_line(mesh):
    state = state_on(mesh)
    replicas = Replicas(target_of(state), mesh)
    state["kernel"], state["embedding"] = corrupted(state["kernel"], 1, 2), corrupted(state["embedding"], 1)
    with pytest.raises(UserError, match=r"the copy of embedding \(and 1 more arrays\) on device 1 of process 0"):
        replicas.check(1, state)


def test_a_run_stops_at_a_silent_error(tmp_path):
    """One flipped bit of one parameter on one of 8 devices, after step 2."""
    config = {
        "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
        "objective": {"name": "classification"},
        "data": {"source": "builtin:digits"},
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
        "steps": 6,
        "batch_size": 16,
        "mesh": {"data": 8},
        "log": {"every_steps": 2, "check_every_steps": 1, "progress": False, "trackers": [], "pictures": False},
    }

    def damage(step, state):
        encoder = state.params["encoder"]
        patch = {**encoder["patch"], "kernel": corrupted(encoder["patch"]["kernel"], 3)}
        return state.replace(params={**state.params, "encoder": {**encoder, "patch": patch}}) if step == 2 else state

    with pytest.raises(UserError, match=r"step 3: the copy of params/encoder/patch/kernel on device 3 of process 0"):
        run.train(config, tmp_path, callbacks=[(1, damage)])
    assert run.train(config, tmp_path / "sound").state.step == 6
