"""Every kernel, with masks, types, groupings and lengths, against attention in float64: values and gradients."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absent_hardware import needs_gpu

from ssljax.base.errors import UserError
from ssljax.layers import attention
from ssljax.layers.attention import KERNELS, HeadMixing, LogitTransform, attend
from ssljax.layers.masks import Blocks, Causal, Full, Keys, Prefix, Segments, Sliding, materialize, may_be_empty
from ssljax.parallel import MeshConfig, batch_sharding, make_mesh, mesh_context, platform
from ssljax.parallel.topology import topology

B, T, K = 2, 130, 8
RNG = np.random.default_rng(0)
IDS = np.tile(np.repeat(np.int32([1, 2, 3, 0]), [40, 30, 50, 10]), (B, 1))
IDS[1, 50:] = 0  # a row that is mostly padding
VALID = RNG.random((B, T)) < 0.5
VALID[1, :3] = False  # with a causal mask the first queries of this row have no key at all
EMPTY = np.zeros((B, T), bool)
LENGTHS = np.array([5, 77], np.int32)
TABLE = RNG.random((6, 6)) < 0.4
TABLE[3] = False


def segments(b, i, j):
    return IDS[b, i] == IDS[b, j] and IDS[b, j] != 0


# name: (description, the definition for one pair)
MASKS = {
    "full": (Full(), lambda b, i, j: True),
    "causal": (Causal(), lambda b, i, j: j <= i),
    "prefix": (Prefix(9), lambda b, i, j: j <= i or j < 9),
    "prefixes": (Prefix(jnp.array(LENGTHS)), lambda b, i, j: j <= i or j < LENGTHS[b]),
    "sliding": (Sliding(7), lambda b, i, j: 0 <= i - j < 7),
    "sliding_symmetric": (Sliding(7, causal=False), lambda b, i, j: abs(i - j) < 7),
    "blocks": (Blocks(24, jnp.array(TABLE)), lambda b, i, j: TABLE[i // 24, j // 24]),
    "segments": (Segments(jnp.array(IDS)), segments),
    "keys": (Keys(jnp.array(VALID)), lambda b, i, j: VALID[b, j]),
    "nothing": (Keys(jnp.array(EMPTY)), lambda b, i, j: False),
    "causal_segments": (Causal() & Segments(jnp.array(IDS)), lambda b, i, j: j <= i and segments(b, i, j)),
    "causal_keys": (Full() & Keys(jnp.array(VALID)) & Causal(), lambda b, i, j: j <= i and VALID[b, j]),
    "three": (
        Prefix(9) & Segments(jnp.array(IDS)) & Keys(jnp.array(VALID)),
        lambda b, i, j: (j <= i or j < 9) and segments(b, i, j) and VALID[b, j],
    ),
}


def allowed(name, t=T, s=T):
    pair = MASKS[name][1]
    return np.array([[[[pair(b, i, j) for j in range(s)] for i in range(t)]] for b in range(B)])


def reference(q, k, v, do, mask, scale):
    """Attention and its gradients in float64 from the definition; a row without keys is 0."""
    q, k, v, do = (np.asarray(a, np.float64) for a in (q, k, v, do))
    heads, groups = q.shape[2], k.shape[2]
    kr, vr = (np.repeat(a, heads // groups, axis=2) for a in (k, v))
    s = np.where(mask, scale * np.einsum("bthk,bshk->bhts", q, kr), -np.inf)
    with np.errstate(invalid="ignore"):
        p = np.where(mask, np.exp(s - s.max(-1, keepdims=True)), 0)
    p = p / np.where(p.sum(-1, keepdims=True) == 0, 1, p.sum(-1, keepdims=True))
    out = np.einsum("bhts,bshk->bthk", p, vr)
    dp = np.einsum("bthk,bshk->bhts", do, vr)
    ds = scale * p * (dp - (dp * p).sum(-1, keepdims=True))
    dq = np.einsum("bhts,bshk->bthk", ds, kr)
    dk, dv = np.einsum("bhts,bthk->bshk", ds, q), np.einsum("bhts,bthk->bshk", p, do)
    fold = [a.reshape(*a.shape[:2], groups, heads // groups, -1).sum(3) for a in (dk, dv)]
    return out, dq, *fold


def inputs(heads, groups, t=T, s=T, dtype="float32"):
    shapes = [(B, t, heads, K), (B, s, groups, K), (B, s, groups, K), (B, t, heads, K)]
    return [jnp.asarray(RNG.normal(size=shape), dtype) for shape in shapes]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes blocks so small that the sequences of the tests have several."""
    monkeypatch.setattr(attention, "BLOCK", 48)


