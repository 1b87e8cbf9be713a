"""Laws of Kaplan et al. 2020 and of the critical batch size (McCandlish et al. 2018)."""

import dataclasses
from typing import Literal

import numpy as np

from ssljax.base.schema import setting
from ssljax.scaling.laws.law import (
    Column,
    Columns,
    Example,
    Law,
    Parameter,
    best_split,
    mesh,
    non_negative,
    parts,
    separable_starts,
)

OF_FORM = {"N": ("params", "N_c", "alpha_N"), "D": ("tokens", "D_c", "alpha_D"), "C": ("flops", "C_c", "alpha_C")}
UNITS = {"params": "parameters without embeddings", "tokens": "tokens", "flops": "FLOPs at the critical batch size"}


@dataclasses.dataclass(frozen=True)
class Kaplan(Law):
    """Power laws of Kaplan et al. 2020 ("Scaling laws for neural language models").

    - "N": L(N) = (N_c / N)^alpha_N, of converged models (eq. 1.1). Published: alpha_N 0.076, N_c 8.8e13.
    - "D": L(D) = (D_c / D)^alpha_D, of large models that stop early (eq. 1.2). Published: 0.095, 5.4e13.
    - "C": L(C_min) = (C_c / C_min)^alpha_C (eq. 1.3). Published: 0.050, 3.1e8 PF-days (2.7e28 FLOPs).
    - "ND": L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (eq. 1.5).

    N is the number of parameters without embeddings.
    """

    resample = "residuals"

    form: Literal["N", "D", "C", "ND"] = setting("ND", doc="the variables: parameters, tokens, compute, or N and D")

    @property
    def inputs(self) -> tuple[Column, ...]:
        names = ("params", "tokens") if self.form == "ND" else (OF_FORM[self.form][0],)
        return tuple(Column(name, UNITS[name], distinct=2) for name in names)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        forms = ("N", "D") if self.form == "ND" else (self.form,)
        return tuple(
            parameter
            for form in forms
            for parameter in (Parameter(OF_FORM[form][1], log=True), Parameter(OF_FORM[form][2], 1e-3, 5.0))
        )

    @property
    def published(self) -> dict[str, dict[str, float]]:
        values = {"N_c": 8.8e13, "alpha_N": 0.076, "D_c": 5.4e13, "alpha_D": 0.095, "C_c": 2.7e28, "alpha_C": 0.050}
        if self.form == "ND":  # the joint fit of table 2 has other values
            return {}
        return {"Kaplan et al. 2020": {p.name: values[p.name] for p in self.parameters}}

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        if self.form != "ND":
            scale, exponent = parts(parameters)
            return np.exp(exponent * (np.log(scale) - np.log(columns[OF_FORM[self.form][0]])))
        n_c, alpha_n, d_c, alpha_d = parts(parameters)
        of_size = np.exp(alpha_n / alpha_d * (np.log(n_c) - np.log(columns["params"])))
        return np.exp(alpha_d * np.log(of_size + np.exp(np.log(d_c) - np.log(columns["tokens"]))))

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self.form != "ND":
            x = np.log(columns[OF_FORM[self.form][0]])
            slope, level = np.polyfit(x, np.log(observed), 1, w=np.sqrt(weights))
            exponent = max(-slope, 1e-3)
            return np.array([[np.exp(np.clip(level / exponent, -110, 110)), exponent]])
        return self._grid(columns, observed, weights)

    def _grid(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Starts of "ND": given the exponents, L^(1 / alpha_D) is linear in two coefficients."""
        found, exponents = [], np.linspace(0.03, 0.6, 39)
        n, d = (np.log(columns[name]) for name in ("params", "tokens"))
        for alpha_d in exponents:
            ratio = exponents[:, None] / alpha_d
            basis = np.stack([np.exp(-ratio * (n - n.mean())), np.tile(np.exp(d.mean() - d), (len(exponents), 1))], -1)
            target = (observed / np.exp(np.log(observed).mean())) ** (1 / alpha_d)
            of_size, of_data = non_negative(basis, target, weights / target**2)[0].T
            scale = np.log(observed).mean() / alpha_d
            log_n = (np.log(np.maximum(of_size, 1e-6)) + scale) / ratio[:, 0] + n.mean()
            log_d = np.log(np.maximum(of_data, 1e-6)) + scale + d.mean()
            logs = np.clip(np.stack([log_n, log_d], -1), -110, 110)
            alphas = np.full(len(exponents), alpha_d)
            found.append(np.stack([np.exp(logs[:, 0]), exponents, np.exp(logs[:, 1]), alphas], -1))
        grid = np.concatenate(found)
        with np.errstate(all="ignore"):
            errors = (weights * np.log(observed / self.predict(grid, columns)) ** 2).sum(1)
        return grid[np.argsort(np.where(np.isfinite(errors), errors, np.inf))[:6]]

    def derived(self, parameters: np.ndarray) -> dict[str, np.ndarray]:
        """For "ND": the exponent of the best size at 6 N D = C in the limit of large C, from eq. 1.5."""
        if self.form != "ND":
            return {}
        alpha_n, alpha_d = parameters[..., 1], parameters[..., 3]
        return {"params_exponent": alpha_d / (alpha_n + alpha_d)}

    def optimal(self, parameters: np.ndarray, flops: float, **given: float) -> dict[str, np.ndarray]:
        """Returns the best split of 6 N D = `flops` for "ND"."""
        if self.form != "ND":
            raise NotImplementedError
        return best_split(self, parameters, flops)

    def example(self) -> Example:
        values = {"N_c": 8.8e13, "alpha_N": 0.076, "D_c": 5.4e13, "alpha_D": 0.095, "C_c": 2.7e28, "alpha_C": 0.05}
        chosen = {p.name: values[p.name] for p in self.parameters}
        if self.form == "ND":
            params, tokens = mesh(np.geomspace(1e6, 1e9, 6), np.geomspace(2e7, 2e10, 6)).T
            return Example(chosen, {"params": params, "tokens": tokens}, 0.01, {"params": 1e9, "tokens": 1e11})
        name = OF_FORM[self.form][0]
        low = 1e6 if name != "flops" else 1e15
        return Example(chosen, {name: np.geomspace(low, 1e4 * low, 20)}, 0.01, {name: 1e5 * low})


@dataclasses.dataclass(frozen=True)
class CriticalBatch(Law):
    """Critical batch size.

    - "tradeoff": the steps S and the batch size B that reach one loss obey (S / S_min - 1)(E / E_min - 1) = 1 with the
      examples E = B S (McCandlish et al. 2018, eq. 2.11), so S = S_min (1 + B_crit / B) with B_crit = E_min / S_min
      (eq. 2.12). Columns: batch, steps.
    - "loss": B_crit(L) = B_star / L^(1 / alpha_B) (Kaplan et al. 2020, eq. 1.4; published: 2e8 tokens, 0.21). Columns:
      loss, critical_batch.
    """

    resample = "residuals"

    form: Literal["tradeoff", "loss"] = setting("tradeoff", doc="steps against batch size, or B_crit against loss")

    @property
    def inputs(self) -> tuple[Column, ...]:
        if self.form == "tradeoff":
            return (Column("batch", "examples or tokens of a step", distinct=2),)
        return (Column("loss", "mean loss of a token", distinct=2),)

    @property
    def outputs(self) -> tuple[Column, ...]:
        if self.form == "tradeoff":
            return (Column("steps", "steps until the loss is reached"),)
        return (Column("critical_batch", "examples or tokens of a step"),)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        if self.form == "tradeoff":
            return (Parameter("S_min", log=True), Parameter("B_crit", log=True))
        return (Parameter("B_star", log=True), Parameter("alpha_B", 1e-3, 50.0))

    @property
    def published(self) -> dict[str, dict[str, float]]:
        return {} if self.form == "tradeoff" else {"Kaplan et al. 2020": {"B_star": 2e8, "alpha_B": 0.21}}

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        first, second = parts(parameters)
        if self.form == "tradeoff":
            return first * (1 + second / columns["batch"])
        return np.exp(np.log(first) - np.log(columns["loss"]) / second)

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self.form == "tradeoff":
            inverse = 1 / columns["batch"]
            basis = np.stack([np.ones_like(inverse), inverse / inverse.mean()], -1)[None]
            found, _ = separable_starts(basis, np.zeros((1, 1)), observed, weights, True)
            steps = np.maximum(found[:, 0], 1e-6 * observed.min())
            return np.stack([steps, np.maximum(found[:, 1], 1e-6) / inverse.mean() / steps], -1)
        slope, level = np.polyfit(np.log(columns["loss"]), np.log(observed), 1, w=np.sqrt(weights))
        return np.array([[np.exp(np.clip(level, -110, 110)), -1 / min(slope, -0.02)]])

    def derived(self, parameters: np.ndarray) -> dict[str, np.ndarray]:
        """For "tradeoff": E_min, the fewest examples that reach the loss."""
        return {"E_min": parameters[..., 0] * parameters[..., 1]} if self.form == "tradeoff" else {}

    def candidates(self, columns: Columns, budget: float, count: int) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def size(self, columns: Columns) -> np.ndarray:
        """Returns the batch size, or 1 / loss, by which the past is told from the future."""
        return columns["batch"] if self.form == "tradeoff" else 1 / columns["loss"]

    def example(self) -> Example:
        if self.form == "tradeoff":
            design = {"batch": np.geomspace(8, 8192, 16)}
            return Example({"S_min": 1e4, "B_crit": 500.0}, design, 0.05, {"batch": 2e4})
        design = {"loss": np.linspace(2.5, 6.0, 16)}
        return Example({"B_star": 2e8, "alpha_B": 0.21}, design, 0.1, {"loss": 2.2})
