"""Losses of pairs: what they estimate, their memory, and their errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from ssljax.base.errors import UserError


def test_noise_contrast_finds_the_normaliser_and_without_log_k_the_density_over_k():
    """The model log p(x) = -x^2 / 2 - c of standard normal data; the optimum is c = log sqrt(2 pi)."""
    rng, k = np.random.default_rng(0), 4
    data, noise = rng.normal(size=40_000), 2 * rng.normal(size=(40_000, k))
    q = lambda x: -(x**2) / 8 - math.log(2 * math.sqrt(2 * math.pi))  # noqa: E731

    def slope(c, shift):
        loss = lambda c: losses.nce(-(data**2) / 2 - c, -(noise**2) / 2 - c, q(data) - shift, q(noise) - shift)  # noqa: E731
        return float(jax.grad(loss)(jnp.float32(c)))

    c = math.log(math.sqrt(2 * math.pi))
    assert slope(c - 0.05, 0) < -0.01 < 0.01 < slope(c + 0.05, 0) and abs(slope(c, 0)) < 0.01
    without = math.log(k)  # taken off again
    assert abs(slope(c + math.log(k), without)) < 0.01 and abs(slope(c, without)) > 0.1


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: losses.contrastive_pairs(z, y, margin=1.0, chunk=64),
        lambda z, y: losses.triplet(z, y, mining="hard", chunk=64),
        lambda z, y: losses.sup_con(z, y, temperature=0.1, chunk=64),
    ],
    ids=["contrastive_pairs", "triplet", "sup_con"],
)
def test_gradients_need_the_memory_of_some_anchors(loss):
    n = 512
    z, labels = jax.ShapeDtypeStruct((n, n), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(z, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 4 * n * n  # an array [64, n, n] has 67 MB


def test_mistakes_are_one_line():
    z, labels = jnp.ones((2, 3)), jnp.arange(2)
    for call, message in (
        (lambda: losses.sup_con(z, labels, temperature=1.0, form="both"), "form: got 'both'"),
        (lambda: losses.triplet(z, labels, mining="some"), "mining: got 'some'"),
        (lambda: losses.triplet(z, labels, reduction="max"), "reduction: got 'max'"),
        (lambda: losses.mean_teacher(z, z, distance="l1"), "distance: got 'l1'"),
        (lambda: losses.cross_entropy(z, labels, reduction="row"), "reduction: got 'row'"),
        (lambda: losses.mse(z, z[:, 0]), r"target: got shape \(2,\)"),
        (lambda: losses.hsic(z[:, None]), "z: got 1 view"),
    ):
        with pytest.raises(UserError, match=message):
            call()
