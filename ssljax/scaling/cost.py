"""Costs of a run before it starts: parameters, FLOPs, tokens and bytes, without any array.

They are those of `ssljax.runs.accounting`, which has the formula of the FLOPs; here the step is not traced, so that a
study of hundreds of runs is counted in seconds.
"""

import dataclasses
import json
import math

import jax

from ssljax import data, objectives
from ssljax.base import durations
from ssljax.base.durations import RunLengths
from ssljax.base.hashing import digest
from ssljax.config import RunConfig
from ssljax.models.flops import TRAINING
from ssljax.runs.accounting import EMBEDDINGS, by_role
from ssljax.train.program import batch_shapes
from ssljax.train.state import abstract_variables, make_variables


@dataclasses.dataclass(frozen=True)
class Cost:
    """The costs of a run.

    Attributes:
        parameters: number of learned parameters, with all heads.
        non_embedding: without tables of tokens and positions and without the projection of patches.
        steps: length of the run.
        batch_size: examples per step.
        flops_per_step: training FLOPs of a step by the formula of the objective; None: it has none.
        tokens_per_example: length of a text; None: the data have no tokens.
        state_bytes: bytes of a checkpoint with two moments of the optimiser, about.
    """

    parameters: int
    non_embedding: int
    steps: int
    batch_size: int
    flops_per_step: float | None
    tokens_per_example: int | None
    state_bytes: int

    @property
    def flops(self) -> float | None:
        """Training FLOPs of the run."""
        return None if self.flops_per_step is None else self.flops_per_step * self.steps

    @property
    def examples(self) -> int:
        """Examples of the run, repeated ones included."""
        return self.steps * self.batch_size

    @property
    def tokens(self) -> int | None:
        """Tokens of the run, repeated ones included."""
        return None if self.tokens_per_example is None else self.examples * self.tokens_per_example


class Costs:
    """Costs of configs; data are opened, and shapes are computed, once for all configs that share them."""

    def __init__(self) -> None:
        self._specs: dict[str, data.DataSpec] = {}
        self._sizes: dict[str, tuple[dict[str, int], int, float | None]] = {}

    def __call__(self, config: RunConfig) -> Cost:
        """Returns the cost of a config.

        Raises:
            UserError: the data cannot be opened, or the parts of the config do not fit each other or the data.
        """
        spec, lengths = self.spec(config), self.lengths(config)
        steps = durations.steps(config.steps, lengths, "steps")
        roles, extra, forward = self._measure(config, spec, steps)
        parameters = sum(roles.values())
        rest = parameters - sum(roles.get(role, 0) for role in EMBEDDINGS)
        copies = 3 + (config.ema is not None)  # parameters and two moments, and their average
        flops = None if forward is None else TRAINING * forward * config.batch_size
        tokens = spec.max_len if spec.tokens else None
        state_bytes = 4 * (copies * parameters + extra)
        return Cost(parameters, rest, steps, config.batch_size, flops, tokens, state_bytes)

    def spec(self, config: RunConfig) -> data.DataSpec:
        """Returns the description of the data of a config."""
        key = digest(config.to_dict()["data"])
        if key not in self._specs:
            pinned = data.pin_tokenizer(config.data)
            self._specs[key] = data.open_data(pinned, config.batch_size, config.seed).spec
        return self._specs[key]

    def lengths(self, config: RunConfig) -> RunLengths:
        """Returns the lengths that convert the durations of a config, without its total."""
        spec = self.spec(config)
        return RunLengths(config.batch_size, spec.size, spec.max_len)

    def _measure(self, config: RunConfig, spec: data.DataSpec, steps: int) -> tuple[dict[str, int], int, float | None]:
        """Returns numbers of parameters by role, the number of other variables, and forward FLOPs of an example."""
        values = config.to_dict()
        key = json.dumps([values["model"], values["objective"], values["data"], config.batch_size], sort_keys=True)
        if key not in self._sizes:
            objective = objectives.create({"objective": config.objective, "model": config.model}, spec, steps)
            shapes, axes = abstract_variables(make_variables(objective, batch_shapes(spec, config.batch_size)))
            extra = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.extra))
            forward = objective.flops(spec) or None
            self._sizes[key] = by_role(axes.params, shapes.params), extra, forward
        return self._sizes[key]
