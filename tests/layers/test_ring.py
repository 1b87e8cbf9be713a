"""Ring attention on meshes that split the length, against the plain kernel without a mesh: values and gradients."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.layers import attention
from ssljax.layers.attention import attend
from ssljax.layers.masks import Blocks, Causal, Full, Given, Keys, Prefix, Segments, Sliding

B, T, K = 2, 96, 8
RNG = np.random.default_rng(0)
IDS = jnp.asarray(np.stack([np.repeat([1, 2, 0], [40, 50, 6]), np.repeat([3, 0, 1], [7, 60, 29])]), jnp.int32)
VALID = jnp.asarray(RNG.random((B, T)) < 0.5).at[1].set(False)
TABLE = jnp.asarray(RNG.random((4, 4)) < 0.5)
MASKS = {
    "full": Full(),
    "causal": Causal(),
    "prefix": Prefix(9),
    "prefixes": Prefix(jnp.int32([5, 77])),
    "window of a device's length": Sliding(T // 4),
    "window of one more": Sliding(T // 4 + 2),
    "window of one token": Sliding(1),
    "window longer than the sequence": Sliding(2 * T),
    "window on both sides": Sliding(20, causal=False),
    "blocks": Blocks(24, TABLE),
    "segments": Segments(IDS),
    "keys, none in one row": Keys(VALID),
    "causal segments": Causal() & Segments(IDS),
    "causal window in segments": Sliding(30) & Segments(IDS),
    "three": Prefix(9) & Segments(IDS) & Keys(VALID),
}
MESHES = {
    "context": {"data": 1, "context": 4},
    "with data": {"data": 2, "context": 4},
    "with tensor": {"data": 1, "fsdp": 2, "tensor": 2, "context": 2},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes blocks so small that a device has several, the last one padded."""
    monkeypatch.setattr(attention, "BLOCK", 10)


def inputs(heads=2, groups=2, batch=B, t=T, s=T):
    shapes = [(batch, t, heads, K), (batch, s, groups, K), (batch, s, groups, K), (batch, t, heads, K)]
    return [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in shapes]


def make_mesh(sizes):
    count = int(np.prod(list(sizes.values())))
    return parallel.make_mesh(parallel.MeshConfig(**sizes), jax.devices()[:count])


def both(kernel, mask, cap, q, k, v, do):
    call = functools.partial(attend, mask=mask, scale=0.3, cap=cap, kernel=kernel, strict=kernel == "ring")
    out, vjp = jax.vjp(call, q, k, v)
    return out, *vjp(do)


def compare(sizes, mask, arrays, cap=None):
    plain = jax.jit(functools.partial(both, "xla", mask, cap))(*arrays)
    with parallel.mesh_context(make_mesh(sizes)):
        ours = jax.jit(functools.partial(both, "ring", mask, cap))(*arrays)
    for name, got, want in zip(("out", "dq", "dk", "dv"), ours, plain):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    compare(MESHES["context"], MASKS[name], inputs())


@pytest.mark.parametrize(("heads", "groups", "cap"), [(4, 2, None), (3, 1, 2.0)])
@pytest.mark.parametrize("sizes", [MESHES["with data"], MESHES["with tensor"]])
def test_meshes_groups_and_cap(sizes, heads, groups, cap):
    """Three heads that share one group are replicated over the axis tensor."""
    compare(sizes, Causal() & Segments(IDS), inputs(heads, groups), cap)


@pytest.mark.parametrize(("name", "t", "s"), [("full", 32, 96), ("full", 96, 32), ("keys, none in one row", 32, 96)])
def test_queries_and_keys_of_different_lengths(name, t, s):
    compare(MESHES["context"], MASKS[name], inputs(t=t, s=s))


def compiled(kernel, mask, arrays, sizes):
    """The compiled forward and backward pass of one attention whose arrays are split by length."""
    mesh = make_mesh(sizes)
    split = jax.NamedSharding(mesh, jax.P(None, "context"))
    with parallel.mesh_context(mesh):
        function = jax.jit(functools.partial(both, kernel, mask, None), in_shardings=split, out_shardings=split)
        return function.lower(*arrays).compile()


def test_no_device_gathers_the_sequence():
    shapes = [jax.ShapeDtypeStruct((1, 8192, 2, K), jnp.float32)] * 4
    ring, plain = (compiled(kernel, Causal(), shapes, {"data": 1, "context": 8}) for kernel in ("ring", "blockwise"))
    assert "all-gather" not in ring.as_text() and "collective-permute" in ring.as_text()
    assert "all-gather" in plain.as_text()
    assert 3 * ring.memory_analysis().temp_size_in_bytes < plain.memory_analysis().temp_size_in_bytes


def test_a_causal_window_shortens_the_way_of_the_keys(monkeypatch):
    """The loop over devices has as many turns as the window reaches other devices."""
    monkeypatch.setattr(attention, "BLOCK", T // 4)  # no loops over blocks

    def turns(window):
        text = compiled("ring", Sliding(window), inputs(), MESHES["context"]).as_text()
        return {int(n) for n in re.findall(r'known_trip_count":\{"n":"(\d+)"\}', text)}

    assert 3 in turns(2 * T)
    assert 3 not in turns(T // 4)


def test_refusals(caplog):
    q, k, v, _ = inputs()
    with pytest.raises(UserError, match=r"'ring' can't be used: the mesh does not split the length \(mesh\.context\)"):
        attend(q, k, v, Full(), kernel="ring", strict=True)
    with parallel.mesh_context(make_mesh(MESHES["context"])):
        with pytest.raises(UserError, match=r"94 queries and 96 keys are not multiples of mesh\.context=4"):
            attend(q[:, :94], k, v, Full(), strict=True)
        with pytest.raises(UserError, match="the mask is an array"):
            attend(q, k, v, Given(jnp.ones((1, 1, T, T), bool)), strict=True)
        with pytest.raises(UserError, match="logits have a bias"):
            attend(q, k, v, Full(), bias=jnp.zeros((1, 2, T, T)), strict=True)
        attention._log_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            attend(q, k, v, Full(), bias=jnp.zeros((1, 2, T, T)))
    assert "not ring: logits have a bias" in caplog.text
