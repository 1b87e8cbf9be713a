"""The multi-layer perceptrons between an encoder and a loss, not used after training."""

import dataclasses
from typing import Literal

from ssljax.base import schema
from ssljax.layers.heads import MLPHead


@dataclasses.dataclass(frozen=True)
class Projector:
    """A projector: `layers` linear maps with ReLU between them; output widths `hidden`, ..., `hidden`, `output`."""

    hidden: int = schema.setting(2048, gt=0, doc="width of the hidden layers")
    output: int = schema.setting(128, gt=0, doc="width of the projections")
    layers: int = schema.setting(2, gt=0, doc="number of linear maps; 1: no hidden layer")
    norm: Literal["batch", "layer"] | None = schema.setting(
        "batch",
        doc="normalisation of the hidden layers; 'batch': over the whole global batch, without running statistics; "
        "None: no normalisation",
    )
    final_norm: bool = schema.setting(
        False, doc="whether the output is normalised like the hidden layers; of 'batch', without scale and shift"
    )

    def module(self, input_ratio: float = 1.0) -> MLPHead:
        """The projector of vectors with a width ratio (`ssljax.layers.width`)."""
        features = (self.hidden,) * (self.layers - 1) + (self.output,)
        return MLPHead(features, self.norm, self.final_norm, input_ratio=input_ratio)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A predictor from projections to projections: `layers` linear maps with ReLU between them."""

    hidden: int = schema.setting(4096, gt=0, doc="width of the hidden layers")
    layers: int = schema.setting(2, gt=0, doc="number of linear maps; 1: no hidden layer")
    norm: Literal["batch", "layer"] | None = schema.setting(
        "batch", doc="normalisation of the hidden layers; see the projector"
    )
    final_norm: bool = schema.setting(False, doc="whether the output is normalised like the hidden layers")

    def module(self, output: int) -> MLPHead:
        """The predictor of projections of width `output`."""
        features = (self.hidden,) * (self.layers - 1) + (output,)
        return MLPHead(features, self.norm, self.final_norm)
