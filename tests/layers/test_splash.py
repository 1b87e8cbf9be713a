"""The TPU kernel, in interpreter mode, against the plain kernel: values and gradients, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import parallel
from ssljax.layers.attention import LogitTransform, attend, choose
from ssljax.layers.masks import Blocks, Causal, Full, Keys, Prefix, Segments, Sliding
from ssljax.layers.splash import attend_splash, refuses

B, T, K = 2, 256, 16
RNG = np.random.default_rng(0)
IDS = jnp.asarray(np.stack([np.repeat([1, 2, 0], [100, 120, 36]), np.repeat([3, 0, 1], [7, 200, 49])]), jnp.int32)
VALID = jnp.asarray(RNG.random((B, T)) < 0.5).at[1].set(False)
MASKS = {
    "full": Full(),
    "causal": Causal(),
    "sliding": Sliding(70),
    "sliding on both sides": Sliding(70, causal=False),
    "segments": Segments(IDS),
    "causal segments": Causal() & Segments(IDS),
    "sliding segments": Sliding(9) & Segments(IDS),
    "keys, none in one row": Keys(VALID),
}


def inputs(heads, groups, batch=B):
    shapes = [(batch, T, heads, K), (batch, T, groups, K), (batch, T, groups, K), (batch, T, heads, K)]
    return [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in shapes]


def compare(mask, q, k, v, do, cap=None, around=lambda f: f):
    def run(attention):
        def both(q, k, v, do):
            out, vjp = jax.vjp(attention, q, k, v)
            return out, *vjp(do)

        return around(jax.jit(both))(q, k, v, do)

    assert refuses(q, k, v, mask) is None
    ours = run(lambda *a: attend_splash(*a, mask, scale=0.3, cap=cap, interpret=True))
    plain = run(lambda *a: attend(*a, mask, scale=0.3, cap=cap, kernel="xla"))
    for name, got, want in zip(("out", "dq", "dk", "dv"), ours, plain):
        np.testing.assert_allclose(got, want, atol=3e-5, rtol=3e-5, err_msg=name)


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    compare(MASKS[name], *inputs(2, 2))


@pytest.mark.parametrize(("heads", "groups", "cap"), [(4, 2, None), (3, 1, None), (2, 2, 2.0)])
def test_groups_and_cap(heads, groups, cap):
    compare(Causal() & Segments(IDS), *inputs(heads, groups), cap=cap)


@pytest.mark.parametrize("groups", [4, 1])
def test_on_a_mesh(groups):
    """Each device computes its rows and heads; a single group of keys is replicated."""
    mesh = parallel.make_mesh(parallel.MeshConfig(2, 2, 2), jax.devices()[:8])

    def around(run):
        def inside(*arguments):
            with parallel.mesh_context(mesh):
                return run(*arguments)

        return inside

    ids = jnp.concatenate([IDS, IDS])
    compare(Causal() & Segments(ids), *inputs(4, groups, batch=4), around=around)


@pytest.mark.parametrize(
    ("mask", "length", "reason"),
    [
        (Prefix(3), T, "mask Prefix is none of"),
        (Blocks(128, jnp.ones((2, 2), bool)), T, "mask Blocks is none of"),
        (Causal() & Keys(VALID), T, "may leave a query without keys"),
        (Segments(IDS, IDS), T, "queries and keys have different segments"),
        (Segments(IDS) & Segments(IDS + 1), T, "two masks of segments"),
        (Full(), 200, "200 queries and 200 keys are not multiples of 128"),
    ],
)
def test_unsupported_requests_are_refused(mask, length, reason):
    q, k, v, _ = (x[:, :length] for x in inputs(2, 2))
    assert reason in refuses(q, k, v, mask)


def test_it_is_first_on_a_tpu_and_refused_elsewhere():
    q, k, v, _ = inputs(2, 2)
    assert choose(q, k, v, Full(), LogitTransform(1.0), platform="tpu") == ("splash", {})
    elsewhere = choose(q, k, v, Full(), LogitTransform(1.0), platform="cpu", kernel="splash")
    assert elsewhere.name == "xla" and elsewhere.refused["splash"] == "it needs a TPU"
