# ruff: noqa: E501 (texts of compilers)
"""Collectives and memory traffic of compiled programs, counted by hand: on CPU devices, from texts of TPUs and GPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.parallel import MeshConfig, hlo, make_mesh

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
SHAPE = {**MESH, "context": 1, "expert": 1}


def compiled(function, *shapes, spec=PartitionSpec("data"), out=None, config=MeshConfig(**MESH)):
    """The module of a function of the rows of each device."""
    mesh = make_mesh(config)
    local = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec if out is None else out, check_vma=False)
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, spec)) for s in shapes]
    return hlo.parse(jax.jit(local).lower(*arrays).compile().as_text())


@pytest.mark.parametrize(
    ("function", "kind", "size", "sent"),
    [
        # a device holds 8 of 16 rows of 32 numbers of 4 bytes: 1,024 bytes
        (lambda x: jax.lax.psum(x, "data"), "all-reduce", 1024, 1024),  # 2 (n - 1) / n
        (lambda x: jax.lax.all_gather(x, "data"), "all-gather", 2048, 1024),  # (n - 1) / n of the result
        (lambda x: jax.lax.psum_scatter(x, "data", tiled=True), "reduce-scatter", 1024, 512),
        (lambda x: jax.lax.all_to_all(x, "data", 0, 0, tiled=True), "all-to-all", 1024, 512),
        (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), "collective-permute", 1024, 1024),
    ],
)
def test_bytes_of_each_kind(function, kind, size, sent):
    (found,) = hlo.collectives(compiled(function, (16, 32)))
    assert (found.kind, found.bytes, found.size, found.count, found.sent) == (kind, size, 2, 1, sent)
    assert found.axes(SHAPE) == ("data",)


@pytest.mark.parametrize("axes", [("data",), ("fsdp", "tensor"), ("data", "tensor"), ("data", "fsdp", "tensor")])
def test_mesh_axes(axes):
    (found,) = hlo.collectives(compiled(lambda x: jax.lax.psum(x, axes), (16, 32), spec=PartitionSpec()))
    assert found.axes(SHAPE) == axes
    assert found.size == 2 ** len(axes)
    assert found.sent == 2 * (found.size - 1) / found.size * 16 * 32 * 4


def test_a_loop_counts_as_often_as_it_runs():
    def inner(x, _):
        return jax.lax.psum(x, "data") / 2, None

    def outer(x, _):
        x = jax.lax.all_gather(x, "fsdp", tiled=True)[:8] + jax.lax.scan(inner, x, None, length=3)[0]
        return x, None

    found = hlo.collectives(compiled(lambda x: jax.lax.scan(outer, x, None, length=5)[0], (16, 32)))
    assert {c.kind: (c.count, c.bytes) for c in found} == {"all-reduce": (15, 1024), "all-gather": (5, 2048)}


def test_several_arrays_in_one_collective():
    found = hlo.collectives(compiled(lambda x, y: jax.lax.psum((x, y), "data"), (16, 32), (2, 4)))
    assert sum(c.sent for c in found) == 1024 + 16


def test_sums_by_kind_and_axes():
    def function(x):
        return jax.lax.psum(jax.lax.psum(x, "data") * x, "data") + jax.lax.psum(x * 3, "fsdp")

    found = hlo.collectives(compiled(function, (16, 32)))
    sums = hlo.by_kind(found, SHAPE)
    assert sum(total.sent for total in sums.values()) == 3 * 1024
    assert {kind for kind, _ in sums} == {"all-reduce"}


def test_crossing_hosts():
    (found,) = hlo.collectives(compiled(lambda x: jax.lax.psum(x, "data"), (16, 32)))  # devices 0 and 4 and so on
    assert found.crosses(np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    assert not found.crosses(np.array([0, 1, 2, 3, 0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,4]<=[2,2,2]T(2,1,0), x", [[0, 4, 2, 6], [1, 5, 3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2}, x", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
    ],
)
def test_groups(text, groups):
    found = hlo.replica_groups(text, 8)
    assert sorted(map(sorted, found.tolist())) == sorted(map(sorted, groups))
    assert "source" not in text or found.tolist() == groups


def test_groups_that_are_not_listed():
    np.testing.assert_array_equal(hlo.replica_groups("replica_groups={}, x", 3), [[0, 1, 2]])
    assert hlo.replica_groups("to_apply=%add", 3) is None


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,4]{1,0}", 128),
        ("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, s32[])", 16),
        ("pred[7]", 7),
        ("f8e4m3fn[16]", 16),
        ("s4[16]", 8),
        ("u32[]{:S(2)}", 4),
        ("token[]", 0),
        ("bf16[<=4,2]", 16),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.array_bytes(shape) == size


TPU = """HloModule jit_step, is_scheduled=true

