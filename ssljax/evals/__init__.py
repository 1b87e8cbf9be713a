"""Evaluations: from features, log-probabilities and losses to metrics, always with controls."""

from ssljax.evals.base import REGISTRY, DrawnProbe, Evaluation, Probe
from ssljax.evals.harness import Evaluator, build

__all__ = ["REGISTRY", "DrawnProbe", "Evaluation", "Evaluator", "Probe", "build"]
