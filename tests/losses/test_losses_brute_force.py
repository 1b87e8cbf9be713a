"""Every exported loss against a float64 brute force from its definition: values, gradients, weights."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_definitions import CASES as FURTHER
from loss_definitions import Case, N, log_softmax, normal, unit, weighted_mean

from ssljax import losses

# --- definitions, one example at a time, in float64 -------------------------------------------------------------------


def cross_entropy(logits, labels, w, smoothing):
    values = []
    for row, label in zip(logits, labels):
        target = np.eye(len(row))[label] if labels.ndim == 1 else label
        target = (1 - smoothing) * target + smoothing * target.sum() / len(row)
        values.append(-sum(t * lp for t, lp in zip(target, log_softmax(row))))
    return values


def linear(hidden, kernel, bias, labels, w):
    return cross_entropy(hidden @ kernel + bias, labels, w, 0.0)


def nt_xent(z1, z2, w, t):
    real = [i for i in range(len(w)) if w[i] > 0]
    views = {(v, i): unit(z[i]) for v, z in enumerate((z1, z2)) for i in range(len(w))}
    values = []
    for i in range(len(w)):
        both = []
        for v in (0, 1):
            s = {k: views[v, i] @ z / t for k, z in views.items() if k != (v, i) and k[1] in real}
            if i not in real:
                both.append(0.0)
                continue
            top = max(s.values())
            both.append(top + np.log(sum(np.exp(x - top) for x in s.values())) - s[1 - v, i])
        values.append(np.mean(both))
    return values


def clip(image, text, scale, w):
    real = [i for i in range(len(w)) if w[i] > 0]
    values = []
    for i in range(len(w)):
        if i not in real:
            values.append(0.0)
            continue
        at = real.index(i)
        row = np.array([scale * image[i] @ text[j] for j in real])
        column = np.array([scale * image[j] @ text[i] for j in real])
        values.append(-(log_softmax(row)[at] + log_softmax(column)[at]) / 2)
    return values


def siglip(image, text, scale, bias, w):
    real = [i for i in range(len(w)) if w[i] > 0]
    values = np.zeros(len(w))
    for i in real:
        for j in real:
            logit = scale * image[i] @ text[j] + bias
            label = 1 if i == j else -1
            # half of the loss of a pair belongs to the image, half to the text
            values[i] += np.log1p(np.exp(-label * logit)) / 2
            values[j] += np.log1p(np.exp(-label * logit)) / 2
    return values


def alignment(z1, z2, w):
    return [np.linalg.norm(unit(a) - unit(b)) ** 2 for a, b in zip(z1, z2)]


def uniformity(z, w):
    n, total, mass = len(z), 0.0, 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += w[i] * w[j] * np.exp(-2 * np.linalg.norm(unit(z[i]) - unit(z[j])) ** 2)
                mass += w[i] * w[j]
    return np.log(total / mass)


def feature_std(z, w):
    z = np.array([unit(x) for x in z])
    mean = sum(wi * x for wi, x in zip(w, z)) / sum(w)
    return np.sqrt(sum(wi * (x - mean) ** 2 for wi, x in zip(w, z)) / sum(w)).mean()


def effective_rank(z, w):
    s = np.linalg.svd(np.sqrt(w)[:, None] * z)[1]
    p = s / s.sum()
    return np.exp(-sum(x * np.log(x) for x in p if x > 0))


def entropy(p, w):
    return np.array([-sum(x * np.log(x) for x in row if x > 0) for row in p])


# --- table of losses --------------------------------------------------------------------------------------------------


def with_labels(rng):
    return [2 * rng.normal(size=(N, 4)), rng.integers(0, 4, N)]


def with_soft_labels(rng):
    return [2 * rng.normal(size=(N, 4)), rng.dirichlet(np.ones(4), N)]


def projection(rng):
    return [rng.normal(size=(N, 3)), rng.normal(size=(3, 7)), rng.normal(size=7), rng.integers(0, 7, N)]


def distributions(rng):
    p = rng.dirichlet(np.ones(4), N)
    p[0] = [0, 1, 0, 0]
    return [p]


def directions(rng):
    z = rng.normal(size=(2, N, 3))
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


CASES = [
    Case("cross_entropy", losses.cross_entropy, lambda x, y, w: cross_entropy(x, y, w, 0), with_labels),
    Case(
        "cross_entropy smooth",
        partial(losses.cross_entropy, smoothing=0.2),
        lambda x, y, w: cross_entropy(x, y, w, 0.2),
        with_labels,
    ),
    Case(
        "cross_entropy soft",
        partial(losses.cross_entropy, smoothing=0.2),
        lambda x, y, w: cross_entropy(x, y, w, 0.2),
        with_soft_labels,
    ),
    Case(
        "linear_cross_entropy",
        lambda h, k, b, y, **more: losses.linear_cross_entropy(h, k, y, 2, bias=b, **more),
        linear,
        projection,
        3,
        (1, 2),
    ),
    Case(
        "nt_xent",
        partial(losses.nt_xent, temperature=0.3),
        lambda a, b, w: nt_xent(a, b, w, 0.3),
        normal((N, 3), (N, 3)),
        2,
    ),
    Case(
        "nt_xent chunked",
        partial(losses.nt_xent, temperature=0.3, form="chunked", chunk=2),
        lambda a, b, w: nt_xent(a, b, w, 0.3),
        normal((N, 3), (N, 3)),
        2,
    ),
    Case(
        "clip",
        losses.clip,
        clip,
        lambda rng: [*directions(rng), np.array(5.0)],
        3,
        (2,),
    ),
    Case(
        "clip chunked",
        partial(losses.clip, form="chunked", chunk=2),
        clip,
        lambda rng: [*directions(rng), np.array(5.0)],
        3,
        (2,),
    ),
    *(
        Case(
            f"siglip {form}",
            partial(losses.siglip, form=form, chunk=2),
            siglip,
            lambda rng: [*directions(rng), np.array(5.0), np.array(-1.5)],
            4,
            (2, 3),
        )
        for form in ("dense", "chunked")
    ),
    Case("alignment", losses.alignment, alignment, normal((N, 3), (N, 3)), 2),
    Case("uniformity", losses.uniformity, uniformity, normal((N, 3)), per_example=False),
    Case("feature_std", losses.feature_std, feature_std, normal((N, 3)), per_example=False),
    Case("effective_rank", losses.effective_rank, effective_rank, normal((N, 3)), per_example=False),
    Case("entropy", lambda p, weights=None: losses.entropy(p), entropy, distributions, 0, per_example=False),
    Case(
        "alignment alpha=1",
        partial(losses.alignment, alpha=1.0),
        lambda a, b, w: np.sqrt(alignment(a, b, w)),
        normal((N, 3), (N, 3)),
        2,
    ),
    *FURTHER,
]
TESTED_ELSEWHERE = {
    "TokenScores": "a container",
    "linear_nll": "the loop of linear_cross_entropy; test_linear_cross_entropy.py",
    "patchify": "views/test_masks_and_mixing.py",
    "unpatchify": "views/test_masks_and_mixing.py",
}
WEIGHTED = [case for case in CASES if case.name != "entropy"]
WEIGHTS = np.array([1.0, 0.0, 0.5, 2.0, 0.0])


def data(case, seed=0):
    # Rounded to float32 first, so that both sides compute from equal numbers.
    return [
        a if np.issubdtype(a.dtype, np.integer) else a.astype(np.float32).astype(np.float64)
        for a in case.arrays(np.random.default_rng(seed))
    ]


def device(arrays):
    return [jnp.asarray(a, jnp.int32 if np.issubdtype(a.dtype, np.integer) else jnp.float32) for a in arrays]


@functools.cache
def program(case, what):
    """One compiled program for each case and output. Eagerly, each small operation would be compiled alone."""

    def parts(w, *a):
        return case.loss(*a, weights=w, reduce=False)

    def scalar(w, direction, *a):
        return (case.loss(*a, weights=w) * direction).sum()

    gradients = jax.value_and_grad(scalar, argnums=tuple(range(2, 2 + case.learned)))
    return jax.jit({"value": lambda w, *a: case.loss(*a, weights=w), "parts": parts, "gradients": gradients}[what])


def run(case, arrays, w, what="value"):
    return program(case, what)(jnp.asarray(w, jnp.float32), *device(arrays))


def run_gradients(case, arrays, w, direction=1.0):
    """Returns the scalar (direction . loss) and its gradients with respect to the learned arguments."""
    w, direction = jnp.asarray(w, jnp.float32), jnp.asarray(direction, jnp.float32)
    return program(case, "gradients")(w, direction, *device(arrays))


def brute_scalar(case, arrays, w):
    out = case.brute(*arrays, w)
    return weighted_mean(out, w) if case.per_example else out


def test_every_exported_loss_is_in_the_table():
    assert {case.name.split()[0] for case in CASES} | set(TESTED_ELSEWHERE) == set(losses.__all__)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(case):
    arrays = data(case)
    for w in (np.ones(N), WEIGHTS):
        expected = brute_scalar(case, arrays, w)
        np.testing.assert_allclose(run(case, arrays, w), expected, rtol=2e-5, atol=2e-6)
    if case.per_example:
        values, weights = run(case, arrays, WEIGHTS, "parts")
        expected = np.where(WEIGHTS > 0, case.brute(*arrays, WEIGHTS), 0)
        np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(weights, WEIGHTS)
    unweighted = jax.jit(case.loss)(*device(arrays))
    np.testing.assert_allclose(unweighted, brute_scalar(case, arrays, np.ones(N)), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case.learned], ids=str)
def test_gradients_equal_central_differences(case):
    arrays = data(case, seed=1)
    direction = np.random.default_rng(2).normal(size=np.shape(brute_scalar(case, arrays, WEIGHTS)))
    _, gradients = run_gradients(case, arrays, WEIGHTS, direction)
    step = 1e-6
    for k, gradient in enumerate(gradients):
        expected = np.zeros(arrays[k].shape)
        for index in np.ndindex(arrays[k].shape):
            both = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[k][index] += sign * step
                both.append((brute_scalar(case, moved, WEIGHTS) * direction).sum())
            expected[index] = (both[0] - both[1]) / (2 * step)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=2e-5 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("case", WEIGHTED, ids=str)
def test_a_row_of_weight_zero_counts_as_absent(case):
    arrays, kept = data(case), WEIGHTS > 0

    def spoil(k, a):
        if k in case.shared or np.issubdtype(a.dtype, np.integer):
            return a
        return np.where(kept.reshape(-1, *[1] * (a.ndim - 1)), a, np.nan)

    spoilt = [spoil(k, a) for k, a in enumerate(arrays)]
    dropped = [a if k in case.shared else a[kept] for k, a in enumerate(arrays)]
    with_padding, without = run(case, spoilt, WEIGHTS), run(case, dropped, WEIGHTS[kept])
    if case.name in ("sinkhorn", "assignments"):
        with_padding = with_padding[kept]
    np.testing.assert_allclose(with_padding, without, rtol=1e-5, atol=1e-6)

    if case.per_example and case.learned:
        _, gradients = run_gradients(case, spoilt, WEIGHTS)
        for k, gradient in enumerate(gradients):
            if k not in case.shared:
                assert not np.asarray(gradient)[~kept].any()
                assert np.asarray(gradient)[kept].any()


@pytest.mark.parametrize("case", [case for case in WEIGHTED if case.learned], ids=str)
def test_extreme_inputs_stay_finite(case):
    for scale in (1e4, 1e-4, 0.0):
        if scale == 0.0 and case.name in ("effective_rank", "feature_std"):
            continue  # metrics without a gradient at 0
        if scale == 1e4 and case.name in ("gaussian_nll", "vae_kl"):
            continue  # the exponential of a log variance of 10,000 is no float32
        arrays = data(case)
        arrays = [
            a if np.issubdtype(a.dtype, np.integer) or k in case.shared else a * scale for k, a in enumerate(arrays)
        ]
        value, gradients = run_gradients(case, arrays, WEIGHTS)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("case", [case for case in CASES if case.per_example and case.learned], ids=str)
def test_a_batch_of_weight_zero_has_loss_zero(case):
    value, gradients = run_gradients(case, data(case), np.zeros(N))
    assert value == 0
    assert not any(np.asarray(g).any() for g in gradients)


@pytest.mark.parametrize("bad", [-1, 3])
@pytest.mark.parametrize("fused", [False, True])
def test_a_label_out_of_range_gives_nan_unless_its_weight_is_zero(bad, fused):
    logits, labels = jnp.ones((2, 3)), jnp.array([0, bad])

    def loss(x, weights=None):
        if fused:
            return losses.linear_cross_entropy(x, jnp.eye(3), labels, weights=weights)
        return losses.cross_entropy(x, labels, weights=weights)

    assert np.isnan(loss(logits))
    value, gradient = jax.value_and_grad(loss)(logits, jnp.array([1.0, 0.0]))
    assert np.isfinite(value) and np.isfinite(gradient).all()