def check(kernel, name, heads, groups, t=T, s=T, dtype="float32", scale=0.3):
    q, k, v, do = inputs(heads, groups, t, s, dtype)
    mask = MASKS[name][0]
    reason = KERNELS[kernel].refuses_platform(platform()) or KERNELS[kernel].refuses(
        q, k, v, mask, LogitTransform(scale)
    )
    if reason is not None:
        pytest.skip(f"{kernel}: {reason}")

    @jax.jit
    def run(q, k, v, do):
        out, vjp = jax.vjp(lambda *a: attend(*a, mask, scale=scale, kernel=kernel, strict=True), q, k, v)
        return out, *vjp(do)

    tolerance = 2e-5 if dtype == "float32" else 5e-2
    for part, got, want in zip(
        ("out", "dq", "dk", "dv"), run(q, k, v, do), reference(q, k, v, do, allowed(name, t, s), scale)
    ):
        assert got.dtype == dtype and np.isfinite(np.asarray(got, np.float32)).all()
        np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=tolerance, rtol=tolerance, err_msg=part)


@pytest.mark.parametrize("kernel", ["xla", "blocked_causal"])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("rows", [1, B])
def test_biased_and_capped_logits(kernel, cap, rows):
    """softmax(cap tanh(scale q k / cap) + bias) v in float64, by central differences along random directions."""
    q, k, v, do = inputs(4, 2)
    bias = jnp.asarray(RNG.normal(size=(rows, 4, T, T)), jnp.float32)
    mask = Causal() & Keys(jnp.array(VALID))

    def definition(q, k, v, bias):
        kr, vr = (np.repeat(a, 2, axis=2) for a in (k, v))
        s = 0.3 * np.einsum("bthk,bshk->bhts", q, kr)
        s = np.where(allowed("causal_keys"), (s if cap is None else cap * np.tanh(s / cap)) + bias, -np.inf)
        with np.errstate(invalid="ignore"):
            p = np.where(allowed("causal_keys"), np.exp(s - s.max(-1, keepdims=True)), 0)
        total = p.sum(-1, keepdims=True)
        return np.einsum("bhts,bshk->bthk", p / np.where(total == 0, 1, total), vr)

    def ours(q, k, v, bias):
        return attend(q, k, v, mask, scale=0.3, bias=bias, cap=cap, kernel=kernel, strict=True)

    exact = [np.asarray(a, np.float64) for a in (q, k, v, bias)]
    out, vjp = jax.vjp(jax.jit(ours), q, k, v, bias)
    np.testing.assert_allclose(out, definition(*exact), atol=2e-5, rtol=2e-5)
    for i, grad in enumerate(vjp(do)):
        way = RNG.normal(size=exact[i].shape)
        ends = [definition(*exact[:i], exact[i] + step * way, *exact[i + 1 :]) for step in (1e-5, -1e-5)]
        slope = np.vdot(ends[0] - ends[1], np.asarray(do, np.float64)) / 2e-5
        np.testing.assert_allclose(np.vdot(np.asarray(grad, np.float64), way), slope, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kernel", ["xla", "blocked_causal"])
def test_talking_heads(kernel):
    """Logits and weights are mixed over all heads, also with grouped keys; a query without keys has output zero."""
    q, k, v, do = inputs(4, 2)
    mix = HeadMixing(*(jnp.asarray(np.eye(4) + 0.5 * RNG.normal(size=(4, 4)), jnp.float32) for _ in range(2)))
    mask = Causal() & Keys(jnp.array(VALID))
    seen = allowed("causal_keys")

    def definition(q, k, v, before, after):
        s = 0.3 * np.einsum("bthk,bshk->bhts", q, np.repeat(k, 2, axis=2))
        p = np.where(seen, np.exp(np.einsum("bhts,hn->bnts", s, before)), 0)
        total = p.sum(-1, keepdims=True)
        p = np.einsum("bhts,hn->bnts", p / np.where(total == 0, 1, total), after)
        return np.einsum("bhts,bshk->bthk", p, np.repeat(v, 2, axis=2))

    exact = [np.asarray(a, np.float64) for a in (q, k, v, *mix)]
    ours = lambda q, k, v, *m: attend(q, k, v, mask, scale=0.3, mix=HeadMixing(*m), kernel=kernel, strict=True)  # noqa: E731
    out, vjp = jax.vjp(jax.jit(ours), q, k, v, *mix)
    np.testing.assert_allclose(out, definition(*exact), atol=2e-5, rtol=2e-5)
    assert not np.asarray(out[1, :3]).any()
    for i, grad in enumerate(vjp(do)):
        way = RNG.normal(size=exact[i].shape)
        ends = [definition(*exact[:i], exact[i] + step * way, *exact[i + 1 :]) for step in (1e-5, -1e-5)]
        slope = np.vdot(ends[0] - ends[1], np.asarray(do, np.float64)) / 2e-5
        np.testing.assert_allclose(np.vdot(np.asarray(grad, np.float64), way), slope, rtol=1e-3, atol=1e-2)


FEW = ("full", "causal_keys", "three", "nothing")  # the other masks of this kernel follow under `full`
PAIRS = [
    pytest.param(kernel, name, marks=pytest.mark.full if kernel == "blockwise" and name not in FEW else ())
    for kernel in KERNELS
    for name in MASKS
]


@pytest.mark.parametrize(("kernel", "name"), PAIRS)
def test_every_kernel_and_mask(kernel, name):
    check(kernel, name, heads=2, groups=1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouping_and_types(kernel, heads, groups, dtype):
    check(kernel, "causal_segments", heads, groups, dtype=dtype)


@pytest.mark.full
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_whole_product(kernel, name, heads, groups, dtype):
    check(kernel, name, heads, groups, dtype=dtype)


def test_blockwise_stores_no_square_of_logits():
    """Forward and backward, no array has the size of 4,096 x 4,096 logits (64 MiB a head); the plain kernel has one."""
    shape = jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)

    def largest(kernel):
        def loss(q, k, v):
            return jnp.sum(attend(q, k, v, Full(), kernel=kernel, strict=True))

        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*[shape] * 3).compile().memory_analysis().temp_size_in_bytes

    assert largest("blockwise") < 4 * 2**20 < 64 * 2**20 < largest("xla")


