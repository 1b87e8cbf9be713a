"""Fusion of principles: a weighted sum of objectives on one encoder.

Examples are language modelling beside a classifier (Radford et al. 2018, section 3.2), or masked autoencoding beside
contrastive learning.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from ssljax.base import schema
from ssljax.base.errors import UserError, nearest
from ssljax.base.exhibits import Exhibit
from ssljax.base.hashing import name_id
from ssljax.objectives import REGISTRY
from ssljax.objectives.base import Batch, Ctx, Loss, Objective, Params, Variables, with_copies
from ssljax.objectives.pictures import Showing
from ssljax.views import fold_in


@dataclasses.dataclass(frozen=True)
class Fusion(Objective):
    """The sum over parts of weight * loss of the part; its gradient is the weighted sum of the gradients of the parts.

    The parts share the encoder, `params["encoder"]`. Each has its own heads, `params[NAME]`, its own state,
    `extra[NAME]`, and its own views, whose random keys depend on the name of the part. If one part is coupled, all
    slices are encoded before the losses are computed; they are exact for parts of both kinds.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images", "tokens", "spectrograms", "graphs")

    parts: dict[str, Any] = schema.setting(
        {}, each=REGISTRY, doc="the objectives, name of the part -> {name: the objective, ...}; two at least"
    )
    weights: dict[str, float] = schema.setting(
        {}, doc="name of the part -> factor of its loss, at least 0; parts that are not named have 1"
    )
    read: str | None = schema.setting(
        None, doc="the part whose features, likelihoods and pictures evaluations read; None: the first"
    )

    def validate(self) -> None:
        if len(self.parts) < 2:
            raise ValueError(f"parts: got {', '.join(self.parts) or 'none'}, must be two or more objectives")
        if "encoder" in self.parts:
            raise ValueError("parts.encoder: this is the name of the shared encoder; another name is required")
        for key, names in (("weights", list(self.weights)), ("read", [self.read] if self.read else [])):
            for name in names:
                if name not in self.parts:
                    known = ", ".join(self.parts)
                    raise ValueError(f"{key}: {name!r} is no part{nearest(name, self.parts)} (parts: {known})")
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
                raise ValueError(f"weights.{name}: got {weight!r}, must be a number of at least 0")
        _ = self._built

    @functools.cached_property
    def _built(self) -> dict[str, Objective]:
        """The parts without model and data."""
        return {
            name: part if isinstance(part, Objective) else schema.build_named(REGISTRY, part, f"objective.parts.{name}")
            for name, part in self.parts.items()
        }

    @functools.cached_property
    def members(self) -> dict[str, Objective]:
        """The parts, with the model and the data that they share."""
        shared = {"model": self.model, "spec": self.spec, "steps": self.steps, "reads": self.reads}
        return {name: dataclasses.replace(part.reading(self.reads), **shared) for name, part in self._built.items()}

    @property
    def shown(self) -> tuple[str, Objective]:
        """Name and objective of the part that evaluations read."""
        name = self.read or next(iter(self.members))
        return name, self.members[name]

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        """True if a part compares examples with each other."""
        return any(part.coupled for part in self._built.values())

    @property
    def total_dependent(self) -> bool:
        return any(part.total_dependent for part in self._built.values())

    @property
    def classes(self) -> int | None:
        found = (part.classes for part in self.members.values())
        return next((classes for classes in found if classes), None)

    def check(self) -> None:
        for name, part in self.members.items():
            if part.model_key != "encoder" or self.reads not in part.inputs:
                reads = " or ".join(part.inputs) if part.model_key == "encoder" else "two kinds of input"
                raise UserError(f"objective.parts.{name}: this objective reads {reads}, but the model {self.reads}")
            if part.frozen_parts:
                raise UserError(
                    f"objective.parts.{name}: a part cannot read a teacher from another run; leave out "
                    f"{next(iter(part.frozen_parts.values()))[0].rpartition('.')[2]}"
                )
            try:
                part.check()
            except UserError as error:
                raise UserError(str(error).replace("objective.", f"objective.parts.{name}.", 1)) from error

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        params: dict[str, Any] = {"encoder": {}}
        extra = {}
        for name, part in self.members.items():
            own, extra[name] = part.init(jax.random.fold_in(key, name_id(name)), batch)
            params["encoder"] = _union(params["encoder"], own["encoder"])
            params[name] = {key: value for key, value in own.items() if key != "encoder"}
        # Teachers begin as copies of the encoder that all parts share, not of the one that their part has drawn.
        for name, part in self.members.items():
            extra[name] = with_copies(extra[name], {"encoder": params["encoder"]}, part.not_copies)
        return Variables(params, extra)

    def prepare(self, batch: Batch) -> Batch:
        for part in self.members.values():
            batch = part.prepare(batch)
        return {**batch, **{key: part.prepare(batch[key]) for key, part in self._mixed(batch)}}

    def mixed(self, keys: jax.Array, batch: Batch, step: jax.Array) -> Batch:
        """Returns the batch, and beside it the batch of each part that combines examples."""
        own = {
            _key(name): part.mixed(fold_in(keys, name_id(name)), batch, step)
            for name, part in self.members.items()
            if type(part).mixed is not Objective.mixed
        }
        return {**batch, **own}

    def _mixed(self, batch: Batch) -> list[tuple[str, Objective]]:
        """The keys of the batches that `mixed` has added, with their parts."""
        return [(_key(name), part) for name, part in self.members.items() if _key(name) in batch]

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, Any]:
        return {
            name: part.views(fold_in(keys, name_id(name)), batch.get(_key(name), batch), step)
            for name, part in self.members.items()
        }

    def held_out(self) -> "Fusion":
        return dataclasses.replace(self, parts={name: part.held_out() for name, part in self.members.items()})

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, Any]:
        return {
            name: part.encode(_own(params, name), extra[name], inputs[name], _within(ctx, name))
            for name, part in self.members.items()
        }

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        terms: dict[str, Any] = {}
        metrics: dict[str, Any] = {}
        sums, rows = {}, {}
        for name, part in self.members.items():
            given = (_own(params, name), extra[name], outputs[name], inputs[name], _within(ctx, name))
            loss = part.loss(*given)
            weight = self.weights.get(name, 1.0)
            terms |= {f"{name}/{term}": (weight * c, s, w) for term, (c, s, w) in loss.terms.items()}
            metrics |= {f"{name}/{metric}": value for metric, value in loss.metrics.items()}
            sums[name], rows[name] = loss.sums, loss.rows
        return Loss(terms, metrics, sums, rows)

    def project(self, params: Params) -> Params:
        for name, part in self.members.items():
            own = part.project(_own(params, name))
            rest = {key: value for key, value in own.items() if key != "encoder"}
            params = {**params, "encoder": own["encoder"], name: rest}
        return params

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        return {
            name: part.update(extra[name], _own(params, name), sums[name], rows[name], step)
            for name, part in self.members.items()
        }

    def model_params(self, params: Params, extra: Any) -> Params:
        return self._of_shown(Objective.model_params, params, extra)

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        return self._of_shown(Objective.features, params, extra, batch)

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return self._of_shown(Objective.score, params, extra, batch)

    def scored(self, batch: Batch) -> jax.Array | None:
        return self.shown[1].scored(batch)

    def fitted(self, batch: Batch) -> jax.Array | None:
        return self.shown[1].fitted(batch)

    @property
    def reads_other_rows(self) -> bool:
        return any(part.reads_other_rows for part in self.members.values())

    @property
    def prefixed(self) -> bool:
        """True if a prompt is read in both directions."""
        return bool(getattr(self.shown[1], "prefixed", False))

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        return self._of_shown(Objective.pictures, params, extra, batch, show)

    def _of_shown(self, method: Callable[..., Any], params: Params, extra: Any, *given: Any) -> Any:
        """Calls a method of the part that evaluations read, with its parameters and its state."""
        name, part = self.shown
        return getattr(part, method.__name__)(_own(params, name), extra[name], *given)

    def flops(self, spec: Any) -> float:
        return sum(part.flops(spec) for part in self.members.values())


def _key(name: str) -> str:
    """The key of a batch that `mixed` has made for one part."""
    return f"mixed for {name}"


def _own(params: Params, name: str) -> Params:
    """The parameters of one part: the encoder and its own heads."""
    return {"encoder": params["encoder"], **params[name]}


def _within(ctx: Ctx, name: str) -> Ctx:
    """The context of one part, whose noise differs from that of the others."""
    return ctx.replace(key=jax.random.fold_in(ctx.key, name_id(name)))


def _union(first: Any, second: Any) -> Any:
    """All entries of two nested mappings; of those that are in both, the first."""
    if not isinstance(first, Mapping) or isinstance(first, nn.meta.AxisMetadata):
        return first
    shared = {key: _union(first[key], second[key]) for key in first if key in second}
    return {**second, **first, **shared}
