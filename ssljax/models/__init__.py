"""Families of encoders, thin: a configuration that maps a published recipe to the one block.

`create(config, spec)` gives a Flax module; shapes that the configuration leaves open come from the data.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from ssljax.base import schema
from ssljax.base.registry import Registry

REGISTRY = Registry(
    "model",
    {
        "vit": "ssljax.models.vit:ViTConfig",
        "bert": "ssljax.models.bert:BertConfig",
        "gpt": "ssljax.models.gpt:GPTConfig",
        "clip": "ssljax.models.clip:CLIPConfig",
    },
)


def create(config: Any, spec: Any) -> nn.Module:
    """The module of a configuration (a mapping with `name`, or an instance) for data described by `spec`.

    Raises:
        UserError: unknown name or key, or shapes that do not fit the data.
    """
    if isinstance(config, Mapping):
        config = schema.build_named(REGISTRY, config, "model")
    return config.module(spec)
