"""The result of `ssljax.train`."""

import dataclasses
import pathlib
from typing import Any

from ssljax.objectives.base import Objective
from ssljax.runs.evaluation import evaluation_params
from ssljax.runs.workdir import Workdir
from ssljax.train.state import State


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run after its last step.

    Attributes:
        objective: the objective, with its module as `model`.
        state: the state after the last step.
        evaluations: the final evaluations of the model and its controls, one mapping each, as written to evals.jsonl.
        workdir: the folder of the run.
    """

    objective: Objective
    state: State
    evaluations: list[dict[str, Any]]
    workdir: pathlib.Path

    @property
    def params(self) -> Any:
        """The parameters of the objective that evaluations use: averaged ones if the run keeps an average."""
        return evaluation_params(self.state)

    @property
    def model_params(self) -> Any:
        """The parameters of `objective.model`."""
        return self.objective.model_params(self.params, self.state.extra)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: the means of each metric between two log points."""
        return Workdir(self.workdir).metrics()

    def __repr__(self) -> str:
        return f"Finished(step={int(self.state.step)}, workdir={str(self.workdir)!r})"
