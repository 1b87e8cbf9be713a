"""Training objectives: each combines views, a model and losses under the contract of `base.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssljax import models
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.plain import plain
from ssljax.base.registry import Registry
from ssljax.objectives.router import with_router_losses

REGISTRY = Registry(
    "objective",
    {
        "captioning": "ssljax.objectives.captioning:Captioning",
        "causal_lm": "ssljax.objectives.causal_lm:CausalLM",
        "classification": "ssljax.objectives.classification:Classification",
        "clip": "ssljax.objectives.clip:CLIP",
        "dino": "ssljax.objectives.dino:DINO",
        "mae": "ssljax.objectives.mae:MAE",
        "mlm": "ssljax.objectives.mlm:MLM",
        "siglip": "ssljax.objectives.siglip:SigLIP",
        "simclr": "ssljax.objectives.simclr:SimCLR",
        "span_corruption": "ssljax.objectives.span_corruption:SpanCorruption",
        "swav": "ssljax.objectives.swav:SwAV",
    },
    has=("inputs", "init", "views", "encode", "loss"),
)


def create(config: Mapping[str, Any], spec: Any, steps: int | None = None) -> Any:
    """Creates an objective with its model, ready for `init`.

    Args:
        config: {"objective": ..., "model": ...}, each a mapping with a `name` or an instance of a configuration.
        spec: `ssljax.data.DataSpec` of the data (shapes, vocabulary, classes).
        steps: length of the run, for schedules inside objectives (momentum of a teacher, warm-up of a temperature);
            None: unknown.

    Raises:
        UserError: unknown name or key, a model that reads another kind of input than the objective makes, or settings
            that do not fit the data or the model (`Objective.check`).
    """
    objective, model = (plain(config[group], group) for group in ("objective", "model"))
    if isinstance(objective, Mapping):
        objective = schema.build_named(REGISTRY, objective, "objective")
    if isinstance(model, Mapping):
        model = schema.build_named(models.REGISTRY, model, "model")
    if model.inputs not in objective.inputs:
        fitting = [n for n in models.REGISTRY if models.REGISTRY.get(n).inputs in objective.inputs]
        raise UserError(
            f"model.name: this model reads {model.inputs}, but the objective makes {' or '.join(objective.inputs)} "
            f"(fitting: {', '.join(fitting)})"
        )
    objective = dataclasses.replace(objective, model=models.create(model, spec), spec=spec, steps=steps)
    objective.check()
    return with_router_losses(objective)
