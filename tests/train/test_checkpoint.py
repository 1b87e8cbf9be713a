"""Checksums detect every change of a stored array, on any mesh; orbax alone does not."""

import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.train import checkpoint
from ssljax.train.checkpoint import Best, CheckpointConfig, Checkpoints, EarlyStopping, Weights, checksum, host_checksum
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


@pytest.mark.parametrize("values", ["random", "zeros", "equal"])
def test_any_two_flipped_bits_change_the_checksum(values):
    """Every pair of bits of 32 words, the pairs of signs among them."""
    x = {"random": np.random.default_rng(0).normal(size=32), "zeros": np.zeros(32), "equal": np.full(32, 0.02)}[values]
    words = x.astype(np.float32).view(np.uint32)
    bits = np.arange(words.size * 32)
    one = np.uint32(1) << (bits % 32).astype(np.uint32)
    flipped = np.tile(words, (len(bits), 1))
    flipped[bits, bits // 32] ^= one

    def of_pair(first):
        pairs = jnp.asarray(flipped) ^ (jnp.asarray(words) ^ jnp.asarray(flipped)[first])
        return jax.vmap(checksum)(pairs)

    sums = np.asarray(jax.jit(lambda: jax.lax.map(of_pair, jnp.arange(len(bits))))())
    assert not np.any((sums == int(checksum(jnp.asarray(words)))) & ~np.eye(len(bits), dtype=bool))


def swapped_rows(x):
    return x[[1, 0, *range(2, len(x))]]


def swapped_words(x):
    flat = x.flatten()
    flat[[0, -1]] = flat[[-1, 0]]
    return flat.reshape(x.shape)


CHANGES = {
    "rows": swapped_rows,
    "words": swapped_words,
    "columns": lambda x: x[:, ::-1],
    "negated": lambda x: -x,
    "negated rows": lambda x: x * np.where(np.arange(len(x)) < 2, -1, 1)[:, None],
    "rolled": lambda x: np.roll(x, 1),
    "transposed": lambda x: x.T,
    "constant added": lambda x: (x.view(np.uint32) + np.uint32(1)).view(np.float32),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_many_words_change_the_checksum(change):
    x = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    y = np.ascontiguousarray(CHANGES[change](x.copy()), np.float32)
    assert not np.array_equal(x, y)
    assert int(checksum(jnp.asarray(x))) != int(checksum(jnp.asarray(y)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_the_checksum_does_not_depend_on_the_mesh(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)) * 3, dtype)
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2, fsdp=4))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    assert int(jax.jit(checksum)(split)) == int(checksum(x))
    assert host_checksum(np.asarray(x)) == host_checksum(np.asfortranarray(x)) == int(checksum(x))


def test_words_of_eight_bytes_count_whole():
    x = np.random.default_rng(0).normal(size=7)
    negated = -x
    assert host_checksum(x) != host_checksum(negated) and host_checksum(x) == host_checksum(x.view(np.uint32))
    assert host_checksum(np.zeros((0, 3))) == 0


def test_blocks_of_a_large_array_have_the_checksum_of_the_whole(monkeypatch):
    x = np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32)
    monkeypatch.setattr("ssljax.train.checkpoint._BLOCK", 16)
    assert host_checksum(x) == int(checksum(jnp.asarray(x)))


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


def test_a_checkpoint_read_to_the_host_passes_no_device(saved):
    checkpoints, x = saved
    wanted = Weights({"w": jax.ShapeDtypeStruct(x.shape, x.dtype)}, {})
    checkpoints.restore(wanted)  # imports and metadata
    before = len(jax.live_arrays())
    with jax.transfer_guard("disallow"):
        weights, step = checkpoints.restore(wanted)
    assert step == 2 and isinstance(weights.params["w"], np.ndarray)
    assert len(jax.live_arrays()) == before
    np.testing.assert_array_equal(weights.params["w"], x + 2)
    flip(checkpoints.folder, 2)
    assert checkpoints.restore(wanted)[1] == 1


def test_a_checkpoint_of_another_format_is_refused_in_one_line(saved):
    checkpoints, x = saved
    meta = checkpoints._meta(2)
    checkpoints._meta = lambda step: {**meta, "format": 1}
    with pytest.raises(UserError, match=r"step 2 does not fit: format 1, this version reads 2; use the version of ssl"):
        checkpoints.restore(target(state_of(x, 0)))


ODD = ("run [1]", "a*b?{1,2}", "sp ace ü✓ #%41$HOME", "a:b", "gs:", "back\\slash", "two\nlines")


@pytest.mark.parametrize("name", [*ODD, "n" * 200])
def test_folders_of_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for folder in (tmp_path / name / "checkpoints", pathlib.Path(f"./{name}/relative/"), tmp_path / "link" / name):
        checkpoints = Checkpoints(folder, CheckpointConfig(every_steps=1, keep=2), {})
        checkpoints.prove()
        assert not [path for path in folder.parent.iterdir() if "trial" in path.name]
        x = jnp.arange(6.0)
        for step in (1, 2, 3):
            checkpoints.save(state_of(x + step, step), step)
        checkpoints.close()
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["2", "3"]
        again = Checkpoints(folder, CheckpointConfig(), {}, read_only=True)
        assert again.restore(Weights({"w": jax.ShapeDtypeStruct((6,), x.dtype)}, {}), 2)[1] == 2
        assert again.restore(target(state_of(x, 0)))[1] == 3
        again.close()


