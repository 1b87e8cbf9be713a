"""The presets of all families and their parameter counts, by shape evaluation: nothing is allocated."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from ssljax.models import REGISTRY

_OF_THE_DATA = ("vocab_size", "max_len", "image_shape")  # keys whose None means: that of the data


class CountedPreset(NamedTuple):
    """A preset of a family with its parameter count."""

    model: str
    preset: str  # "": the family has none
    parameters: int | None  # counted as published; None: see `reason`
    reason: str = ""  # why there is no number


def list_presets() -> Iterator[CountedPreset]:
    """Yields every preset of every registered family as soon as it is counted."""
    return (counted(model, preset) for model, preset in names())


def names() -> Iterator[tuple[str, str]]:
    """(family, preset) of every registered family; the preset is "" where the family has none."""
    for model in REGISTRY:
        yield from ((model, preset) for preset in getattr(REGISTRY.get(model), "presets", {}) or ("",))


def counted(model: str, preset: str) -> CountedPreset:
    """Counts the parameters of one preset of a family."""
    if not preset:
        return CountedPreset(model, preset, None, "no presets")
    config = published(REGISTRY.get(model), preset)
    reason = uncountable(config)
    return CountedPreset(model, preset, None if reason else parameters(config), reason)


def published(cls: Any, preset: str) -> Any:
    """The configuration on which the published parameter count of a preset is based."""
    return dataclasses.replace(cls(preset=preset).with_preset(), preset=None, **cls.published.keys)


def uncountable(config: Any) -> str:
    """Why a configuration alone does not decide the number of parameters; "" if it does."""
    if not hasattr(config, "standalone"):
        return "shapes come from the data"
    unknown = sorted(_unknown(config), key=_OF_THE_DATA.index)
    return f"{', '.join(unknown)}: of the data" if unknown else ""


def _unknown(config: Any) -> set[str]:
    """Keys of the data that are open, in towers too."""
    parts = [getattr(config, field.name) for field in dataclasses.fields(config)]
    here = {name for name in _OF_THE_DATA if getattr(config, name, 0) is None}
    return here.union(*(_unknown(part) for part in parts if hasattr(part, "with_preset")))


def parameters(config: Any) -> int:
    """The number of parameters of a configuration, with the classifier that its family's published numbers include."""
    module = config.standalone()
    shapes = jax.eval_shape(lambda: module.initial(jax.random.key(0)))["params"]
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    unused = 0 if getattr(config, "first_norm", True) else module.width  # stacked with the norms of the other blocks
    return stored - unused + config.published.classes * (module.width + 1)
