"""Every exported loss: matrix products in float32, and finite values and gradients for degenerate inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from daily import daily
from programs import EXACT, equations, inexact_products

from ssljax import losses
from ssljax.layers import heads

N, D, VIEWS = 6, 4, 3
RNG = np.random.default_rng(0)


def vectors(*shape, n=N):
    return jnp.asarray(RNG.normal(size=(n, *shape)), jnp.float32)


def ring(image, text, weights=None):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.sharding.PartitionSpec("data")

    def local(image, text, weights):
        return losses.siglip(image, text, 100.0, -10.0, weights=weights, form="ring", axis_name="data", chunk=1)

    specs = (rows, rows, None if weights is None else rows)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=jax.sharding.PartitionSpec())(image, text, weights)


def labels_of(n):
    return jnp.arange(n) % D


def tokens(hidden, kernel, bias, **keywords):
    return losses.linear_cross_entropy(hidden, kernel, labels_of(len(hidden)), 2, bias=bias, **keywords)


def capped(hidden, kernel, bias):
    return losses.linear_nll(hidden, kernel, bias, labels_of(len(hidden)), cap=30.0, chunk=2).nll


def dino(student, teacher, **keywords):
    center = jnp.zeros(student.shape[-1])
    views = (jnp.swapaxes(x, 0, 1) for x in (student, teacher))
    return losses.dino(*views, center, 0.1, 0.04, **keywords)


def ibot(student, teacher, **keywords):
    mask = jnp.arange(student.shape[1]) % 2 == 0
    return losses.ibot(student, teacher, jnp.broadcast_to(mask, student.shape[:2]), jnp.zeros(D), **keywords)


def swav(scores, **keywords):
    return losses.swav(jnp.swapaxes(scores, 0, 1), **keywords)


def swapped(scores, **keywords):
    views = jnp.swapaxes(scores, 0, 1)
    return losses.swapped(views[:2], views[2:], jax.nn.softmax(views[:2]), 0.1, **keywords)


def assignments(scores, **keywords):
    return losses.assignments(jnp.swapaxes(scores, 0, 1), **keywords)


def hidden_patches(images, pred, **keywords):
    return losses.masked_patches(images, pred, jnp.arange(4) % 2 == 0, 2, **keywords)


def labelled(function, **options):
    return lambda z, **keywords: function(z, jnp.arange(len(z)) % 2, **options, **keywords)


def clusters(logits, **keywords):
    return losses.deep_cluster(logits, labels_of(len(logits)), jnp.arange(D), **keywords)


def replaced(logits, **keywords):
    return losses.electra(logits, jnp.broadcast_to(jnp.arange(D) % 2, logits.shape), **keywords)


def binary(logits, **keywords):
    return losses.binary_cross_entropy(logits, jnp.broadcast_to(jnp.arange(D) % 2, logits.shape), **keywords)


# {name: (function of arrays, shapes of the arrays after the axis of examples)}; a shape with a leading None has no such
# axis. The functions pass `weights` on if the loss has weights.
CASES = {
    "alignment": (losses.alignment, [(D,), (D,)]),
    "clip": (functools.partial(losses.clip, logit_scale=100.0), [(D,), (D,)]),
    "cross_entropy": (lambda x, **k: losses.cross_entropy(x, labels_of(len(x)), smoothing=0.1, **k), [(D,)]),
    "dino": (dino, [(VIEWS, D), (2, D)]),
    "effective_rank": (losses.effective_rank, [(D,)]),
    "entropy": (lambda x: losses.entropy(jax.nn.softmax(x)), [(D,)]),
    "feature_std": (losses.feature_std, [(D,)]),
    "linear_cross_entropy": (tokens, [(D,), (None, D, D), (None, D)]),
    "linear_nll": (capped, [(D,), (None, D, D), (None, D)]),
    "masked_patches": (hidden_patches, [(4, 4, 3), (4, 12)]),
    "nt_xent": (functools.partial(losses.nt_xent, temperature=0.5, form="chunked", chunk=2), [(D,), (D,)]),
    "siglip": (ring, [(D,), (D,)]),
    "sinkhorn": (losses.sinkhorn, [(D,)]),
    "swav": (swav, [(VIEWS, D)]),
    "uniformity": (losses.uniformity, [(D,)]),
    "assignments": (assignments, [(VIEWS, D)]),
    "barlow_twins": (losses.barlow_twins, [(D,), (D,)]),
    "binary_cross_entropy": (binary, [(D,)]),
    "byol": (losses.byol, [(D,), (D,)]),
    "contrastive_pairs": (labelled(losses.contrastive_pairs, margin=1.0, chunk=2), [(D,)]),
    "decoupled_contrastive": (
        functools.partial(losses.decoupled_contrastive, temperature=0.5, weighted=True),
        [(D,), (D,)],
    ),
    "deep_cluster": (clusters, [(D,)]),
    "distillation": (losses.distillation, [(D,), (D,)]),
    "electra": (replaced, [(D,)]),
    "fixmatch": (functools.partial(losses.fixmatch, threshold=0.3), [(D,), (D,)]),
    "gaussian_nll": (losses.gaussian_nll, [(D,), (D,), (D,)]),
    "graph_cl": (functools.partial(losses.graph_cl, temperature=0.5, form="chunked", chunk=2), [(D,), (D,)]),
    "hsic": (losses.hsic, [(2, D)]),
    "huber": (losses.huber, [(D,), (D,)]),
    "ibot": (ibot, [(VIEWS, D), (VIEWS, D)]),
    "info_nce": (functools.partial(losses.info_nce, temperature=0.5), [(D,), (D,), (None, 7, D)]),
    "koleo": (losses.koleo, [(D,)]),
    "mae": (losses.mae, [(D,), (D,)]),
    "mean_teacher": (losses.mean_teacher, [(D,), (D,)]),
    "moco_v3": (functools.partial(losses.moco_v3, temperature=0.5), [(D,), (D,)]),
    "mse": (losses.mse, [(D,), (D,)]),
    "n_pair": (functools.partial(losses.n_pair, l2=0.1), [(D,), (D,)]),
    "nce": (losses.nce, [(), (VIEWS,), (), (VIEWS,)]),
    "sigreg": (losses.sigreg, [(D,), (None, D, 3)]),
    "simcse": (losses.simcse, [(D,), (D,), (D,)]),
    "simsiam": (losses.simsiam, [(D,), (D,)]),
    "smooth_l1": (losses.smooth_l1, [(D,), (D,)]),
    "sup_con": (labelled(losses.sup_con, temperature=0.5, chunk=2), [(D,)]),
    "swapped": (swapped, [(VIEWS, D)]),
    "triplet": (labelled(losses.triplet, chunk=2), [(D,)]),
    "vae_kl": (losses.vae_kl, [(D,), (D,)]),
    "vicreg": (losses.vicreg, [(D,), (D,)]),
}
TYPES = {"TokenScores", "patchify", "unpatchify"}
UNWEIGHTED = {"entropy", "linear_nll"}
HUGE = {"gaussian_nll", "vae_kl", "vicreg"}  # with entries of 1e15, their true values are beyond float32


def case(name, n=N):
    """(function, arrays) of a loss."""
    function, shapes = CASES[name]
    arrays = [vectors(*s[2:], n=s[1]) if s[:1] == (None,) else vectors(*s, n=n) for s in shapes]
    return function, arrays


def value_and_gradients(function, arrays, **keywords):
    def value(arrays):
        return jnp.sum(function(*arrays, **keywords))

    return jax.jit(jax.value_and_grad(value))(arrays)


def test_every_exported_loss_has_a_case():
    assert set(CASES) == set(losses.__all__) - TYPES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(CASES))
def test_matrix_products_have_the_highest_precision(name, dtype):
    """Forward and backward; the backend's default would round float32 factors to bfloat16 or TF32."""
    function, arrays = case(name)
    with jax.default_matmul_precision("bfloat16"):
        traced = jax.make_jaxpr(lambda a: jax.value_and_grad(lambda a: jnp.sum(function(*a)))(a))
        found = traced([x.astype(dtype) for x in arrays])
    assert inexact_products(found.jaxpr) == []


