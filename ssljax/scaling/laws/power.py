"""Laws of one size: power laws without and with an asymptote, the logarithm, three regions, saturation at both ends."""

import dataclasses
from typing import Literal

import numpy as np

from ssljax.base.schema import setting
from ssljax.scaling.laws.law import Column, Columns, Example, Law, Parameter, mesh, parts, separable_starts

EXPONENTS = np.linspace(0.02, 2.0, 100)


@dataclasses.dataclass(frozen=True)
class OfOneSize(Law):
    """Base of laws y = f(x)."""

    x: str = setting("tokens", doc="the column of the size: tokens, params, flops, examples, ...")
    y: str = setting("loss", doc="the column of the observations")

    distinct = 2

    @property
    def inputs(self) -> tuple[Column, ...]:
        return (Column(self.x, "count", distinct=self.distinct),)

    @property
    def outputs(self) -> tuple[Column, ...]:
        return (Column(self.y, "mean loss, or another positive number"),)

    def _design(self, low: float, high: float, count: int) -> dict[str, np.ndarray]:
        return {self.x: np.geomspace(low, high, count)}


@dataclasses.dataclass(frozen=True)
class Power(OfOneSize):
    """Power law y = a x^-b, a line between logarithms (Kaplan et al. 2020, eq. 1.1 to 1.3 in another notation)."""

    resample = "residuals"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("a", log=True), Parameter("b"))

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        a, b = parts(parameters)
        return np.exp(np.log(a) - b * np.log(columns[self.x]))

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        slope, level = np.polyfit(np.log(columns[self.x]), np.log(observed), 1, w=np.sqrt(weights))
        return np.array([[np.exp(level), -slope]])

    def example(self) -> Example:
        return Example({"a": 12.0, "b": 0.076}, self._design(1e7, 1e10, 20), 0.01, {self.x: 1e11})


@dataclasses.dataclass(frozen=True)
class PowerOffset(OfOneSize):
    """Power law with an asymptote, y = E + a x^-b.

    With `train`, the joint form of Cortes et al. 1993 ("Learning curves: asymptotic values and rate of convergence",
    eq. 1 and 2; not checked against the paper): held-out loss E + a x^-b and training loss E - c x^-d share the
    asymptote E, which neither curve alone shows until it is flat.
    """

    distinct = 3
    resample = "residuals"

    train: str = setting("", doc="the column of the training loss, for a joint fit with a common asymptote; '': none")

    @property
    def outputs(self) -> tuple[Column, ...]:
        held_out = super().outputs
        return (*held_out, Column(self.train, "mean loss on the training data")) if self.train else held_out

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        rising = (Parameter("c", log=True), Parameter("d", 0.0, 5.0)) if self.train else ()
        return (Parameter("E", 0.0), Parameter("a", log=True), Parameter("b", 0.0, 5.0), *rising)

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        logs = np.log(columns[self.x])
        E, a, b, *rising = parts(parameters)
        held_out = E + np.exp(np.log(a) - b * logs)
        if not self.train:
            return held_out
        c, d = rising
        return np.concatenate([held_out, E - np.exp(np.log(c) - d * logs)], -1)

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        count = len(columns[self.x])
        # In units of the middle size, so that the coefficients of steep terms stay within the range of numbers.
        middle = np.exp(np.log(columns[self.x]).mean())
        logs = np.log(columns[self.x] / middle)
        basis = np.stack([np.ones((100, count)), np.exp(-EXPONENTS[:, None] * logs)], -1)
        (found, points) = separable_starts(basis, EXPONENTS[:, None], observed[:count], weights[:count], True)
        b = points[:, 0]
        columns_of = [found[:, 0], np.maximum(found[:, 1], 1e-6 * observed.min()) * middle**b, b]
        if self.train:
            gap = np.maximum(found[:, 0] - observed[count:].mean(), 1e-3 * observed.min())
            columns_of += [gap * middle**b, b]
        return np.stack(columns_of, -1)

    def example(self) -> Example:
        values = {"E": 1.8, "a": 400.0, "b": 0.35}
        if self.train:
            values |= {"c": 60.0, "d": 0.33}
        return Example(values, self._design(1e6, 1e10, 30), 0.005, {self.x: 1e11})


