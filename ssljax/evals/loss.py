"""The objective's own loss on held-out data."""

import dataclasses
from collections.abc import Collection
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.evals.base import Evaluation, Metrics, Reader


@dataclasses.dataclass(frozen=True)
class HeldOutLoss(Evaluation):
    """The loss and the objective's metrics with fixed random keys and no dropout, averaged over full batches.

    A loss that compares examples with each other depends on how many it sees: `batch_size` is its own key and is
    written beside the number. Examples that do not fill a last batch are left out.

    Attributes:
        batch_size: examples in each batch.
    """

    batch_size: int = setting(256, ge=1)

    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def headline(self) -> tuple[str, ...]:
        return ("loss",)

    def summary(self) -> str:
        return f"batches of {self.batch_size}, fixed keys"

    def check(self, reader: Reader) -> Collection[str]:
        return self.run(reader)

    def run(self, reader: Reader) -> Metrics:
        return reader.losses(self.test_split, self.batch_size)