%fused_computation.21 (param_0.65: bf16[1,256,256]) -> (bf16[1,256,256], bf16[1,512,256]) {
  %param_0.65 = bf16[1,256,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.33 = bf16[1,512,256]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.65), channel_id=12, replica_groups=[4,2]<=[4,2]T(1,0), dimensions={1}, metadata={op_name="jit(step)/dot"}
}

%async_collective_fusion.35 (param_0.69: bf16[1,256,256]) -> bf16[1,512,256] {
  %param_0.69 = bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.35 = bf16[1,512,256]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.69), channel_id=12, replica_groups=[4,2]<=[4,2]T(1,0), dimensions={1}
}

%all-reduce-scatter.1.clone.1 (input.4: bf16[512,256]) -> bf16[256,256] {
  %input.4 = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.10 = bf16[512,256]{1,0:T(8,128)(2,1)} all-reduce(%input.4), channel_id=8, replica_groups={{0,2},{4,6},{1,3},{5,7}}, use_global_device_ids=true, to_apply=%add.2.clone
  ROOT %dynamic-slice.55 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.10, %a, %b), dynamic_slice_sizes={256,256}
}

%body (p: (s32[], bf16[256,256])) -> (s32[], bf16[256,256]) {
  %start = (bf16[1,256,256]{2,1,0}, bf16[1,512,256]{2,1,0}) fusion(%x), kind=kCustom, calls=%fused_computation.21
  %step = bf16[1,512,256]{2,1,0} fusion(%start), kind=kOutput, calls=%async_collective_fusion.35
  %scattered = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1.clone.1
}

