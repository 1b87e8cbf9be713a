"""The host arrays of the splits that evaluations read."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ssljax import data
from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.evals.base import Evaluation

Load = Callable[..., dict[str, np.ndarray]]


class Splits:
    """Loads splits and keeps their arrays.

    Args:
        data_config: the `data` group of the run.
        load: see `ssljax.evals.harness.Evaluator`; None = `ssljax.data.load_split`.
    """

    def __init__(self, data_config: Any, load: Load | None):
        self.data_config, self._load = data_config, load or data.load_split
        self.loaded: dict[str, dict[str, np.ndarray]] = {}

    @property
    def training_source(self) -> str | None:
        """The URI of the training source; None for a mixture."""
        return getattr(self.data_config, "source", None)

    def open(self, evaluation: Evaluation, split: str) -> tuple[str, dict[str, np.ndarray]]:
        """Returns a cache key and the host arrays of a split of the source of an evaluation.

        Raises:
            UserError: the split is empty, or another error of the data; messages begin with a key of `data`.
        """
        options = {k: getattr(evaluation, k) for k in ("source", "keys", "where", "max_examples")}
        key = digest({"split": split, **options})
        if key not in self.loaded:
            arrays = self._load(self.data_config, split, **{k: v for k, v in options.items() if v is not None})
            if not len(arrays["id"]):
                source = evaluation.source or self.training_source
                raise UserError(f"data.split: split {split!r} of {source!r} is empty")
            self.loaded[key] = arrays
        return key, self.loaded[key]

    def shared(self, evaluation: Evaluation, first: str, second: str) -> int:
        """Returns the number of rows that two splits of the source of an evaluation share."""
        return data.shared_rows(self._source(evaluation, first), self._source(evaluation, second))

    def trained_on(self, evaluation: Evaluation, split: str) -> int:
        """Returns the number of rows of a split of an evaluation that belong to the training split."""
        chosen = self._source(evaluation, split)
        return sum(data.shared_rows(part, chosen) for part in self.data_config.sources)

    def _source(self, evaluation: Evaluation, split: str) -> data.SourceConfig:
        options = {k: getattr(evaluation, k) for k in ("source", "keys", "where")}
        return data.split_source(self.data_config, split, **options)