@dataclasses.dataclass(frozen=True)
class LogLinear(OfOneSize):
    """Line in the logarithm of the size, y = a + b log(x) (Banko and Brill 2001, accuracy against words)."""

    resample = "residuals"

    residual: Literal["log", "linear"] = setting("linear", doc="residuals: differences of logarithms, or of values")
    y: str = setting("accuracy", doc="the column of the observations")

    @property
    def outputs(self) -> tuple[Column, ...]:
        return (Column(self.y, "accuracy, or another number", lower=-np.inf),)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("a"), Parameter("b"))

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        a, b = parts(parameters)
        return a + b * np.log(columns[self.x])

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        slope, level = np.polyfit(np.log(columns[self.x]), observed, 1, w=np.sqrt(weights))
        return np.array([[level, slope]])

    def example(self) -> Example:
        return Example({"a": 0.4, "b": 0.025}, self._design(1e6, 1e9, 20), 0.005, {self.x: 1e10})


@dataclasses.dataclass(frozen=True)
class Broken(OfOneSize):
    """Three regions of a learning curve (Hestness et al. 2017, fig. 6): best guess, power law, irreducible error.

    y = E + A (1 + (x / x1)^s)^(-b / s): E + A up to the change point x1, then a power law of exponent b, and E beyond
    the change point x2 = x1 (A / E)^(1 / b), where the power law has fallen to E. The form of the bend is that of the
    smoothly broken power laws of Caballero et al. 2023 (eq. 1, one break).
    """

    distinct = 5
    resample = "residuals"

    sharpness: float = setting(4.0, gt=0, doc="s, how sharp the first bend is")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("E", 0.0), Parameter("A", log=True), Parameter("b", 0.0, 5.0), Parameter("x1", log=True))

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        E, A, b, x1 = parts(parameters)
        return E + A * self._shape(b, np.log(x1), np.log(columns[self.x]))

    def _shape(self, b: np.ndarray, log_x1: np.ndarray, logs: np.ndarray) -> np.ndarray:
        return np.exp(-b / self.sharpness * np.log1p(np.exp(self.sharpness * (logs - log_x1))))

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        logs = np.log(columns[self.x])
        grid = mesh(np.linspace(0.05, 2.0, 40), np.linspace(logs.min(), logs.max(), 30))
        shape = self._shape(grid[:, :1], grid[:, 1:], logs)
        found, points = separable_starts(np.stack([np.ones_like(shape), shape], -1), grid, observed, weights, True)
        return np.stack(
            [found[:, 0], np.maximum(found[:, 1], 1e-6 * observed.min()), points[:, 0], np.exp(points[:, 1])], -1
        )

    def derived(self, parameters: np.ndarray) -> dict[str, np.ndarray]:
        E, A, b, x1 = (parameters[..., i] for i in range(4))
        with np.errstate(all="ignore"):
            return {"guess": E + A, "x2": x1 * (A / E) ** (1 / b)}

    def example(self) -> Example:
        values = {"E": 0.3, "A": 2.0, "b": 0.5, "x1": 1e4}
        return Example(values, self._design(1e2, 1e8, 40), 0.01, {self.x: 1e9})


@dataclasses.dataclass(frozen=True)
class Vit(OfOneSize):
    """Saturation at both ends, y = a (x + d)^-b + c (Zhai et al. 2022, "Scaling vision transformers", section 3.1).

    The shift d bounds the error of the smallest models, c that of the largest.
    """

    distinct = 5
    resample = "residuals"

    x: str = setting("flops", doc="the column of the size: flops, tokens, params, ...")
    y: str = setting("error", doc="the column of the observations")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("a", log=True), Parameter("b", 0.0, 5.0), Parameter("c", 0.0), Parameter("d", log=True))

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        a, b, c, d = parts(parameters)
        return np.exp(np.log(a) - b * np.log(columns[self.x] + d)) + c

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        x = columns[self.x]
        middle = np.exp(np.log(x).mean())
        shifts = np.geomspace(x.min() * 1e-2, x.max(), 40)
        grid = mesh(np.linspace(0.05, 2.0, 40), shifts)
        term = np.exp(-grid[:, :1] * np.log((x + grid[:, 1:]) / middle))
        found, points = separable_starts(np.stack([np.ones_like(term), term], -1), grid, observed, weights, True)
        a = np.maximum(found[:, 1], 1e-6 * observed.min()) * middle ** points[:, 0]
        return np.stack([a, points[:, 0], found[:, 0], points[:, 1]], -1)

    def example(self) -> Example:
        values = {"a": 26.0 * 1e9**0.35, "b": 0.35, "c": 0.08, "d": 1e14}
        return Example(values, self._design(1e13, 1e19, 40), 0.01, {self.x: 1e20})
