"""The loss of the objective on held-out data."""

import dataclasses
from collections.abc import Collection
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.evals.base import Evaluation, Metrics, Reader


@dataclasses.dataclass(frozen=True)
class HeldOutLoss(Evaluation):
    """The loss and metrics of the objective with fixed random keys and without dropout, averaged over full batches.

    A loss that compares examples depends on the batch size, which is therefore a key and is reported with the loss.
    Examples beyond the last full batch are left out.
    """

    batch_size: int = setting(256, ge=1, doc="examples in a batch")

    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def headline(self) -> tuple[str, ...]:
        return ("loss",)

    def summary(self) -> str:
        return f"batches of {self.batch_size}, fixed keys"

    def check(self, reader: Reader) -> Collection[str]:
        return self.run(reader)

    def run(self, reader: Reader) -> Metrics:
        return reader.losses(self.test_split, self.batch_size)
