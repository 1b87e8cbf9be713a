"""GraphCL: two augmented views of a graph are matched among the graphs of the batch.

You, Chen, Sui, Chen, Wang, Shen 2020, "Graph Contrastive Learning with Augmentations".
"""

import dataclasses
import functools
from typing import Any, ClassVar

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.contrastive.matching import ContrastiveObjective
from ssljax.objectives.projector import Projector
from ssljax.objectives.two_view import PIPELINES, Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class GraphCL(TwoView, ContrastiveObjective):
    """The loss of eq. 3 on projections of the two views, from the first view to the second.

    The projector has two maps without a norm, by default of the width of the default `gin`, as in the paper.
    """

    term: ClassVar[str] = "graph_cl"

    temperature: float = schema.setting(0.2, gt=0, doc="temperature of the similarities (tau of eq. 3)")
    positive_in_denominator: bool = schema.setting(
        False,
        doc="whether the positive pair is in the denominator, which bounds the loss; the paper leaves it out",
    )
    augment: Any = schema.setting(
        {"name": "graph_views"},
        registry=PIPELINES,
        doc="augmentation of the two views, by default of graphs with a random one of the paper's four operations each",
    )

    projector: Projector = schema.setting(
        Projector(hidden=96, output=96, norm=None), doc="network between the encoder and the loss"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        loss = functools.partial(losses.graph_cl, positive_in_denominator=self.positive_in_denominator)
        matched = self.match(loss, seen.p[:, 0], seen.p[:, 1], {"temperature": self.temperature}, ctx)
        return Compared(matched.values, {"accuracy": matched.accuracy})