def test_a_late_ranking_leaves_as_many_checkpoints_as_are_kept(tmp_path):
    """Before: the former best stayed until the next save, which a finished run never makes."""
    config = CheckpointConfig(every_steps=1, keep=2, best=Best("knn/accuracy"))
    checkpoints = Checkpoints(tmp_path, config, {})
    for step, accuracy in ((1, 0.5), (2, 0.1), (3, 0.2), (4, None)):
        metrics = None if accuracy is None else {"knn/accuracy": accuracy}
        checkpoints.save(state_of(jnp.arange(6.0), step), step, metrics)
    checkpoints.wait()
    assert checkpoints.steps() == [4, 3, 1]
    checkpoints.rank(4, {"knn/accuracy": 0.9})
    assert checkpoints.steps() == [4, 3]
    checkpoints.rank(3, {"knn/accuracy": 1.0})  # is ranked already
    assert checkpoints.steps() == [4, 3] and checkpoints.manager.best_step() == 4
    checkpoints.close()


def test_a_folder_that_cannot_hold_a_checkpoint_is_refused_before_training(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), {})
    read = Checkpoints._read
    monkeypatch.setattr(Checkpoints, "_read", lambda *a: jax.tree.map(lambda x: -x, read(*a)))
    with pytest.raises(UserError, match=r"a checkpoint cannot be kept here \(.*checksum") as caught:
        checkpoints.prove()
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(UserError, match=r"a checkpoint cannot be kept here \(.*the disk is full"):
        checkpoints.prove()
    monkeypatch.undo()
    checkpoints.prove()
    checkpoints.save(state_of(jnp.arange(6.0), 1), 1)
    checkpoints.wait()
    monkeypatch.setattr(Checkpoints, "save", None)
    checkpoints.prove()  # a folder with checkpoints is not tried again
    checkpoints.close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file/checkpoints", "file [1]/checkpoints"):
        (tmp_path / "file [1]").write_text("")
        with pytest.raises(UserError, match=r"cannot write a checkpoint"):
            Checkpoints(tmp_path / name, CheckpointConfig(), {})


@given(st.lists(st.one_of(st.none(), st.integers(0, 5).map(float)), max_size=12), st.integers(1, 4), st.booleans())
def test_early_stopping_is_its_definition(values, patience, largest):
    rule = EarlyStopping("knn/accuracy", "max" if largest else "min", patience)
    without_improvement, best = 0, None
    for value in values:
        better = value is not None and (best is None or (value > best if largest else value < best))
        best, without_improvement = (value, 0) if better else (best, without_improvement + 1)
    assert rule.is_exhausted(values) == (without_improvement >= patience and len(values) > patience)


class Held:
    """The sharding of an array of which this process holds some parts."""

    def __init__(self, *parts):
        self.parts = parts

    def addressable_devices_indices_map(self, shape):
        return dict(enumerate(self.parts))


@pytest.mark.parametrize(
    "parts", [((slice(0, 4), slice(None)), (slice(4, 5), slice(0, 3))), ((slice(7, 9), slice(5, 6)),)]
)
def test_a_process_needs_the_blocks_that_overlap_with_its_parts(tmp_path, parts):
    """Blocks of 2 x 3 of an array of 9 x 6; brute force over elements."""
    (tmp_path / "params.a").mkdir()
    (tmp_path / "params.a/.zarray").write_text(json.dumps({"chunks": [2, 3]}))
    leaf = types.SimpleNamespace(shape=(9, 6), sharding=Held(*parts))
    is_needed = checkpoint._needed_by({"params": {"a": leaf}}, tmp_path)
    held = np.zeros((9, 6), bool)
    for part in parts:
        held[part] = True
    for i, j in np.ndindex(5, 2):
        expected = held[2 * i : 2 * i + 2, 3 * j : 3 * j + 3].any()
        assert is_needed(f"state/params.a/{i}.{j}") == expected, (i, j)
    assert is_needed("state/params.a/.zarray") and is_needed("meta/metadata") and is_needed("state/d/1a")
    assert not is_needed("state/opt_state.a/0.0"), "an array that is not read"
    weights = checkpoint.Weights({"a": leaf}, {})
    assert checkpoint._needed_by(weights, tmp_path)("state/params.a/4.1"), "weights are read whole"


def test_arrays_have_the_names_that_orbax_gives_them(tmp_path):
    """Also beside parts of the state of an optimiser that have no arrays."""
    optimizer = optax.chain(optax.identity(), optax.masked(optax.adam(1e-3), {"a": [True, False], "b/c d": True}))
    params = {"a": [jnp.ones((2, 3)), jnp.ones(4)], "b/c d": jnp.ones(())}
    state = {"params": params, "opt_state": optimizer.init(params)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "state", args=ocp.args.PyTreeSave(state))
    is_needed = checkpoint._needed_by(state, tmp_path / "state")
    saved = [path.parent for path in (tmp_path / "state").rglob(".zarray")]
    assert len(saved) == len(jax.tree.leaves(state))
    for array in saved:
        blocks = [path.name for path in array.iterdir() if path.name[0].isdigit()]
        assert blocks and all(is_needed(f"state/{array.relative_to(tmp_path / 'state')}/{name}") for name in blocks)
