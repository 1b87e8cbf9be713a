"""Loss as a function of parameters and tokens (Hoffmann et al. 2022), and laws that are built on it."""

import dataclasses
from typing import Literal

import numpy as np

from ssljax.base.schema import setting
from ssljax.scaling.fitting import minimise
from ssljax.scaling.laws.law import Column, Columns, Example, Law, Parameter, mesh, parts, separable_starts

GRID = np.concatenate([np.linspace(0.02, 1.0, 50), np.linspace(1.05, 2.0, 20)])  # of either exponent

# The starts of Hoffmann et al. 2022, appendix D.2: logarithms a, b, e of A, B, E, and the exponents.
PUBLISHED = mesh(np.arange(-1, 1.5, 0.5), np.arange(0, 30, 5), np.arange(0, 30, 5), *[np.arange(0, 2.5, 0.5)] * 2)
FIRST_STEPS, KEPT = 15, 20  # all starts take a few steps, the best of them are followed to the end

PARAMS = Column("params", "parameters of the model", distinct=3)
TOKENS = Column("tokens", "training tokens", distinct=3)


@dataclasses.dataclass(frozen=True)
class Chinchilla(Law):
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, eq. 2; approach 3).

    N parameters and D tokens. The Huber loss with delta 1e-3 of log L is minimised, as in eq. 3 of the paper, where
    log L is the log-sum-exp of a - alpha log N, b - beta log D and e. Two ways lead there:

    - "varpro": both exponents on a grid, E, A and B at each point by non-negative least squares of relative errors
      (variable projection), and a local search from the best points.
    - "published": a local search from each of the paper's 4,500 starts (appendix D.2). The paper's L-BFGS is replaced
      by the damped Newton steps of `ssljax.scaling.fitting`, which need no line search and end at the minimum. The
      early stop of the original L-BFGS is what Besiroglu et al. 2024 correct.
    """

    delta: float | None = setting(1e-3, gt=0, doc="threshold of Huber's loss, on the scale of the residuals; None: least squares")
    method: Literal["varpro", "published"] = setting(
        "varpro", doc="the search: exponents on a grid with linear terms solved, or the paper's 4,500 starts"
    )

    @property
    def inputs(self) -> tuple[Column, ...]:
        return (PARAMS, TOKENS)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        exponents = (Parameter("alpha", 0.0, 5.0), Parameter("beta", 0.0, 5.0))
        return (Parameter("E", 0.0), Parameter("A", log=True), Parameter("B", log=True), *exponents)

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        E, A, B, alpha, beta = parts(parameters)
        of_size = np.exp(np.log(A) - alpha * np.log(columns["params"]))
        return E + of_size + np.exp(np.log(B) - beta * np.log(columns["tokens"]))

    def derivatives(self, parameters: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        E, A, B, alpha, beta = parts(parameters)
        log_n, log_d = np.log(columns["params"]), np.log(columns["tokens"])
        of_size, of_data = np.exp(-alpha * log_n), np.exp(-beta * log_d)
        out = np.empty((*of_size.shape, 5))
        out[..., 0] = 1.0
        out[..., 1], out[..., 2] = of_size, of_data
        of_size, of_data = A * of_size, B * of_data
        out[..., 3], out[..., 4] = -of_size * log_n, -of_data * log_d
        return E + of_size + of_data, out

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self.method == "published":
            return self._published(columns, observed, weights)
        middle = {name: np.exp(np.log(columns[name]).mean()) for name in ("params", "tokens")}
        logs = {name: np.log(columns[name] / middle[name]) for name in middle}
        of_size, of_data = (np.exp(-GRID[:, None] * logs[name]) for name in ("params", "tokens"))
        grid = mesh(GRID, GRID)
        basis = np.empty((len(grid), len(observed), 3))
        basis[..., 0] = 1.0
        basis[..., 1], basis[..., 2] = np.repeat(of_size, len(GRID), 0), np.tile(of_data, (len(GRID), 1))
        found, points = separable_starts(basis, grid, observed, weights, self.residual == "log")
        floor = 1e-6 * observed.min()
        A = np.maximum(found[:, 1], floor) * middle["params"] ** points[:, 0]
        B = np.maximum(found[:, 2], floor) * middle["tokens"] ** points[:, 1]
        return np.stack([found[:, 0], A, B, points[:, 0], points[:, 1]], -1)

    def _published(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        e, a, b, alpha, beta = PUBLISHED.T
        starts = np.stack([np.exp(e), a, b, alpha, beta], -1)
        lower, upper = self.bounds()
        weights = np.broadcast_to(weights, (len(starts), len(observed)))
        target = np.log(observed) if self.residual == "log" else observed
        found = minimise(self.model(columns), target, starts, weights, lower, upper, self.delta, FIRST_STEPS)
        best = np.argsort(np.where(np.isfinite(found.loss), found.loss, np.inf))[:KEPT]
        return self.values(found.coordinates[best])

    def derived(self, parameters: np.ndarray) -> dict[str, np.ndarray]:
        """Exponents of the compute-optimal size and tokens, N_opt ~ C^params_exponent (Hoffmann et al. 2022, eq. 4)."""
        alpha, beta = parameters[..., 3], parameters[..., 4]
        with np.errstate(all="ignore"):
            return {"params_exponent": beta / (alpha + beta), "tokens_exponent": alpha / (alpha + beta)}

    def optimal(self, parameters: np.ndarray, flops: float, **given: float) -> dict[str, np.ndarray]:
        """Returns the size, the tokens and the loss of the best run of 6 N D = `flops` (Hoffmann et al. 2022, eq. 4)."""
        E, A, B, alpha, beta = (parameters[..., i] for i in range(5))
        with np.errstate(all="ignore"):
            log_g = (np.log(alpha) + np.log(A) - np.log(beta) - np.log(B)) / (alpha + beta)
            log_n = log_g + beta / (alpha + beta) * np.log(flops / 6)
            log_d = np.log(flops / 6) - log_n
            loss = E + np.exp(np.log(A) - alpha * log_n) + np.exp(np.log(B) - beta * log_d)
            return {"params": np.exp(log_n), "tokens": np.exp(log_d), "loss": loss}

    def example(self) -> Example:
        values = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
        budgets, ratios = np.geomspace(1e18, 1e21, 6), np.geomspace(1 / 8, 8, 9)
        flops = np.repeat(budgets, len(ratios))
        params = 0.1 * np.sqrt(flops) * np.tile(ratios, len(budgets))
        return Example(values, {"params": params, "tokens": flops / 6 / params}, 0.005, {"params": 7e9, "tokens": 1.4e11})
