"""SupCon: all views of the images of a class are positives of each other.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan 2020, "Supervised Contrastive Learning".
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.two_view import Compared, TwoView, Views

FORMS: dict[str, Literal["out", "in"]] = {"outside": "out", "inside": "in"}  # the names of `losses.sup_con`


@dataclasses.dataclass(frozen=True)
class SupCon(TwoView):
    """The supervised contrastive loss of the 2B projections of a batch (eq. 2)."""

    term: ClassVar[str] = "sup_con"
    joint: ClassVar[bool] = True

    temperature: float = schema.setting(0.1, gt=0, doc="temperature of the softmax over similarities (tau)")
    positive_mean: Literal["outside", "inside"] = schema.setting(
        "outside", doc="whether the mean over positives stands outside (eq. 2) or inside (eq. 3) the logarithm"
    )

    @property
    def reads_labels(self) -> bool:
        return True

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        z, labels = jnp.concatenate([seen.p[:, 0], seen.p[:, 1]]), jnp.tile(inputs["label"], 2)
        values, _ = losses.sup_con(
            z, labels, temperature=self.temperature, form=FORMS[self.positive_mean], reduce=False
        )
        return Compared((values[: len(seen.p)] + values[len(seen.p) :]) / 2)
