"""Router losses against their definitions, and exact over slices though shares are products of global sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax.objectives.base import Ctx, routers, stream
from ssljax.objectives.router import with_router_losses
from ssljax.train.microbatch import gradients

EXPERTS = {"count": 4, "top_k": 2, "balance": 0.3, "z_loss": 0.2}


def made(name="causal_lm", **experts):
    return tiny.make(name, experts={**EXPERTS, **experts}, dropout=0.0, drop_path=0.0)


def inputs_of(objective):
    batch = tiny.batch()
    variables = objective.init(jax.random.key(0), batch)
    variables = jax.tree.map(lambda x: getattr(x, "value", x), variables, is_leaf=lambda x: hasattr(x, "names"))
    inputs = objective.views(stream(0, 1, "views"), objective.prepare(batch), jnp.int32(1))
    ctx = Ctx(stream(0, 1, "encode"), jnp.int32(1), jnp.arange(tiny.BATCH, dtype=jnp.int32))
    return variables, inputs, ctx


def test_terms_are_the_definitions():
    objective = made()
    variables, inputs, ctx = inputs_of(objective)
    outputs = objective.encode(variables.params, variables.extra, inputs, ctx)
    with routers() as seen:
        objective.hidden(variables.params, inputs, None)
    ((router, segments),) = seen
    logits, valid = np.asarray(router, np.float64), np.asarray(segments) > 0
    n, layers, experts = valid.sum(), len(logits), logits.shape[-1]
    balance = z = 0.0
    for layer in range(layers):
        flat = logits[layer][valid]
        p = np.exp(flat - flat.max(-1, keepdims=True))
        partition = np.log(p.sum(-1)) + flat.max(-1)
        p /= p.sum(-1, keepdims=True)
        share = np.zeros(experts)
        for row in flat:
            for chosen in np.argsort(-row)[:2]:
                share[chosen] += 1 / 2 / n
        balance += experts * (share * p.mean(0)).sum()
        z += (partition**2).sum()
    loss = objective.loss(variables.params, variables.extra, outputs, inputs, ctx)
    coefficient, total, weight = loss.terms["balance"]
    assert coefficient == 0.3
    np.testing.assert_allclose(total / weight, balance, rtol=1e-5)
    coefficient, total, weight = loss.terms["router_z"]
    assert coefficient == 0.2
    np.testing.assert_allclose([total, weight], [z, n], rtol=1e-5)


@pytest.mark.parametrize("name", ["causal_lm", pytest.param("simclr", marks=pytest.mark.full)])
def test_slices_equal_one_batch(name):
    objective = made(name)
    assert objective.coupled
    variables, inputs, ctx = inputs_of(objective)
    one, four = (
        jax.jit(lambda v, i, c, k=k: gradients(objective, v.params, v.extra, i, c, k))(variables, inputs, ctx)
        for k in (1, 4)
    )
    np.testing.assert_allclose(four.value, one.value, rtol=1e-5)
    assert set(one.loss.terms) >= {"balance", "router_z"}
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(one.grads))
    for a, b in zip(jax.tree.leaves(four.grads), jax.tree.leaves(one.grads)):
        # Some gradients are zero but for round-off, hence the floor.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(b).max(), 1e-2 * scale))


def test_even_routers_have_balance_one_a_layer_and_dense_models_none():
    objective = made()
    variables, inputs, ctx = inputs_of(objective)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if "router" in jax.tree_util.keystr(path) else x, variables.params
    )
    outputs = objective.encode(params, variables.extra, inputs, ctx)
    _, total, weight = objective.loss(params, variables.extra, outputs, inputs, ctx).terms["balance"]
    np.testing.assert_allclose(total / weight, 2, rtol=1e-6)  # two layers; probabilities are even whatever the choices
    dense = tiny.make("causal_lm")
    assert with_router_losses(dense) is dense
    assert not made(balance=0.0).coupled
    assert type(made(balance=0.0, z_loss=0.0)) is type(dense)
