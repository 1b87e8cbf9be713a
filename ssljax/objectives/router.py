"""Router losses, which keep all experts in use; added to any objective whose modules have experts.

The balance loss depends on the shares of the experts in the global batch, so an objective with this loss is coupled:
all slices of a batch are encoded before the loss is computed.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ssljax.base import schema
from ssljax.base.exhibits import Exhibit
from ssljax.layers.dense import EXACT
from ssljax.layers.experts import ExpertsConfig, Routing
from ssljax.objectives.base import Batch, Ctx, Inputs, Loss, Objective, Outputs, Params, Recorder, Variables
from ssljax.objectives.pictures import Showing


class Sums(flax.struct.PyTreeNode):
    """Statistics of the routers of one module per example, summed over its valid tokens."""

    choices_BxLxE: jax.Array  # number of choices of each expert, where one of k choices of a token counts 1/k
    probabilities_BxLxE: jax.Array  # router probabilities
    z_BxL: jax.Array  # squared log-partition of the router
    tokens_B: jax.Array  # number of valid tokens
    config: ExpertsConfig = flax.struct.field(pytree_node=False)


def with_router_losses(objective: Objective) -> Objective:
    """Returns the objective, wrapped in `RouterLosses` if a module has experts with a router loss."""
    configs = [c for c in _experts_in(objective) if c.balance or c.z_loss]
    return RouterLosses(objective) if configs else objective


def _experts_in(part: Any) -> list[ExpertsConfig]:
    """The configurations of experts in an objective: in its model and in all its other modules and groups."""
    if isinstance(part, ExpertsConfig):
        return [part]
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return []
    names = [field.name for field in dataclasses.fields(part) if field.name != "parent"]
    return [found for name in names for found in _experts_in(getattr(part, name, None))]


@dataclasses.dataclass(frozen=True, init=False)
class RouterLosses(Objective):
    """An objective with two additional loss terms for each module with experts.

    `balance` (Fedus et al. 2022, equation 4): E times the sum over E experts of (share of the choices) x (mean router
    probability), where each of the k choices of a token counts 1/k. It is 1 for equal use of the experts and E if one
    expert is always chosen. `router_z` (Zoph et al. 2022, equation 5): mean square of the log-partition of the router's
    logits. Both are summed over the layers of a module and leave padding out.

    If several modules have experts, the names of terms end with the path of the module: "balance/text_tower/stack".

    All methods forward to the inner objective. The constructor replaces settings of the inner objective by keywords, so
    `dataclasses.replace` works on the wrapper as on the inner objective.
    """

    inner: Any = schema.injected()

    def __init__(self, inner: Objective, **settings: Any) -> None:
        inner = _replaced(inner, settings)
        balanced = any(config.balance for config in _experts_in(inner))
        values = {name: getattr(inner, name) for name in ("model", "spec", "steps", "reads", "model_key", "not_copies")}
        for name, value in {**values, "inner": inner, "coupled": inner.coupled or balanced}.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet while copy or pickle creates the object
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def total_dependent(self) -> bool:
        return bool(self.inner.total_dependent)

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

    def mixed(self, keys: jax.Array, batch: Batch, step: jax.Array) -> Batch:
        return self.inner.mixed(keys, batch, step)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> Inputs:
        return self.inner.views(keys, batch, step)

    def held_out(self) -> "RouterLosses":
        return RouterLosses(self.inner.held_out())

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
        for path, module_sums in sums.items():
            router_terms, router_metrics = _losses(module_sums)
            suffix = "" if len(sums) == 1 else f"/{path}"
            terms |= {name + suffix: term for name, term in router_terms.items()}
            metrics |= {name + suffix: metric for name, metric in router_metrics.items()}
        return loss._replace(terms=terms, metrics=metrics)

    def project(self, params: Params) -> Params:
        return self.inner.project(params)

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        return self.inner.update(extra, params, sums, rows, step)

    def model_params(self, params: Params, extra: Any) -> Params:
        return self.inner.model_params(params, extra)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        return self.inner.features(params, extra, batch)

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return self.inner.score(params, extra, batch)

    def scored(self, batch: Batch) -> jax.Array | None:
        return self.inner.scored(batch)

    def fitted(self, batch: Batch) -> jax.Array | None:
        return self.inner.fitted(batch)

    @property
    def reads_other_rows(self) -> bool:
        return self.coupled or self.inner.reads_other_rows

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        return self.inner.pictures(params, extra, batch, show)

    def flops(self, spec: Any) -> float:
        return self.inner.flops(spec)


def _replaced(objective: Objective, settings: dict[str, Any]) -> Objective:
    """Returns a copy with other settings and the same registry name."""
    if not settings:
        return objective
    new = dataclasses.replace(objective, **settings)
    if hasattr(objective, "_registry_name"):
        object.__setattr__(new, "_registry_name", objective._registry_name)
    return new


def _losses(sums: Sums) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (loss terms, metrics) of the routers of one module."""
    c, one, tokens = sums.config, jnp.float32(1), jnp.sum(sums.tokens_B)
    terms: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    if c.balance:
        n = jnp.maximum(tokens, 1)
        share_LxE = jax.lax.stop_gradient(jnp.sum(sums.choices_BxLxE, 0) / n)
        balance = c.count * jnp.sum(share_LxE * jnp.sum(sums.probabilities_BxLxE, 0) / n)
        terms["balance"] = (c.balance, balance, one)
        # Load of the busiest expert relative to an even share: 1 = even use, E = one expert is always chosen.
        metrics["expert_load"] = (c.count * jnp.mean(jnp.max(share_LxE, axis=-1)), one)
    if c.z_loss:
        terms["router_z"] = (c.z_loss, jnp.sum(sums.z_BxL), tokens)
    return terms, metrics


def _added(a: Sums, b: Sums, name: str) -> Sums:
    """The sum of the statistics of two calls of one module."""
    if jax.tree.map(jnp.shape, a) != jax.tree.map(jnp.shape, b) or a.config != b.config:
        raise ValueError(f"two modules record their routers as {name!r}: give `apply` a `part` that distinguishes them")
    return jax.tree.map(jnp.add, a, b)


def _sums(routing: Routing, examples: int) -> Sums:
    """Sums over the valid tokens of each example, with the views of an example added."""
    logits_LxBxTxE, valid = routing.logits_LxBxTxE, routing.valid_BxT
    experts, top_k = logits_LxBxTxE.shape[-1], routing.config.top_k
    weight_BxT = jnp.ones(logits_LxBxTxE.shape[1:3]) if valid is None else valid.astype(jnp.float32)
    chosen = jnp.sum(jax.nn.one_hot(jax.lax.top_k(logits_LxBxTxE, top_k)[1], experts), -2) / top_k
    partition = jnp.square(jax.nn.logsumexp(logits_LxBxTxE, axis=-1))
    sums = Sums(
        jnp.einsum("lbte,bt->ble", chosen, weight_BxT, precision=EXACT),
        jnp.einsum("lbte,bt->ble", jax.nn.softmax(logits_LxBxTxE, -1), weight_BxT, precision=EXACT),
        jnp.einsum("lbt,bt->bl", partition, weight_BxT, precision=EXACT),
        jnp.sum(weight_BxT, 1),
        config=routing.config,
    )
    return jax.tree.map(lambda x: jnp.sum(x.reshape(examples, -1, *x.shape[1:]), 1), sums)
