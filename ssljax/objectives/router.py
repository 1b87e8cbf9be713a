"""Losses that keep the experts of a model in use, added to any objective whose modules have experts.

They are sums over the global batch, so the result is coupled where shares are balanced: slices are encoded first, then
the loss sees the shares of the whole batch.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ssljax.base import schema
from ssljax.layers.experts import ExpertsConfig, Routing
from ssljax.objectives.base import Batch, Ctx, Inputs, Loss, Objective, Outputs, Params, Recorder, Variables


class Sums(flax.struct.PyTreeNode):
    """Per-example statistics of the routers of one module, summed over valid tokens."""

    choices_BxLxE: jax.Array  # the choices of a token add up to 1
    probabilities_BxLxE: jax.Array
    z_BxL: jax.Array  # squared log-partition of the router
    tokens_B: jax.Array
    config: ExpertsConfig = flax.struct.field(pytree_node=False)


def with_router_losses(objective: Objective) -> Objective:
    """The objective, wrapped if any of its modules has experts with coefficients for such losses."""
    configs = [c for c in _experts_in(objective) if c.balance or c.z_loss]
    return RouterLosses(objective) if configs else objective


def _experts_in(part: Any) -> list[ExpertsConfig]:
    """The configurations of experts in an objective: of its model, and of all modules and groups that it holds."""
    if isinstance(part, ExpertsConfig):
        return [part]
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return []
    names = [field.name for field in dataclasses.fields(part) if field.name != "parent"]
    return [found for name in names for found in _experts_in(getattr(part, name, None))]


@dataclasses.dataclass(frozen=True, init=False)
class RouterLosses(Objective):
    """An objective with two terms more for each module with experts; layers are added, and padding is left out.

    `balance` (Fedus et al. 2022, equation 4): experts x sum over them of (share of the choices) x (mean probability),
    1 for a layer whose experts are used alike, the number of experts where one takes everything; a token's k choices
    count 1/k each. `router_z` (Zoph et al. 2022, equation 5): mean square of the log-partition of the router's logits.

    With experts in several modules the names end with the paths of these, "balance/text_tower/stack". Everything else
    is the inner objective's; keywords other than `inner` replace its settings, so `dataclasses.replace` does too.
    """

    inner: Any = schema.injected()

    def __init__(self, inner: Objective, **settings: Any) -> None:
        inner = _replaced(inner, settings)
        balanced = any(config.balance for config in _experts_in(inner))
        values = {name: getattr(inner, name) for name in ("model", "spec", "steps", "model_key", "total_dependent")}
        for name, value in {**values, "inner": inner, "coupled": inner.coupled or balanced}.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet: a copy or an unpickled object asks
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def unwrapped(self) -> Objective:
        return self.inner

    @property
    def classes(self) -> int | None:
        return self.inner.classes

    def check(self) -> None:
        self.inner.check()

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        return self.inner.init(key, batch)

    def prepare(self, batch: Batch) -> Batch:
        return self.inner.prepare(batch)

    def views(self, key: jax.Array, batch: Batch, step: jax.Array) -> Inputs:
        return self.inner.views(key, batch, step)

    def encode(self, params: Params, extra: Any, inputs: Inputs, ctx: Ctx) -> tuple[Outputs, dict[str, Sums]]:
        recorder = Recorder()
        outputs = self.inner.encode(params, extra, inputs, ctx.replace(routers=recorder))
        sums: dict[str, Sums] = {}
        for name, routing in recorder.found:
            found = _sums(routing, ctx.row.shape[0])
            sums[name] = _added(sums[name], found, name) if name in sums else found
        return outputs, sums

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Inputs, ctx: Ctx) -> Loss:
        outputs, sums = outputs
        loss = self.inner.loss(params, extra, outputs, inputs, ctx)
        terms, metrics = dict(loss.terms), dict(loss.metrics)
        for path, of_module in sums.items():
            more, usage = _losses(of_module)
            suffix = "" if len(sums) == 1 else f"/{path}"
            terms |= {name + suffix: term for name, term in more.items()}
            metrics |= {name + suffix: metric for name, metric in usage.items()}
        return loss._replace(terms=terms, metrics=metrics)

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        return self.inner.update(extra, params, sums, rows, step)

    def model_params(self, params: Params, extra: Any) -> Params:
        return self.inner.model_params(params, extra)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        return self.inner.features(params, extra, batch)

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return self.inner.score(params, extra, batch)

    def flops(self, spec: Any) -> float:
        return self.inner.flops(spec)


def _replaced(objective: Objective, settings: dict[str, Any]) -> Objective:
    """A copy with other settings, under the same registry name."""
    if not settings:
        return objective
    new = dataclasses.replace(objective, **settings)
    if hasattr(objective, "_registry_name"):
        object.__setattr__(new, "_registry_name", objective._registry_name)
    return new


def _losses(sums: Sums) -> tuple[dict[str, Any], dict[str, Any]]:
    """(terms, metrics) of the routers of one module."""
    c, one, tokens = sums.config, jnp.float32(1), jnp.sum(sums.tokens_B)
    terms: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    if c.balance:
        n = jnp.maximum(tokens, 1)
        share_LxE = jax.lax.stop_gradient(jnp.sum(sums.choices_BxLxE, 0) / n)
        balance = c.count * jnp.sum(share_LxE * jnp.sum(sums.probabilities_BxLxE, 0) / n)
        terms["balance"] = (c.balance, balance, one)
        # 1: all experts alike; the number of experts: one takes everything.
        metrics["expert_load"] = (c.count * jnp.mean(jnp.max(share_LxE, axis=-1)), one)
    if c.z_loss:
        terms["router_z"] = (c.z_loss, jnp.sum(sums.z_BxL), tokens)
    return terms, metrics


def _added(a: Sums, b: Sums, name: str) -> Sums:
    """The statistics of two calls of one module."""
    if jax.tree.map(jnp.shape, a) != jax.tree.map(jnp.shape, b) or a.config != b.config:
        raise ValueError(f"two modules record their routers as {name!r}: give `apply` a `part` that tells them apart")
    return jax.tree.map(jnp.add, a, b)


def _sums(routing: Routing, examples: int) -> Sums:
    """Sums over the valid tokens of each example, all its views together."""
    logits_LxBxTxE, valid = routing.logits_LxBxTxE, routing.valid_BxT
    experts, top_k = logits_LxBxTxE.shape[-1], routing.config.top_k
    weight_BxT = jnp.ones(logits_LxBxTxE.shape[1:3]) if valid is None else valid.astype(jnp.float32)
    chosen = jnp.sum(jax.nn.one_hot(jax.lax.top_k(logits_LxBxTxE, top_k)[1], experts), -2) / top_k
    partition = jnp.square(jax.nn.logsumexp(logits_LxBxTxE, axis=-1))
    sums = Sums(
        jnp.einsum("lbte,bt->ble", chosen, weight_BxT),
        jnp.einsum("lbte,bt->ble", jax.nn.softmax(logits_LxBxTxE, -1), weight_BxT),
        jnp.einsum("lbt,bt->bl", partition, weight_BxT),
        jnp.sum(weight_BxT, 1),
        config=routing.config,
    )
    return jax.tree.map(lambda x: jnp.sum(x.reshape(examples, -1, *x.shape[1:]), 1), sums)
