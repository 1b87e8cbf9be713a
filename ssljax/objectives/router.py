"""Losses that keep the experts of a model in use; an objective over such a model is wrapped once, and mentions none.

They are sums over the global batch, so the wrapped objective is coupled where shares are balanced: slices are encoded
first, then the loss sees what all of them sent where.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.layers.experts import ExpertsConfig
from ssljax.objectives.base import Ctx, Inputs, Loss, Objective, Outputs, Params, routers


class Sums(NamedTuple):
    """Of the tokens of each example."""

    choices: jax.Array  # [B, L, E], each token's choices add up to 1
    probabilities: jax.Array  # [B, L, E]
    z: jax.Array  # [B, L], squared log-partition of the router
    tokens: jax.Array  # [B]


def with_router_losses(objective: Objective) -> Objective:
    """The same objective with two terms more, if its model has experts with coefficients for them.

    `balance` (Fedus 2022, equation 4, added over layers): experts x sum over them of (share of the choices) x (mean
    probability), 1 when all are used alike; a token's k choices count 1/k each. `router_z` (Zoph 2022, equation 5):
    mean square of the log-partition of the router's logits.
    """
    experts = getattr(getattr(objective.model, "config", None), "experts", None)
    if experts is None or not (experts.balance or experts.z_loss):
        return objective
    fields = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
    kind: Any = type(objective)
    routed = _routed(kind, bool(experts.balance) or objective.coupled)(**fields)
    if hasattr(objective, "_registry_name"):
        object.__setattr__(routed, "_registry_name", objective._registry_name)
    return routed


@functools.cache
def _routed(cls: Any, coupled: bool) -> type:
    return type(cls.__name__, (_Routed, cls), {"coupled": coupled, "__module__": cls.__module__})


class _Routed(Objective):
    """Mixed in before an objective."""

    def encode(self, params: Params, extra: Any, inputs: Inputs, ctx: Ctx) -> Outputs:
        with routers() as seen:
            outputs = super().encode(params, extra, inputs, ctx)
        examples, k = ctx.row.shape[0], self._experts.top_k
        parts = [_sums(router, segments, examples, k) for router, segments in seen]
        return outputs, jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *parts)

    def loss(self, params: Params, extra: Any, outputs: Outputs, inputs: Inputs, ctx: Ctx) -> Loss:
        outputs, sums = outputs
        loss, c, one = super().loss(params, extra, outputs, inputs, ctx), self._experts, jnp.float32(1)
        tokens, terms, metrics = jnp.sum(sums.tokens), {}, {}
        if c.balance:
            n = jnp.maximum(tokens, 1)
            share = jax.lax.stop_gradient(jnp.sum(sums.choices, 0) / n)  # [L, E]
            balance = c.count * jnp.sum(share * jnp.sum(sums.probabilities, 0) / n)
            terms["balance"] = (c.balance, balance, one)
            # 1: all alike; the number of experts: one takes everything.
            metrics["expert_load"] = (c.count * jnp.mean(jnp.max(share, axis=-1)), one)
        if c.z_loss:
            terms["router_z"] = (c.z_loss, jnp.sum(sums.z), tokens)
        return loss._replace(terms={**loss.terms, **terms}, metrics={**loss.metrics, **metrics})

    @property
    def _experts(self) -> ExpertsConfig:
        return self.model.config.experts


def _sums(router_LxBxTxE: jax.Array, segments: jax.Array | None, examples: int, top_k: int) -> Sums:
    """Sums over the tokens of each example, all its views together; padding counts nothing."""
    experts = router_LxBxTxE.shape[-1]
    weight = jnp.ones(router_LxBxTxE.shape[1:3]) if segments is None else (segments > 0).astype(jnp.float32)
    chosen = jnp.sum(jax.nn.one_hot(jax.lax.top_k(router_LxBxTxE, top_k)[1], experts), -2) / top_k
    partition = jnp.square(jax.nn.logsumexp(router_LxBxTxE, axis=-1))
    sums = Sums(
        jnp.einsum("lbte,bt->ble", chosen, weight),
        jnp.einsum("lbte,bt->ble", jax.nn.softmax(router_LxBxTxE, -1), weight),
        jnp.einsum("lbt,bt->bl", partition, weight),
        jnp.sum(weight, 1),
    )
    return jax.tree.map(lambda x: jnp.sum(x.reshape(examples, -1, *x.shape[1:]), 1), sums)
