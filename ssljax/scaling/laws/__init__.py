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
        "chinchilla": f"{_HERE}.chinchilla:Chinchilla",
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
