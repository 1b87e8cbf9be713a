"""Contrastive losses in chunks and on several devices equal the dense form, with less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from daily import daily
from jax.sharding import AxisType, PartitionSpec
from loss_definitions import decoupled, info_nce
from programs import largest_array
from test_losses_brute_force import clip, nt_xent, siglip

from ssljax import losses
from ssljax.base.errors import UserError
from ssljax.losses.pairs import LogSumExp, Side, negatives_of

N, D = 16, 6
SCALE, BIAS = 5.0, -1.5
# (loss of two sets of vectors and learned numbers, definition in float64, learned numbers)
LOSSES = {
    "nt_xent": (
        lambda a, b, s, **k: losses.nt_xent(a, b, temperature=1 / s, **k),
        lambda a, b, s, w: nt_xent(a, b, w, 1 / s),
        (SCALE,),
    ),
    "decoupled": (
        lambda a, b, s, **k: losses.decoupled_contrastive(a, b, temperature=1 / s, weighted=True, **k),
        lambda a, b, s, w: decoupled(a, b, w, 1 / s, True),
        (SCALE,),
    ),
    "info_nce": (
        lambda a, b, s, **k: losses.info_nce(a, b, temperature=1 / s, **k),
        lambda a, b, s, w: info_nce(a, b, w, 1 / s),
        (SCALE,),
    ),
    "clip": (losses.clip, clip, (SCALE,)),
    "siglip": (losses.siglip, siglip, (SCALE, BIAS)),
}
# Mesh axes, those that split the batch, check_vma of shard_map. One mesh has an axis that the batch does not use.
MESHES = {
    "data": ({"data": 4}, "data", False),
    "data, fsdp and tensor": ({"data": 2, "fsdp": 2, "tensor": 2}, ("data", "fsdp"), True),
}


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, N, D))
    z[1] += 2 * z[0] * (np.arange(N) % 3 == 0)[:, None]  # so that some partners are the most similar
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return *jnp.asarray(z, jnp.float32), jnp.asarray(rng.integers(0, 3, N), jnp.float32)


def close(actual, expected, tolerance=2e-6):
    # The tolerance scales with the largest entry: gradients are differences of terms of that size.
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * float(jnp.abs(e).max())),
        actual,
        expected,
    )


def on_mesh(name, mesh, form, chunk):
    """The loss as a function of the global batch, under `shard_map`; arguments as of `single`."""
    axes, batch, check = MESHES[mesh]
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices)
    options = {"form": form, "axis_name": batch, "chunk": chunk}

    def run(a, b, learned, weights, reduce):
        keywords = {"reduce": True} if reduce else {"reduce": False, "accuracy": True}
        rows, every = PartitionSpec(batch), PartitionSpec()
        return jax.shard_map(
            lambda a, b, s, w: LOSSES[name][0](a, b, *s, weights=w, **keywords, **options),
            mesh=mesh,
            in_specs=(rows, rows, every, None if weights is None else rows),
            out_specs=every if reduce else rows,
            check_vma=check,
        )(a, b, learned, weights)

    return run


def single(name, form="dense", chunk=N):
    """The loss of the global batch in one place."""

    def run(a, b, learned, weights, reduce):
        keywords = {"reduce": True} if reduce else {"reduce": False, "accuracy": True}
        return LOSSES[name][0](a, b, *learned, weights=weights, form=form, chunk=chunk, **keywords)

    return run


def measured(run, weighted, reduce=False):
    """Loss, correctness and gradients with respect to both sets of vectors and the learned numbers."""
    a, b, weights = problem()

    def value(a, b, learned):
        found = run(a, b, learned, weights if weighted else None, reduce)
        if reduce:
            return found, ()
        values, w, correct = found
        return (values * w * jnp.cos(jnp.arange(N))).sum(), (values, w, correct)  # each example has its own cotangent

    return lambda learned: jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))(a, b, learned)


@functools.cache
def dense(name, weighted, reduce=False):
    return measured(single(name), weighted, reduce)(LOSSES[name][2])


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_dense_form_equals_the_definition(name):
    (_, (values, weights, correct)), _ = dense(name, True)
    _, brute, learned = LOSSES[name]
    a, b, w = (np.asarray(x, np.float64) for x in problem())
    np.testing.assert_allclose(values, np.where(w > 0, brute(a, b, *learned, w), 0), rtol=2e-5)
    np.testing.assert_array_equal(weights, w)
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
    others = lambda s: np.where((w > 0)[None] & ~np.eye(N, dtype=bool), s, -np.inf).max(1)  # noqa: E731
    rivals = [np.maximum(others(a @ b.T), others(a @ a.T)), np.maximum(others(b @ a.T), others(b @ b.T))]
    if name not in ("nt_xent", "decoupled"):
        rivals = [others(a @ b.T), others(b @ a.T)][: 1 if name == "info_nce" else 2]
    expected = np.mean([(a * b).sum(1) > rival for rival in rivals], 0) * (w > 0)
    assert set(expected) == ({0, 1} if name == "info_nce" else {0, 0.5, 1})
    np.testing.assert_array_equal(correct, expected)


@pytest.mark.parametrize(("name", "chunk"), [("nt_xent", 5), ("clip", 8), ("siglip", 1), ("siglip", 100)])
def test_chunks_equal_the_dense_form(name, chunk):
    """Chunks that divide the batch, that do not, of one example, and larger than the batch."""
    close(measured(single(name, "chunked", chunk), chunk != 8)(LOSSES[name][2]), dense(name, chunk != 8))


ON_A_MESH = [(name, form) for name in LOSSES for form in ("chunked", "ring")]


@pytest.mark.parametrize(("name", "form"), ON_A_MESH)
def test_a_mesh_with_other_axes_equals_one_device(name, form):
    mesh = "data, fsdp and tensor"
    tolerance = 2e-5 if name == "info_nce" else 2e-6  # its derivative by the scale is a small difference of sums
    close(measured(on_mesh(name, mesh, form, 3), True)(LOSSES[name][2]), dense(name, True), tolerance)


@pytest.mark.parametrize(("name", "form"), daily(ON_A_MESH, 2))
def test_a_mesh_of_one_axis_without_weights_equals_one_device(name, form):
    close(measured(on_mesh(name, "data", form, 3), False)(LOSSES[name][2]), dense(name, False))


@pytest.mark.parametrize("mesh", list(MESHES))
def test_the_mean_over_several_devices_is_that_of_the_global_batch(mesh):
    close(measured(on_mesh("siglip", mesh, "ring", 8), True, True)((SCALE, BIAS)), dense("siglip", True, True))


@pytest.mark.parametrize("name", list(LOSSES))
def test_chunks_store_no_matrix_of_pairs(name):
    a, b, _ = problem()

    def size(form):
        loss = lambda a, b: single(name, form, 4)(a, b, LOSSES[name][2], None, True)  # noqa: E731
        return largest_array(jax.make_jaxpr(jax.grad(loss, (0, 1)))(a, b).jaxpr)

    assert size("dense") >= N * N  # the check finds the matrix
    assert size("chunked") <= 2 * N * D


def test_not_a_number_in_padding_changes_nothing():
    a, b, weights = problem()
    spoilt = jnp.where((weights > 0)[:, None], a, jnp.nan)
    for form in ("dense", "chunked"):
        run = lambda a, form=form: single("clip", form, 5)(a, b, (SCALE,), weights, True)  # noqa: E731
        value, gradient = jax.jit(jax.value_and_grad(run))(spoilt)
        np.testing.assert_allclose(value, dense("clip", True, True)[0][0], rtol=1e-6)
        assert np.isfinite(gradient).all()


def test_equal_vectors_are_no_correct_answers():
    z = jnp.full((N, D), 0.3)
    found = jax.jit(lambda z: [single(name)(z, z, LOSSES[name][2], None, False)[2] for name in LOSSES])(z)
    assert not np.any(found)


def test_the_dense_form_has_no_devices():
    side = Side(jnp.ones((2, 2)), jnp.arange(2))
    with pytest.raises(UserError, match="form: got 'dense' with axis_name 'data', must be 'chunked' or 'ring'"):
        negatives_of(LogSumExp, side, None, form="dense", axis_name="data")


def test_two_equal_views_of_orthogonal_examples():
    # Positives at cosine 1, all 2N - 2 negatives at cosine 0: log(1 + (2N - 2) exp(-1 / t)).
    z, t = jnp.eye(4), 0.5
    np.testing.assert_allclose(losses.nt_xent(z, z, temperature=t), np.log(1 + 6 * np.exp(-1 / t)), rtol=1e-6)
