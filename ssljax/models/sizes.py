"""The named sizes of all families and their numbers of parameters, by shape evaluation: nothing is allocated."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from ssljax.models import REGISTRY

_OF_THE_DATA = ("vocab_size", "max_len", "image_shape")  # keys whose None means: that of the data


class NamedSize(NamedTuple):
    """A size of a family."""

    model: str
    size: str  # "": the family has no named sizes
    parameters: int | None  # counted as published; None: see `reason`
    reason: str = ""  # why there is no number


def sizes() -> Iterator[NamedSize]:
    """Every size of every registered family, one at a time, as they are counted."""
    return (counted(model, size) for model, size in names())


def names() -> Iterator[tuple[str, str]]:
    """(family, size) of every registered family; its size is "" where it has none with a name."""
    for model in REGISTRY:
        yield from ((model, size) for size in getattr(REGISTRY.get(model), "presets", {}) or ("",))


def counted(model: str, size: str) -> NamedSize:
    """One size of a family."""
    if not size:
        return NamedSize(model, size, None, "no named sizes")
    config = published(REGISTRY.get(model), size)
    reason = uncountable(config)
    return NamedSize(model, size, None if reason else parameters(config), reason)


def published(cls: Any, size: str) -> Any:
    """The configuration that the published number of parameters of a named size is counted on."""
    return dataclasses.replace(cls(size=size).resolved(), size=None, **cls.published.keys)


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
    return here.union(*(_unknown(part) for part in parts if hasattr(part, "resolved")))


def parameters(config: Any) -> int:
    """The number of parameters of a configuration, with the classifier that its family's published numbers include."""
    module = config.standalone()
    shapes = jax.eval_shape(lambda: module.initial(jax.random.key(0)))["params"]
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    unused = 0 if getattr(config, "first_norm", True) else module.width  # stacked with the norms of the other blocks
    return stored - unused + config.published.classes * (module.width + 1)
