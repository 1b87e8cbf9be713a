"""Laws of tasks: error from loss, and coverage of repeated samples."""

import dataclasses
from typing import Literal

import numpy as np
from scipy.special import betaln, expit, gammaln

from ssljax.base.schema import setting
from ssljax.scaling.laws.law import Column, Columns, Example, Law, Parameter, mesh, parts, separable_starts

FEWEST = 4  # samples of a problem: three values of k for the two parameters of the curve


@dataclasses.dataclass(frozen=True)
class Downstream(Law):
    """Error of a task from the loss.

    - "exponential": error = top - k exp(-gamma L) (Gadre et al. 2024, eq. 5; top is the error of chance).
    - "sigmoid": error = low + height / (1 + exp(-s (L - L0))) (Dubey et al. 2024, section 3.2.1, in words there).
    """

    resample = "residuals"

    residual: Literal["log", "linear"] = setting("linear", doc="residuals: differences of logarithms, or of values")
    form: Literal["exponential", "sigmoid"] = setting("exponential", doc="the curve, see above")

    @property
    def inputs(self) -> tuple[Column, ...]:
        return (Column("loss", "mean loss of a token", distinct=4),)

    @property
    def outputs(self) -> tuple[Column, ...]:
        return (Column("error", "share of wrong answers", lower=0.0, upper=1.0, open=False),)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        if self.form == "exponential":
            return (Parameter("top", 0.0, 2.0), Parameter("k", log=True), Parameter("gamma", 1e-3, 20.0))
        steep = (Parameter("s", 1e-2, 100.0, log=True), Parameter("L0"))
        return (Parameter("low", 0.0, 1.0), Parameter("height", 0.0, 2.0), *steep)

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        if self.form == "exponential":
            top, k, gamma = parts(parameters)
            return top - np.exp(np.log(k) - gamma * columns["loss"])
        low, height, s, middle = parts(parameters)
        return low + height / (1 + np.exp(-s * (columns["loss"] - middle)))

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        loss = columns["loss"]
        ones = np.ones(len(loss))
        if self.form == "exponential":
            grid = np.geomspace(0.02, 10, 120)[:, None]
            basis = np.stack([np.tile(ones, (120, 1)), -np.exp(-grid * (loss - loss.mean()))], -1)
            found, points = separable_starts(basis, grid, observed, weights, False)
            k = np.maximum(found[:, 1], 1e-6) * np.exp(points[:, 0] * loss.mean())
            return np.stack([found[:, 0], k, points[:, 0]], -1)
        width = np.ptp(loss)
        grid = mesh(np.geomspace(0.5, 60, 30) / width, np.linspace(loss.min() - width, loss.max() + width, 40))
        curve = expit(grid[:, :1] * (loss - grid[:, 1:]))
        found, points = separable_starts(np.stack([np.ones_like(curve), curve], -1), grid, observed, weights, False)
        return np.concatenate([found, points], 1)

    def candidates(self, columns: Columns, budget: float, count: int) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def size(self, columns: Columns) -> np.ndarray:
        """Returns exp(-L), by which the past is told from the future: forecasts go to smaller losses."""
        return np.exp(-columns["loss"])

    def example(self) -> Example:
        values = {"top": 0.85, "k": 2.0, "gamma": 0.75, "low": 0.15, "height": 0.6, "s": 5.0, "L0": 2.9}
        chosen = {p.name: values[p.name] for p in self.parameters}
        return Example(chosen, {"loss": np.linspace(2.0, 4.2, 30)}, 0.01, {"loss": 1.9})


@dataclasses.dataclass(frozen=True)
class _Curve(Law):
    """Coverage c(k) = exp(-a k^-b)."""

    residual: Literal["log", "linear"] = setting("linear")

    @property
    def inputs(self) -> tuple[Column, ...]:
        return (Column("k", "samples"),)

    @property
    def outputs(self) -> tuple[Column, ...]:
        return (Column("coverage", "share of problems"),)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("a", log=True), Parameter("b", 1e-3, 10.0))

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        a, b = parts(parameters)
        return np.exp(-np.exp(np.log(a) - b * np.log(columns["k"])))

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        falling = np.log(-np.log(np.clip(observed, 1e-6, 1 - 1e-6)))
        slope, level = np.polyfit(np.log(columns["k"]), falling, 1)
        return np.array([[np.exp(level), max(-slope, 1e-2)]])


