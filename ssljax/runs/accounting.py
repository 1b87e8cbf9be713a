"""The cost of a run: parameters, examples, tokens and FLOPs, known before its first step: `cost`.

The formula of the FLOPs, version 1:

- Matrix products and convolutions count, 2 m n k for [m, k] @ [k, n]. Norms, activations, softmax and table lookups,
  some per cent of the time of small models, do not.
- Attention counts allowed pairs of tokens: T (T + 1) / 2 for causal models, those in the window of local layers. A
  kernel may compute more.
- A backward pass costs two forward passes, so training costs three; a teacher or another network without gradients
  costs its forward pass. Every view, masked encoder and generator counts with the tokens that it sees.
- Products with the vocabulary count for positions that are predicted.
- Recomputation (`model.remat`), the optimiser and frozen parameters, whose gradients a run need not compute, make no
  difference.

`tests/runs/test_accounting.py` compares it with the products of the program of every objective, and with the
compiler's count.
"""

import collections
import dataclasses
import math
from typing import Any

import jax

from ssljax.layers.roles import default_role
from ssljax.models.flops import TRAINING
from ssljax.runs.assembly import Assembly

FORMULA = 1
EMBEDDINGS = ("embedding", "position", "token")  # roles of parameters that are no part of blocks, norms or heads


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
        parameters: role (`ssljax.layers.roles`) -> number of trained parameters, all heads included.
        flops_per_example: training FLOPs of one example, all its views included; None: the objective does not tell.
        examples: examples that the run sees, repetitions included.
        size: examples in an epoch.
        tokens: tokens that the run sees, repetitions and padding included; None without text.
        unique_tokens: tokens of the data that the run sees at least once, without padding; None without text.
        formula: version of the formula of the FLOPs.
    """

    parameters: dict[str, int]
    flops_per_example: float | None
    examples: int
    size: int
    tokens: int | None
    unique_tokens: int | None
    formula: int = FORMULA

    @property
    def total(self) -> int:
        """Number of trained parameters."""
        return sum(self.parameters.values())

    @property
    def non_embedding(self) -> int:
        """Number of parameters without tables of tokens and positions and without the projection of patches.

        N of Kaplan et al. 2020 (section 2.1), with the map to the vocabulary if it is a parameter of its own.
        """
        return self.total - sum(self.parameters.get(role, 0) for role in EMBEDDINGS)

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.examples / self.size

    @property
    def flops(self) -> float | None:
        """Training FLOPs of the run."""
        return None if self.flops_per_example is None else self.flops_per_example * self.examples


def cost(assembly: Assembly) -> Cost:
    """Returns the cost of a run."""
    config, spec, program = assembly.config, assembly.spec, assembly.program
    examples = assembly.steps * config.batch_size
    tokens = None if spec.tokens is None else examples * (spec.max_len or 0)
    unique = None if spec.tokens is None else math.ceil(spec.tokens * min(1.0, examples / spec.size))
    forward = program.objective.flops(spec)
    counts = by_role(program.axes.params, program.shapes.params)
    return Cost(counts, TRAINING * forward if forward else None, examples, spec.size, tokens, unique)


def by_role(axes: Any, shapes: Any) -> dict[str, int]:
    """Returns {role: number of parameters}, the largest number first.

    Args:
        axes: tree of logical axis names with roles.
        shapes: tree of the shapes of the parameters.
    """
    counts: dict[str, int] = collections.Counter()
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    for axis, shape in zip(names, jax.tree.leaves(shapes), strict=True):
        counts[getattr(axis, "role", None) or default_role(len(shape.shape))] += math.prod(shape.shape)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
