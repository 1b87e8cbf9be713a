"""Published laws by name."""

from collections.abc import Mapping
from typing import Any

from ssljax.base.registry import Registry
from ssljax.base.schema import build_named
from ssljax.scaling.laws.law import Law

_HERE = "ssljax.scaling.laws"
REGISTRY = Registry(
    "law",
    {
        "power": f"{_HERE}.power:Power",
        "power_offset": f"{_HERE}.power:PowerOffset",
        "log_linear": f"{_HERE}.power:LogLinear",
        "broken": f"{_HERE}.power:Broken",
        "vit": f"{_HERE}.power:Vit",
        "kaplan": f"{_HERE}.kaplan:Kaplan",
        "critical_batch": f"{_HERE}.kaplan:CriticalBatch",
        "chinchilla": f"{_HERE}.chinchilla:Chinchilla",
        "overtraining": f"{_HERE}.chinchilla:Overtraining",
        "data_constrained": f"{_HERE}.chinchilla:DataConstrained",
        "inference_aware": f"{_HERE}.chinchilla:InferenceAware",
        "isoflop": f"{_HERE}.optima:Isoflop",
        "chinchilla_envelope": f"{_HERE}.optima:Envelope",
        "hyperparameters": f"{_HERE}.optima:Hyperparameters",
        "downstream": f"{_HERE}.tasks:Downstream",
        "coverage": f"{_HERE}.tasks:Coverage",
        "mixture": f"{_HERE}.mixture:Mixture",
    },
    has=("predict", "estimate"),
)


def create(name: str, options: Mapping[str, Any] | None = None) -> Law:
    """Returns a law by its name, or by "module:Class".

    Args:
        name: a name of the registry.
        options: {key: value} of the law.

    Raises:
        UserError: an unknown name or key, or a value that does not fit.
    """
    return build_named(REGISTRY, {**(options or {}), "name": name}, "law")