%condition (wide.param.1: (s32[], bf16[256,256])) -> pred[] {
  %constant.58 = s32[]{:T(128)} constant(6)
  %wide.param.1 = (s32[]{:T(128)}, bf16[256,256]{1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.220 = s32[]{:T(128)} get-tuple-element(%wide.param.1), index=0
  ROOT %lt.10 = pred[]{:T(512)} compare(%get-tuple-element.220, %constant.58), direction=LT, metadata={op_name="x"}
}

ENTRY %main.6_spmd (param.4: bf16[256,256]) -> bf16[256,256] {
  %param.4 = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(START)
  %copy.1 = s32[]{:T(128)} copy(%zero)
  %tuple.52 = (s32[]{:T(128)}, bf16[256,256]{1,0:T(8,128)(2,1)}) tuple(%copy.1, %param.4)
  %while.30 = (s32[]{:T(128)}, bf16[256,256]{1,0:T(8,128)(2,1)}) while(%tuple.52), condition=%condition, body=%body, metadata={op_name="x"}
  ROOT %result = bf16[256,256]{1,0} get-tuple-element(%while.30), index=1
}
"""


@pytest.mark.parametrize(("start", "times"), [(0, 6), (2, 4)])
def test_text_of_a_tpu(start, times):
    """Trips are read from the condition; fusions that share a collective, and the fused reduce-scatter, count once."""
    found = {c.kind: c for c in hlo.collectives(hlo.parse(TPU.replace("START", str(start))))}
    assert {kind: (c.bytes, c.size, c.count) for kind, c in found.items()} == {
        "all-gather": (512 * 256 * 2, 2, times),
        "reduce-scatter": (512 * 256 * 2, 2, times),
    }
    assert found["all-gather"].op == "jit(step)/dot"


GPU = """HloModule jit_step

ENTRY %main (p: bf16[64,256]) -> bf16[64,512] {
  %p = bf16[64,256]{0,1} parameter(0)
  %all-gather-start = (bf16[64,256]{0,1}, bf16[64,512]{0,1}) all-gather-start(%p), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={1}, use_global_device_ids=true
  %all-gather-done = bf16[64,512]{0,1} all-gather-done(%all-gather-start)
  %reduce-scatter-start.1 = ((bf16[512,256]{1,0}), bf16[256,256]{1,0}) reduce-scatter-start(%p), channel_id=13, replica_groups=[4,2]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
  %reduce-scatter-done.1 = bf16[256,256]{1,0} reduce-scatter-done(%reduce-scatter-start.1)
  %all-reduce-start = (bf16[256,256]{1,0}, f32[4]{0}) all-reduce-start(%p, %p), channel_id=8, replica_groups=[4,2]<=[2,2,2]T(2,1,0), to_apply=%add
  %collective-permute-start = (bf16[64,256]{0,1}, bf16[64,256]{0,1}, u32[], u32[]) collective-permute-start(%p), channel_id=3, source_target_pairs={{0,0},{2,4},{4,2}}
}
"""


def test_text_of_a_gpu():
    """Start forms have operands and results in their shape; only all-reduce-start has its results alone."""
    found = [(c.kind, c.bytes, c.axes(SHAPE)) for c in hlo.collectives(hlo.parse(GPU))]
    assert found == [
        ("all-gather", 64 * 512 * 2, ("tensor",)),
        ("reduce-scatter", 512 * 256 * 2, ("fsdp",)),
        ("all-reduce", 256 * 256 * 2 + 16, ("data",)),
        ("collective-permute", 64 * 256 * 2, ("data", "fsdp")),
    ]


def module_of(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return hlo.parse(jax.jit(function).lower(*arrays).compile().as_text())


def test_traffic_of_a_product():
    assert hlo.traffic(module_of(jnp.matmul, (64, 128), (128, 256))) == 4 * (64 * 128 + 128 * 256 + 64 * 256)


def test_traffic_of_a_loop_counts_slices():
    """A scan over 50 layers reads a slice of the stack in each, not the stack."""

    def layer(x, w):
        return jnp.tanh(x @ w), None

    traffic = hlo.traffic(module_of(lambda x, ws: jax.lax.scan(layer, x, ws)[0], (64, 64), (50, 64, 64)))
    once = 4 * 64 * 64
    assert 50 * 3 * once < traffic < 50 * 10 * once  # the stack in each of 50 runs would be 2,500 once


def test_fast_memory_of_a_tpu_costs_nothing():
    text = """HloModule m

ENTRY %main (p: f32[64]) -> f32[64] {
  %p = f32[64]{0:T(128)} parameter(0)
  %near = f32[64]{0:T(128)S(1)} copy(%p)
  %next = f32[64]{0:T(128)S(1)} negate(%near)
  ROOT %out = f32[64]{0:T(128)} copy(%next)
}
"""
    assert hlo.traffic(hlo.parse(text)) == 2 * 64 * 4


def test_the_scanned_stack_over_fsdp_gathers_one_layer_at_a_time():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    weights = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    rows = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))

    @functools.partial(jax.grad, argnums=1)
    def loss(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0].sum()

    with jax.set_mesh(mesh):
        module = hlo.parse(jax.jit(loss, out_shardings=weights.sharding).lower(rows, weights).compile().as_text())
    gathered = [c for c in hlo.collectives(module) if c.kind == "all-gather"]
    assert gathered and {c.count for c in gathered} == {6}
    assert max(c.bytes for c in gathered) == 64 * 64 * 4


WITH_A_KERNEL = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": 128
}}, metadata={op_name="jit(step)/while/body/kernel"}
  %sum = f32[8]{0} all-reduce(%k), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %sum)
}

ENTRY %main (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = (s32[], f32[8]{0}) parameter(0)
  ROOT %w = (s32[], f32[8]{0}) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"4"}}
}
"""


def test_the_description_of_a_kernel_ends_no_computation():
    """TPU compilers write descriptions of Pallas kernels on several lines, of which the last begins with a brace."""
    (found,) = hlo.collectives(hlo.parse(WITH_A_KERNEL))
    assert (found.kind, found.bytes, found.count) == ("all-reduce", 32, 4)


def test_a_collective_of_all_devices_counts():
    text = "HloModule jit_step, is_scheduled=true, replica_count=1, num_partitions=8\n" + WITH_A_KERNEL
    (found,) = hlo.collectives(hlo.parse(text.replace("replica_groups={{0,1}}", "replica_groups={}")))
    assert (found.size, found.sent) == (8, 2 * 7 / 8 * 32 * 4)
