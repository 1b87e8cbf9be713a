"""Evaluations: features, log-probabilities and losses in, numbers out; each beside its controls."""

from ssljax.evals.base import REGISTRY, Evaluation, Probe
from ssljax.evals.harness import Evaluator, build

__all__ = ["REGISTRY", "Evaluation", "Evaluator", "Probe", "build"]
