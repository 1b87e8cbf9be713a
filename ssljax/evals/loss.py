"""The loss of the objective on held-out data."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from ssljax.base.schema import setting
from ssljax.evals.base import Direction, Evaluation, Metrics, Reader


@dataclasses.dataclass(frozen=True)
class HeldOutLoss(Evaluation):
    """The loss and metrics of the objective with fixed random keys, without dropout and without augmentation.

    Each term of the loss is its sum over the whole split divided by the sum of its weights (tokens, patches, images).
    A coupled loss compares the examples of a batch. It therefore depends on the batch size, which is reported with the
    loss. Its batches are drawn in a fixed random order, and the examples that do not fill a batch are left out; their
    number is reported.
    """

    batch_size: int = setting(256, ge=1, doc="examples in a batch")

    better: ClassVar[Direction] = "lower"

    def headline(self) -> tuple[str, ...]:
        return ("loss",)

    def shown(self, metrics: Mapping[str, float]) -> Sequence[str]:
        return list(metrics)

    def direction(self, metric: str) -> Direction | None:
        own = metric.rpartition("/")[2]  # without the name of a part of a fusion
        if metric == "loss" or metric.startswith("loss/") or own.startswith("nll_") or own.endswith("error"):
            return "lower"
        return "higher" if metric.startswith("accuracy") or own == "accuracy" else None

    def summary(self) -> str:
        return f"batches of {self.batch_size}, fixed keys"

    def check(self, reader: Reader) -> Collection[str]:
        return self.run(reader)

    def run(self, reader: Reader) -> Metrics:
        return reader.losses(self.test_split, self.batch_size)