@dataclasses.dataclass(frozen=True)
class Coverage(Law):
    """Share of problems that at least one of k samples solves, c(k) = exp(-a k^-b) (Brown et al. 2024, "Large language
    monkeys", section 3.1).

    Rows are problems: `samples` n that were drawn, `correct` c of them. The curve that is fitted is the mean over
    problems of the unbiased estimate 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, eq. 1); 1 - (1 - c / n)^k would be
    biased. It is fitted at powers of two up to the fewest samples of a problem, by least squares. The bootstrap draws
    problems.
    """

    residual: Literal["log", "linear"] = setting("linear", doc="residuals: differences of logarithms, or of values")

    @property
    def inputs(self) -> tuple[Column, ...]:
        return (
            Column("samples", "samples of a problem", distinct=1, lower=FEWEST, open=False),
            Column("correct", "solutions among them", distinct=2, lower=0.0, open=False),
        )

    @property
    def outputs(self) -> tuple[Column, ...]:
        return (Column("correct", "solutions among the samples", lower=0.0, open=False),)

    @property
    def asked(self) -> tuple[str, ...]:
        return ("k",)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return _Curve().parameters

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        """Returns the coverage [..., n] at k samples."""
        return _Curve().predict(parameters, columns)

    def refused(self, columns: Columns, observed: np.ndarray) -> tuple[int, str] | None:
        more = np.flatnonzero(columns["correct"] > columns["samples"])
        if not len(more):
            return None
        row = int(more[0])
        return row, f"{columns['correct'][row]:g} correct of {columns['samples'][row]:g} samples"

    @staticmethod
    def powers(samples: np.ndarray) -> np.ndarray:
        """Powers of two [K] up to the fewest samples of a problem."""
        return 2.0 ** np.arange(int(np.log2(samples.min())) + 1)

    def estimate(
        self, columns: Columns, observed: np.ndarray, weights: np.ndarray, around: np.ndarray | None = None
    ) -> np.ndarray:
        k = self.powers(columns["samples"])
        curves = weights @ pass_at_k(columns["samples"], columns["correct"], k) / weights.sum(1, keepdims=True)
        return _Curve(delta=self.delta).estimate({"k": k}, curves, np.ones((len(curves), len(k))), around)

    def points(self, columns: Columns, observed: np.ndarray) -> tuple[Columns, np.ndarray]:
        """Returns the curve: k, and the estimated coverage."""
        k = self.powers(columns["samples"])
        return {"k": k}, pass_at_k(columns["samples"], columns["correct"], k).mean(0)

    def candidates(self, columns: Columns, budget: float, count: int) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def size(self, columns: Columns) -> np.ndarray:
        """Returns equal sizes: problems have no past and future."""
        return np.ones(len(columns["samples"]))

    def example(self) -> Example:
        """A population of problems with success rates from Beta(0.4, 2); the truth is the fit to its exact curve."""
        samples = np.full(150, 100.0)
        k = self.powers(samples)
        exact = 1 - np.exp(betaln(0.4, 2 + k) - betaln(0.4, 2))
        truth = _Curve().estimate({"k": k}, exact[None], np.ones((1, len(k))))[0]
        return Example(dict(zip("ab", map(float, truth))), {"samples": samples}, 0.0, {"k": 50.0})

    def simulate(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        samples = example.columns["samples"]
        rates = rng.beta(0.4, 2, len(samples))
        return {"samples": samples, "correct": rng.binomial(samples.astype(int), rates).astype(float)}


def pass_at_k(samples: np.ndarray, correct: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Returns the unbiased estimate [n, K] that one of k samples is correct (Chen et al. 2021, eq. 1).

    It is 1 - C(n - c, k) / C(n, k): the share of sets of k of the n samples that hold one of the c correct ones.

    Args:
        samples: [n].
        correct: [n], at most `samples`.
        k: [K], at most `samples`.
    """
    n, c = samples[:, None], correct[:, None]
    wrong = n - c
    possible = wrong >= k
    left = np.where(possible, wrong - k, 0)
    logs = gammaln(wrong + 1) - gammaln(left + 1) + gammaln(n - k + 1) - gammaln(n + 1)
    return 1 - np.where(possible, np.exp(logs), 0.0)
