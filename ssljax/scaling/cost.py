"""Costs of a run before it starts: parameters, FLOPs, tokens and bytes, without any array."""

import dataclasses
import json
import math
from typing import Any

import jax

from ssljax import data, objectives
from ssljax.base import durations
from ssljax.base.durations import RunLengths
from ssljax.base.hashing import digest
from ssljax.config import RunConfig
from ssljax.train.program import batch_shapes, variable_shapes

TRAINING = 3  # forward passes that a training step costs: the backward pass counts as two (`ssljax.models.flops`)


@dataclasses.dataclass(frozen=True)
class Cost:
    """The costs of a run.

    Attributes:
        parameters: number of learned parameters, with all heads.
        steps: length of the run.
        batch_size: examples per step.
        flops_per_step: training FLOPs of a step by the formula of the objective; None: it has none.
        tokens_per_example: length of a text; None: the data have no tokens.
        state_bytes: bytes of a checkpoint with two moments of the optimiser, about.
    """

    parameters: int
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
        self._sizes: dict[str, tuple[int, int, float | None]] = {}

    def __call__(self, config: RunConfig) -> Cost:
        """Returns the cost of a config.

        Raises:
            UserError: the data cannot be opened, or the parts of the config do not fit each other or the data.
        """
        spec, lengths = self.spec(config), self.lengths(config)
        steps = durations.steps(config.steps, lengths, "steps")
        parameters, extra, forward = self._measure(config, spec, steps)
        copies = 3 + (config.ema is not None)  # parameters and two moments, and their average
        flops = None if forward is None else TRAINING * forward * config.batch_size
        tokens = spec.max_len if spec.tokens else None
        return Cost(parameters, steps, config.batch_size, flops, tokens, 4 * (copies * parameters + extra))

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

    def _measure(self, config: RunConfig, spec: data.DataSpec, steps: int) -> tuple[int, int, float | None]:
        """Numbers of parameters and of other variables, and forward FLOPs of an example."""
        values = config.to_dict()
        key = json.dumps([values["model"], values["objective"], values["data"], config.batch_size], sort_keys=True)
        if key not in self._sizes:
            objective = objectives.create({"objective": config.objective, "model": config.model}, spec, steps)
            shapes = variable_shapes(objective, batch_shapes(spec, config.batch_size))
            forward = objective.flops(spec) or None
            self._sizes[key] = _numbers(shapes.params), _numbers(shapes.extra), forward
        return self._sizes[key]


def _numbers(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
