"""Every exported loss against a float64 brute force from its definition: values, gradients, weights."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses

N = 5


# --- definitions, one example at a time, in float64 -------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def unit(x):
    return x / np.linalg.norm(x)


def weighted_mean(values, w):
    return sum(v * wi for v, wi in zip(values, w) if wi > 0) / sum(w)


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
        row = np.array([scale * unit(image[i]) @ unit(text[j]) for j in real])
        column = np.array([scale * unit(image[j]) @ unit(text[i]) for j in real])
        values.append(-(log_softmax(row)[at] + log_softmax(column)[at]) / 2)
    return values


def siglip(image, text, scale, bias, w):
    real = [i for i in range(len(w)) if w[i] > 0]
    values = np.zeros(len(w))
    for i in real:
        for j in real:
            logit = scale * unit(image[i]) @ unit(text[j]) + bias
            label = 1 if i == j else -1
            # half of the loss of a pair belongs to the image, half to the text
            values[i] += np.log1p(np.exp(-label * logit)) / 2
            values[j] += np.log1p(np.exp(-label * logit)) / 2
    return values


def dino(student, teacher, center, w, ts, tt, skip):
    values = []
    for s_views, t_views in zip(student, teacher):
        pairs = [
            -(softmax((t - center) / tt) * log_softmax(s / ts)).sum()
            for a, t in enumerate(t_views)
            for b, s in enumerate(s_views)
            if not (skip and a == b)
        ]
        values.append(np.mean(pairs))
    return values


def swav(scores, assignments, w, t):
    values = []
    for s_views, a_views in zip(scores, assignments):
        pairs = [
            -(q * log_softmax(s / t)).sum() for a, q in enumerate(a_views) for b, s in enumerate(s_views) if a != b
        ]
        values.append(np.mean(pairs))
    return values


def masked_mse(pred, target, w, mask):
    values = []
    for p, t, m in zip(pred, target, mask):
        values.append(np.mean([((p[i] - t[i]) ** 2).mean() for i in range(len(m)) if m[i]]))
    return values


def alignment(z1, z2, w):
    return [np.linalg.norm(unit(a) - unit(b)) ** 2 for a, b in zip(z1, z2)]


def sinkhorn(scores, w, epsilon, iterations):
    q = np.exp(scores / epsilon)
    for _ in range(iterations):
        q = q / (w[:, None] * q).sum(0)
        q = q / q.sum(1, keepdims=True)
    return q


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


@dataclasses.dataclass(eq=False)
class Case:
    name: str
    loss: Callable  # the loss: (*arrays, weights=...)
    brute: Callable  # the definition: (*arrays, w)
    arrays: Callable  # rng -> arrays of N rows; the first `learned` of them have gradients
    learned: int = 1
    shared: tuple[int, ...] = ()  # positions of arguments without an example axis
    per_example: bool = True
    fixed: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        return self.name


def normal(*shapes):
    return lambda rng: [rng.normal(size=s) for s in shapes]


def with_labels(rng):
    return [2 * rng.normal(size=(N, 4)), rng.integers(0, 4, N)]


def with_soft_labels(rng):
    return [2 * rng.normal(size=(N, 4)), rng.dirichlet(np.ones(4), N)]


def projection(rng):
    return [rng.normal(size=(N, 3)), rng.normal(size=(3, 7)), rng.normal(size=7), rng.integers(0, 7, N)]


def assigned(rng):
    return [rng.normal(size=(N, 3, 4)), rng.dirichlet(np.ones(4), (N, 2))]


def patches(rng):
    return [
        *rng.normal(size=(2, N, 4, 3)),
        np.array([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1]]),
    ]


def distributions(rng):
    p = rng.dirichlet(np.ones(4), N)
    p[0] = [0, 1, 0, 0]
    return [p]


def dino_case(skip):
    return Case(
        f"dino_loss skip={skip}",
        lambda s, t, c, **k: losses.dino_loss(
            s, t, c, student_temperature=0.3, teacher_temperature=0.2, skip_same=skip, **k
        ),
        lambda s, t, c, w: dino(s, t, c, w, 0.3, 0.2, skip),
        normal((N, 4, 3), (N, 2, 3), (3,)),
        shared=(2,),
    )


CASES = [
    Case("cross_entropy", losses.cross_entropy, lambda x, y, w: cross_entropy(x, y, w, 0), with_labels),
    Case(
        "cross_entropy smooth",
        partial(losses.cross_entropy, label_smoothing=0.2),
        lambda x, y, w: cross_entropy(x, y, w, 0.2),
        with_labels,
    ),
    Case(
        "cross_entropy soft",
        partial(losses.cross_entropy, label_smoothing=0.2),
        lambda x, y, w: cross_entropy(x, y, w, 0.2),
        with_soft_labels,
    ),
    Case("linear_cross_entropy", partial(losses.linear_cross_entropy, chunk=2), linear, projection, 3, (1, 2)),
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
        "clip_loss",
        losses.clip_loss,
        clip,
        lambda rng: [*rng.normal(size=(2, N, 3)), np.array(5.0)],
        3,
        (2,),
    ),
    Case(
        "clip_loss chunked",
        partial(losses.clip_loss, form="chunked", chunk=2),
        clip,
        lambda rng: [*rng.normal(size=(2, N, 3)), np.array(5.0)],
        3,
        (2,),
    ),
    *(
        Case(
            f"siglip_loss {form}",
            partial(losses.siglip_loss, form=form, chunk=2),
            siglip,
            lambda rng: [*rng.normal(size=(2, N, 3)), np.array(5.0), np.array(-1.5)],
            4,
            (2, 3),
        )
        for form in ("dense", "chunked")
    ),
    dino_case(True),
    dino_case(False),
    Case("swav_loss", partial(losses.swav_loss, temperature=0.3), lambda s, a, w: swav(s, a, w, 0.3), assigned),
    Case(
        "masked_mse",
        lambda p, t, m, **k: losses.masked_mse(p, t, m, **k),
        lambda p, t, m, w: masked_mse(p, t, w, m),
        patches,
        2,
    ),
    Case("alignment", losses.alignment, alignment, normal((N, 3), (N, 3)), 2),
    Case(
        "sinkhorn",
        partial(losses.sinkhorn, epsilon=0.5),
        lambda s, w: sinkhorn(s, w, 0.5, 3),
        normal((N, 4)),
        per_example=False,
    ),
    Case("uniformity", losses.uniformity, uniformity, normal((N, 3)), per_example=False),
    Case("feature_std", losses.feature_std, feature_std, normal((N, 3)), per_example=False),
    Case("effective_rank", losses.effective_rank, effective_rank, normal((N, 3)), per_example=False),
    Case("entropy", lambda p, weights=None: losses.entropy(p), entropy, distributions, 0, per_example=False),
]
TESTED_ELSEWHERE = {
    "TokenScores": "a container",
    "linear_nll": "the loop of linear_cross_entropy; test_linear_cross_entropy.py",
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
        return np.where(kept.reshape(-1, *[1] * (a.ndim - 1)), a, 1e4)

    spoilt = [spoil(k, a) for k, a in enumerate(arrays)]
    dropped = [a if k in case.shared else a[kept] for k, a in enumerate(arrays)]
    with_padding, without = run(case, spoilt, WEIGHTS), run(case, dropped, WEIGHTS[kept])
    if case.name == "sinkhorn":
        with_padding = with_padding[kept]
    np.testing.assert_allclose(with_padding, without, rtol=1e-5, atol=1e-6)

    if case.per_example:
        _, gradients = run_gradients(case, spoilt, WEIGHTS)
        for k, gradient in enumerate(gradients):
            if k not in case.shared:
                assert not np.asarray(gradient)[~kept].any()
                assert np.asarray(gradient)[kept].any()


@pytest.mark.parametrize("case", WEIGHTED, ids=str)
def test_extreme_inputs_stay_finite(case):
    for scale in (1e4, 1e-4, 0.0):
        if scale == 0.0 and case.name in ("effective_rank", "feature_std"):
            continue  # metrics without a gradient at 0
        arrays = data(case)
        arrays = [
            a if np.issubdtype(a.dtype, np.integer) or k in case.shared else a * scale for k, a in enumerate(arrays)
        ]
        value, gradients = run_gradients(case, arrays, WEIGHTS)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("case", [case for case in CASES if case.per_example], ids=str)
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
            return losses.linear_cross_entropy(x, jnp.eye(3), None, labels, weights=weights)
        return losses.cross_entropy(x, labels, weights=weights)

    assert np.isnan(loss(logits))
    value, gradient = jax.value_and_grad(loss)(logits, jnp.array([1.0, 0.0]))
    assert np.isfinite(value) and np.isfinite(gradient).all()
