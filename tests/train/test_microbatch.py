"""Batches are cut before their views are made: memory, streams, mixtures, slices on a mesh."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import at_most, daily, on_day

from ssljax import objectives, parallel
from ssljax.base.durations import RunLengths
from ssljax.base.errors import UserError
from ssljax.objectives.base import Ctx, Loss, Objective, Variables, stream, views_of
from ssljax.train import microbatch, optimizers
from ssljax.train.microbatch import join, split
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program
from ssljax.views import example_keys

SIDE, ROWS = 32, 64
PICTURES = dataclasses.replace(tiny.SPEC, elements={"image": {"shape": [SIDE, SIDE, 3], "dtype": "uint8"}})
# An encoder so small that the views need most of the memory.
SMALL = {"name": "vit", "preset": None, "width": 8, "depth": 1, "heads": 1, "patch_size": 16}
SETTINGS = {
    "dino": {"head": {"hidden": 8, "bottleneck": 8, "prototypes": 8}, "augment": {"name": "multi_crop"}},
    "swav": {"prototypes": 8, "projector": {"hidden": 8, "output": 8}, "augment": {"name": "multi_crop"}},
    "mae": {"decoder": {"width": 8, "depth": 1, "heads": 1}, "augment": {"name": "single", "crop_scale": [0.2, 1.0]}},
}


def compiled(name, slices, mesh_shape=(1, 1, 1)):
    """The compiled step of an objective with large views, at a batch of 64."""
    groups = {"model": SMALL, "objective": {"name": name, **SETTINGS[name]}}
    if name != "mae":
        groups["model"] = {**SMALL, "patch_size": 8}
        groups["objective"]["augment"] = {**SETTINGS[name]["augment"], "local_size": 16}
    objective = objectives.create(groups, PICTURES, tiny.STEPS)
    mesh = parallel.make_mesh(parallel.MeshConfig(*mesh_shape), jax.devices()[: int(np.prod(mesh_shape))])
    optimization = Optimization(
        optimizers.AdamW(learning_rate=1e-3), lambda step: 1.0, RunLengths(ROWS, 1000, None, tiny.STEPS)
    )
    batch = {"image": jax.ShapeDtypeStruct((ROWS, SIDE, SIDE, 3), jnp.uint8)}
    program = Program.build(objective, optimization, mesh, batch, slices)
    split_rows = jax.ShapeDtypeStruct((ROWS, SIDE, SIDE, 3), jnp.uint8, sharding=parallel.batch_sharding(mesh))
    with parallel.mesh_context(mesh):
        return program.jitted_step().lower(program.target(), {"image": split_rows}).compile()


@pytest.mark.parametrize("name", daily(SETTINGS, len(SETTINGS)))
def test_slices_bound_the_memory_of_views(name):
    """Before, the views of the whole batch were made first: with 8 slices the step needed nearly as much as with 1."""
    one, eight = (compiled(name, slices).memory_analysis().temp_size_in_bytes for slices in (1, 8))
    assert eight < one / 4


@functools.cache
def collectives(slices):
    text = compiled("dino", slices, (8, 1, 1)).as_text()
    return set(re.findall(r"= [^=]*?\b(all-gather|all-to-all|collective-permute|reduce-scatter)\(", text))


@on_day(2, 3)
def test_slices_of_a_sharded_batch_move_no_rows():
    assert collectives(4) == collectives(1) == set()


@pytest.mark.parametrize("name", at_most(objectives.REGISTRY, 3))
def test_inputs_of_a_slice_are_those_of_the_batch(name):
    """The keys of examples follow their rows."""
    objective, batch, step, rows = tiny.make(name), tiny.batch(), jnp.int32(3), jnp.arange(tiny.BATCH)
    key = stream(0, 3, "views")
    whole = jax.jit(lambda b: views_of(objective, key, b, step))(batch)
    mixed = jax.jit(lambda b: objective.mixed(example_keys(key, rows), b, step))(batch)
    views = jax.jit(lambda b, rows: objective.views(example_keys(key, rows), objective.prepare(b), step))
    parts = split((mixed, rows), 4)
    made = [views(*jax.tree.map(lambda x, k=k: x[k], parts)) for k in range(4)]
    joined = join(jax.tree.map(lambda *leaves: jnp.stack(leaves), *made))
    for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(whole), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):  # another size is another program, whose sums may be reordered
            np.testing.assert_allclose(a, b, atol=1e-5)
        else:
            np.testing.assert_array_equal(a, b)


def test_mixing_before_the_cut_is_needed():
    """Mixing within slices would mix other rows."""
    objective = tiny.make("classification")
    key, batch, step = stream(0, 3, "views"), tiny.batch(), jnp.int32(3)
    whole = views_of(objective, key, batch, step)["target"]
    half = jax.tree.map(lambda x: x[::2], batch)
    keys = example_keys(key, jnp.arange(0, tiny.BATCH, 2))
    assert np.abs(objective.mixed(keys, half, step)["target"] - whole[::2]).max() > 0.1


def test_split_and_join():
    x = jnp.arange(24).reshape(12, 2)
    parts = split({"x": x}, 3)
    assert parts["x"].shape == (3, 4, 2)
    np.testing.assert_array_equal(parts["x"][1], x[1::3])
    np.testing.assert_array_equal(join(parts)["x"], x)


@dataclasses.dataclass(frozen=True)
class WithStream(Objective):
    """Regression on an example and the two rows of a stream that go with it."""

    def prepare(self, batch):
        return batch

    def init(self, key, batch):
        return Variables({"w": jnp.ones(3)}, {})

    def views(self, keys, batch, step):
        noise = jax.vmap(jax.random.uniform)(keys)
        pairs = batch["more"]["y"].reshape(len(batch["x"]), -1)
        return {"x": jnp.concatenate([batch["x"][:, None], pairs], 1), "noise": noise}

    def encode(self, params, extra, inputs, ctx):
        return inputs["x"] @ params["w"] + inputs["noise"]

    def loss(self, params, extra, outputs, inputs, ctx):
        return Loss({"square": (1.0, jnp.sum(outputs**2), jnp.float32(len(outputs)))})


@pytest.mark.parametrize("coupled", [False, True])
def test_rows_of_a_stream_stay_with_their_example(coupled):
    kind = type("Kind", (WithStream,), {"coupled": coupled})
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=8).astype(np.float32), "more": {"y": rng.normal(size=16).astype(np.float32)}}
    ctx = Ctx(jax.random.key(0), jnp.int32(0), jnp.arange(8, dtype=jnp.int32))
    one, four = (tiny.gradients(kind(), {"w": jnp.ones(3)}, {}, batch, ctx, k) for k in (1, 4))
    np.testing.assert_allclose(four.grads["w"], one.grads["w"], rtol=1e-5)
    np.testing.assert_allclose(four.value, one.value, rtol=1e-5)


def test_a_stream_that_cannot_be_cut_is_refused():
    batch = {"x": jnp.zeros(8), "more": {"y": jnp.zeros(4)}}
    parts = microbatch._Batch(batch, jnp.arange(8))
    with pytest.raises(UserError, match=r"microbatches: got 2, but a stream of the data has 4 rows for 8 examples"):
        split(parts, 2)
