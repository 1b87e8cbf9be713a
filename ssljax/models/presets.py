"""The presets of all families with their parameter counts, from shapes alone: no parameter is allocated."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from ssljax.models import REGISTRY
from ssljax.models.family import OF_DATA


class CountedPreset(NamedTuple):
    """A preset of a family with its parameter count."""

    model: str
    preset: str  # "": the family has no presets
    parameters: int | None  # number of parameters, counted as in the publication; None: unknown
    reason: str = ""  # the reason why the number is unknown


def list_presets() -> Iterator[CountedPreset]:
    """Yields every preset of every registered family with its parameter count."""
    return (count_preset(model, preset) for model, preset in preset_names())


def preset_names() -> Iterator[tuple[str, str]]:
    """Yields (family, preset) of every registered family; the preset is "" if the family has none."""
    for model in REGISTRY:
        yield from ((model, preset) for preset in getattr(REGISTRY.get(model), "presets", {}) or ("",))


def count_preset(model: str, preset: str) -> CountedPreset:
    """Counts the parameters of one preset of a family."""
    if not preset:
        return CountedPreset(model, preset, None, "no presets")
    config = published_config(REGISTRY.get(model), preset)
    reason = uncountable_reason(config)
    return CountedPreset(model, preset, None if reason else count_parameters(config), reason)


def published_config(cls: Any, preset: str) -> Any:
    """The configuration whose parameters the publication of a preset counts."""
    return dataclasses.replace(cls(preset=preset).with_preset(), preset=None, **cls.published_count.keys)


def uncountable_reason(config: Any) -> str:
    """The reason why the number of parameters depends on the data; "" if it does not."""
    if not hasattr(config, "standalone"):
        return "shapes come from the data"
    unset = sorted(_unset_data_keys(config), key=OF_DATA.index)
    return f"{', '.join(unset)}: of the data" if unset else ""


def _unset_data_keys(config: Any) -> set[str]:
    """The keys whose values come from the data, in towers too."""
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    unset = {name for name in OF_DATA if getattr(config, name, 0) is None}
    return unset.union(*(_unset_data_keys(value) for value in values if hasattr(value, "with_preset")))


def count_parameters(config: Any) -> int:
    """The number of parameters of a configuration, including the classifier of its `published_count`."""
    module = config.standalone()
    shapes = jax.eval_shape(lambda: module.initial(jax.random.key(0)))["params"]
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # Without `first_norm`, the first norm is stored with the others and never used.
    unused = 0 if getattr(config, "first_norm", True) else module.width
    return stored - unused + config.published_count.classes * (module.width + 1)