def test_an_inexact_product_would_be_found():
    with jax.default_matmul_precision("bfloat16"):
        bad = jax.make_jaxpr(jax.jit(lambda x: jax.lax.map(lambda y: x @ y, x)))(jnp.ones((2, 2)))
    assert len(inexact_products(bad.jaxpr)) == 1
    assert "dot_general" in {e.primitive.name for e in equations(bad.jaxpr)}


DEGENERATE = {
    "one example": lambda x: x[:1],
    "identical rows": lambda x: jnp.broadcast_to(x[:1], x.shape),
    "zeros": jnp.zeros_like,
    "large": lambda x: 1e15 * x,
    "tiny": lambda x: 1e-30 * x,
}


@pytest.mark.parametrize("kind", [*DEGENERATE, "weights of zero"])
@pytest.mark.parametrize("name", daily(CASES, 3))
def test_degenerate_inputs_have_finite_values_and_gradients(name, kind):
    function, arrays = case(name)
    keywords = {}
    if kind == "weights of zero":
        if name in UNWEIGHTED:
            pytest.skip("no weights")
        keywords = {"weights": jnp.zeros(N)}
    elif kind == "one example":
        if name == "siglip":
            pytest.skip("at least one example per device")
        batch = [shape[:1] != (None,) for shape in CASES[name][1]]
        arrays = [DEGENERATE[kind](x) if rows else x for x, rows in zip(arrays, batch)]
    elif kind == "large" and name in HUGE:
        pytest.skip("true values beyond float32")
    else:
        arrays = [DEGENERATE[kind](x) for x in arrays]
    value, gradients = value_and_gradients(function, arrays, **keywords)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)
    if kind == "weights of zero" and name not in ("sinkhorn", "assignments"):
        assert value == 0
        assert all((g == 0).all() for g in gradients)


def test_a_class_without_mass_may_have_the_logit_minus_infinity():
    logits = jnp.array([[0.0, 1.0, -jnp.inf]])
    for labels in (jnp.array([1]), jnp.array([[0.25, 0.75, 0.0]])):
        value, gradient = jax.value_and_grad(lambda x, y=labels: losses.cross_entropy(x, y))(logits)
        assert np.isfinite(value) and np.isfinite(gradient).all()


MODULES = {
    "classifier": (heads.Linear(3), 4),
    "prototypes": (heads.Prototypes(3), 4),
    "last layer of DINO's head": (heads.DINOHead(3, 4, 4), 4),
}


@pytest.mark.parametrize("name", list(MODULES))
def test_heads_that_promise_float32_have_the_highest_precision(name):
    module, width = MODULES[name]
    x = jnp.ones((2, width), jnp.bfloat16)
    params = module.init(jax.random.key(0), x)
    with jax.default_matmul_precision("bfloat16"):
        traced = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(module.apply(p, x))))(params)
    hidden = 3 if name.startswith("last") else 0  # hidden maps have the backend's default
    products = [e for e in equations(traced.jaxpr) if e.primitive.name == "dot_general"]
    exact = [e for e in products if e.params["precision"] == (EXACT, EXACT)]
    assert len(products) > len(exact) - 1 >= 0
    assert (len(products) == len(exact)) == (hidden == 0)
