"""The list of position schemes by name, and their configuration keys."""

import dataclasses
from typing import Any, Literal

from ssljax.base.errors import UserError
from ssljax.base.registry import Registry
from ssljax.base.schema import setting
from ssljax.layers.terms.base import Term
from ssljax.layers.terms.buckets import BucketKeys
from ssljax.layers.terms.disentangled import DisentangledKeys
from ssljax.layers.terms.grid import GridKeys

BIASES = Registry(  # values of `position_bias`
    "position bias",
    {
        "none": "ssljax.layers.terms.base:Term",
        "alibi": "ssljax.layers.terms.alibi:ALiBi",
        "relative": "ssljax.layers.terms.buckets:RelativeBuckets",
        "grid": "ssljax.layers.terms.grid:GridBias",
        "xlnet": "ssljax.layers.terms.xlnet:XLNet",
    },
    has=("prepare", "logits"),
)
GROUPS = Registry(  # schemes with a group of keys of this name; the scheme is used unless the group is None
    "position scheme", {"disentangled": "ssljax.layers.terms.disentangled:Disentangled"}
)
# A name of BIASES, or "package.module:Class". A command line parses `position_bias=none` as None; the literal turns
# None back into "none" (`ssljax.base.schema`).
PositionBias = Literal["none"] | str


@dataclasses.dataclass(frozen=True)
class TermKeys(BucketKeys, GridKeys, DisentangledKeys):
    """The keys of all schemes."""

    position_bias: PositionBias = setting(
        "none",
        doc='position term added to attention logits: "none"; "alibi", the distance times a fixed slope per head; '
        '"relative", learned biases for buckets of distances (T5); "grid", learned biases for distances in rows and '
        'columns of patches (BEiT); "xlnet", products with vectors of distances and segments; or '
        '"package.module:Class"',
    )


def terms_of(config: Any) -> tuple[Term, ...]:
    """The position terms of a configuration.

    Raises:
        ValueError: `position_bias` is unknown ("position_bias: ...").
    """
    try:
        classes = [BIASES.get(config.position_bias, "position_bias")]
    except UserError as error:
        raise ValueError(str(error)) from error
    classes += [GROUPS.get(name) for name in GROUPS if getattr(config, name) is not None]
    return tuple(cls(config) for cls in classes)
