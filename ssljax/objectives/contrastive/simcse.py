"""SimCSE: a sentence is matched with itself under another dropout mask, among the sentences of the batch.

Gao, Yao, Chen 2021, "SimCSE: Simple Contrastive Learning of Sentence Embeddings".
"""

import dataclasses
from typing import Any, ClassVar

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.contrastive.matching import ContrastiveObjective
from ssljax.objectives.projector import Projector
from ssljax.objectives.two_view import Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class SimCSE(TwoView, ContrastiveObjective):
    """InfoNCE in one direction between two dropout masks (eq. 4, unsupervised).

    The projector is a linear map, which the paper's tanh does not follow.
    """

    term: ClassVar[str] = "simcse"
    reads_target: ClassVar[bool] = True

    temperature: float = schema.setting(0.05, gt=0, doc="temperature of the softmax over similarities (tau of eq. 4)")
    symmetric: bool = schema.setting(False, doc="whether the other direction counts too; the paper has one")
    projector: Projector = schema.setting(
        Projector(output=768, layers=1, norm=None), doc="network between the encoder and the loss"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        learned = {"temperature": self.temperature}
        matched = self.match(losses.info_nce, seen.p[:, 0], seen.target[:, 1], learned, ctx)
        if not self.symmetric:
            return Compared(matched.values, {"accuracy": matched.accuracy})
        other = self.match(losses.info_nce, seen.p[:, 1], seen.target[:, 0], learned, ctx)
        right, number = (a + b for a, b in zip(matched.accuracy, other.accuracy))
        return Compared((matched.values + other.values) / 2, {"accuracy": (right, number)})