@pytest.mark.parametrize("cap", [None, 1.5])
def test_blockwise_equals_the_plain_kernel_under_a_cap(cap):
    q, k, v, do = inputs(4, 2)
    mask = Causal() & Segments(jnp.array(IDS))

    def run(kernel):
        out, vjp = jax.vjp(lambda *a: attend(*a, mask, scale=2.0, cap=cap, kernel=kernel, strict=True), q, k, v)
        return out, *vjp(do)

    for got, want in zip(jax.jit(lambda: run("blockwise"))(), jax.jit(lambda: run("xla"))()):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(("name", "t", "s"), [("full", 1, 5), ("causal", 5, 3), ("prefix", 12, 20)])
def test_queries_and_keys_of_different_lengths(name, t, s):
    check("xla", name, 2, 2, t, s)


def test_rows_without_keys_are_zero():
    q, k, v, _ = inputs(2, 2)
    out = attend(q, k, v, MASKS["causal_keys"][0], kernel="xla")
    assert not np.asarray(out[1, :3]).any() and np.asarray(out[1, 10:]).any()


@pytest.mark.parametrize("name", MASKS)
def test_materialize(name):
    got = np.asarray(materialize(MASKS[name][0], T, T))
    assert got.dtype == bool and got.shape[1:] == (1, T, T)
    np.testing.assert_array_equal(np.broadcast_to(got, (B, 1, T, T)), allowed(name))
    if not may_be_empty(MASKS[name][0]):
        assert got.any(-1).all()


def test_conjunction_is_flat_and_idempotent():
    assert isinstance(Full() & Full(), Full) and isinstance(Causal() & Full() & Causal(), Causal)
    mask = Causal() & Keys(jnp.array(VALID))
    assert len((mask & mask).parts) == 2
    assert len(jax.tree.leaves(mask)) == 1, "masks are pytrees: arrays inside may be traced"


def test_extreme_logits_are_finite():
    q, k, v, do = inputs(2, 2)
    gradient = jax.jit(jax.grad(lambda qkv: jnp.vdot(attend(*qkv, Causal(), scale=1e4, kernel="xla"), do)))
    assert all(np.isfinite(a).all() for a in gradient((q, k, v)))


