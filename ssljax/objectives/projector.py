"""The multi-layer perceptron between an encoder and a loss, dropped after training."""

import dataclasses
from typing import Literal

from ssljax.base import schema
from ssljax.layers.heads import MLPHead


@dataclasses.dataclass(frozen=True)
class Projector:
    """`layers` linear maps with ReLU between them, widths `hidden`, ..., `output`.

    hidden: width of the hidden layers. output: width of the projections. layers: number of linear maps; 1: none hidden.
    norm: of the hidden layers ("batch": over the whole global batch, without running statistics).
    """

    hidden: int = schema.setting(2048, gt=0)
    output: int = schema.setting(128, gt=0)
    layers: int = schema.setting(2, gt=0)
    norm: Literal["batch", "layer"] | None = "batch"

    def module(self) -> MLPHead:
        return MLPHead(features=(self.hidden,) * (self.layers - 1) + (self.output,), norm=self.norm)
