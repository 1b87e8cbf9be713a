"""Loss against the share of a source in the training data, and under a shift of the test data."""

import dataclasses
from typing import Literal

import numpy as np

from ssljax.base.schema import setting
from ssljax.scaling.laws.law import Column, Columns, Example, Law, Parameter, parts, separable_starts
from ssljax.scaling.laws.power import EXPONENTS


@dataclasses.dataclass(frozen=True)
class Mixture(Law):
    """Mixtures and shifts.

    - "share": L(q) = c + k exp(-t q), the loss on a domain against its share q in the training data (Ye et al. 2024,
      "Data mixing laws", eq. 1 with one domain).
    - "shift": L = E + B / D^beta + offset s, with s = 1 for test data of another distribution and 0 for that of the
      training: a shift moves the curve by a constant (Kaplan et al. 2020, section 3.2.2).
    """

    resample = "residuals"

    form: Literal["share", "shift"] = setting("share", doc="loss against share, or against tokens and shift")

    @property
    def inputs(self) -> tuple[Column, ...]:
        if self.form == "share":
            return (Column("share", "share of the source, 0 to 1", distinct=4, upper=1.0, open=False),)
        shifted = Column("shifted", "1: test data of another distribution; 0: of the training", upper=1.0, open=False)
        return (Column("tokens", "training tokens", distinct=3), shifted)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        if self.form == "share":
            return (Parameter("c", 0.0), Parameter("k", log=True), Parameter("t", 1e-3, 200.0))
        curve = (Parameter("E", 0.0), Parameter("B", log=True), Parameter("beta", 0.0, 5.0))
        return (*curve, Parameter("offset"))

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        if self.form == "share":
            c, k, t = parts(parameters)
            return c + np.exp(np.log(k) - t * columns["share"])
        E, B, beta, offset = parts(parameters)
        return E + np.exp(np.log(B) - beta * np.log(columns["tokens"])) + offset * columns["shifted"]

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        relative, floor = self.residual == "log", 1e-6 * observed.min()
        if self.form == "share":
            grid = np.geomspace(0.05, 100, 150)[:, None]
            term = np.exp(-grid * columns["share"])
            basis = np.stack([np.ones_like(term), term], -1)
            found, points = separable_starts(basis, grid, observed, weights, relative)
            return np.stack([found[:, 0], np.maximum(found[:, 1], floor), points[:, 0]], -1)
        middle = np.exp(np.log(columns["tokens"]).mean())
        term = np.exp(-EXPONENTS[:, None] * np.log(columns["tokens"] / middle))
        shifted = np.broadcast_to(columns["shifted"], term.shape)
        ends = []
        for sign in (1, -1):
            basis = np.stack([np.ones_like(term), term, sign * shifted], -1)
            linear, points = separable_starts(basis, EXPONENTS[:, None], observed, weights, relative)
            beta = points[:, 0]
            B = np.maximum(linear[:, 1], floor) * middle**beta
            ends.append(np.stack([linear[:, 0], B, beta, sign * linear[:, 2]], -1))
        return np.concatenate(ends)

    def candidates(self, columns: Columns, budget: float, count: int) -> dict[str, np.ndarray]:
        if self.form == "share":
            raise NotImplementedError
        return super().candidates(columns, budget, count)

    def size(self, columns: Columns) -> np.ndarray:
        """Returns the share, from 1% on, or the tokens, by which the past is told from the future."""
        return np.maximum(columns["share"], 0.01) if self.form == "share" else columns["tokens"]

    def example(self) -> Example:
        values = {"c": 1.6, "k": 0.9, "t": 4.0, "E": 1.8, "B": 400.0, "beta": 0.35, "offset": 0.25}
        chosen = {p.name: values[p.name] for p in self.parameters}
        if self.form == "share":
            return Example(chosen, {"share": np.linspace(0, 1, 25)}, 0.005, {"share": 0.5})
        design = {"tokens": np.tile(np.geomspace(1e6, 1e10, 15), 2), "shifted": np.repeat([0.0, 1.0], 15)}
        return Example(chosen, design, 0.005, {"tokens": 1e11, "shifted": 1.0})