def test_choice_of_kernel(caplog, monkeypatch):
    attention._log_once.cache_clear()
    attention._chosen.clear()
    monkeypatch.setattr(attention, "BLOCK", 512)
    q, k, v, _ = inputs(2, 2)
    with caplog.at_level(logging.DEBUG, logger=attention.__name__):
        for _ in range(2):
            attend(q, k, v, Causal())
        attend(q, k, v, Full())
        attend(q, k, v, Full(), kernel="blocked_causal")
        for _ in range(2):
            attention.log_choices()
    said = [r.getMessage() for r in caplog.records]
    assert said == [
        "not blocked_causal: the mask is not causal",
        "not blockwise: 130 queries and 130 keys are fewer than 1024",
        "not blocked_causal: the mask is not causal",  # asked for by name: said again, as a warning
        "attention on cpu: blocked_causal",
        "attention on cpu: xla",
    ]
    assert caplog.records[2].levelno == logging.WARNING


def test_strict_and_unknown_kernels():
    q, k, v, _ = inputs(2, 2)
    attend(q, k, v, Full(), strict=True)  # a CPU has no fused kernel
    with pytest.raises(UserError, match="'blocked_causal' can't be used: the mask is not causal"):
        attend(q, k, v, Full(), kernel="blocked_causal", strict=True)
    with pytest.raises(UserError, match="'cudnn' can't be used: it needs an NVIDIA GPU"):
        attend(q, k, v, Full(), kernel="cudnn", strict=True)
    with pytest.raises(UserError, match="did you mean 'cudnn'"):
        attend(q, k, v, Full(), kernel="cudn")


def test_the_fused_kernel_refuses_unsupported_requests(monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    refuses = KERNELS["cudnn"].refuses
    q, k, v, _ = inputs(2, 2, dtype="bfloat16")
    assert (
        refuses(q, k, v, Causal(), LogitTransform(1.0)) is None
        and refuses(q, k, v, Full(), LogitTransform(1.0)) is None
    )
    for name in set(MASKS) - {"causal", "full"}:
        assert "is not full or causal" in refuses(q, k, v, MASKS[name][0], LogitTransform(1.0))
    f32 = [a.astype("float32") for a in (q, k, v)]
    assert "float32 is not" in refuses(*f32, Full(), LogitTransform(1.0))
    assert "7 queries" in refuses(q[:, :7], k, v, Causal(), LogitTransform(1.0))
    assert refuses(q, k, v, Full(), LogitTransform(1.0, jnp.zeros((1, 2, T, T)))) == "logits have a bias"
    assert refuses(q, k, v, Full(), LogitTransform(1.0, None, 30.0)) == "logits are capped"
    mix = HeadMixing(jnp.eye(2), jnp.eye(2))
    assert refuses(q, k, v, Full(), LogitTransform(1.0, mix=mix)) == "heads are mixed (talking_heads)"
    assert "head width 6" in refuses(q[..., :6], k[..., :6], v[..., :6], Full(), LogitTransform(1.0))
    with pytest.raises(UserError, match="mask Sliding"):
        attend(q, k, v, Sliding(3), strict=True)


@pytest.mark.parametrize("lengths", [(7, 7), (7, 8), (8, 7), (8, 8)])
@pytest.mark.parametrize("mask", [Full(), Causal()])
def test_odd_lengths_are_padded_for_cudnn(monkeypatch, lengths, mask):
    """cuDNN's backward pass refuses odd lengths; here XLA stands in for it. Values and gradients do not change."""
    if isinstance(mask, Causal) and lengths[0] != lengths[1]:
        pytest.skip("cuDNN has no causal mask with different lengths")
    theirs, seen = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, *, implementation, **options):
        seen.append((implementation, q.shape[1] % 2, k.shape[1] % 2))
        return theirs(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v, _ = inputs(4, 2)
    q, k, v = q[:, : lengths[0]], k[:, : lengths[1]], v[:, : lengths[1]]

    def value(run):
        return jax.value_and_grad(lambda q, k, v: jnp.sum(jnp.sin(run(q, k, v, mask, LogitTransform(0.3)))), (0, 1, 2))

    got, want = (value(KERNELS[name].run)(q, k, v) for name in ("cudnn", "xla"))
    assert seen == [("cudnn", 0, 0)]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        # The value, a sum of size 40, was seen 4 units in the last place apart: padding changes the order of sums.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)


@pytest.mark.full
@needs_gpu
def test_cudnn_compiles_with_odd_lengths():
    """A vision transformer with a class token has 197 tokens."""
    mesh = make_mesh(MeshConfig(), topology("h100:8").devices)
    z = jax.ShapeDtypeStruct((16, 197, 4, 64), jnp.bfloat16, sharding=batch_sharding(mesh))

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v, Full(), strict=True).astype(jnp.float32))

    with mesh_context(mesh), jax.default_matmul_precision("default"):
        lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(z, z, z)
        assert "cudnn" in lowered.as_text() and lowered.compile()
