"""Loss as a function of parameters and tokens (Hoffmann et al. 2022), and laws that are built on it."""

import dataclasses
from typing import Literal

import numpy as np

from ssljax.base.schema import setting
from ssljax.scaling.fitting import minimise
from ssljax.scaling.laws.law import (
    Column,
    Columns,
    Example,
    Law,
    Parameter,
    best_split,
    golden,
    mesh,
    parts,
    separable_starts,
)

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

    delta: float | None = setting(
        1e-3, gt=0, doc="threshold of Huber's loss, on the scale of the residuals; None: least squares"
    )
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

    @property
    def note(self) -> str:
        if self.delta is None:
            return ""
        return (
            "{level} intervals of E, A and alpha are a little wider than they say: in simulations, "
            "96% of the 90% intervals hold the truth (docs/laws.md); with delta=None 90% do"
        )

    @property
    def published(self) -> dict[str, dict[str, float]]:
        hoffmann = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28, "tokens_exponent": 0.54}
        besiroglu = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
        return {"Hoffmann et al. 2022": hoffmann, "Besiroglu et al. 2024": besiroglu}

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
        """Returns size, tokens and loss of the best run of 6 N D = `flops` (Hoffmann et al. 2022, eq. 4)."""
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
        return Example(
            values, {"params": params, "tokens": flops / 6 / params}, 0.005, {"params": 7e9, "tokens": 1.4e11}
        )


@dataclasses.dataclass(frozen=True)
class Overtraining(Law):
    """L(C, M) = E + (a M^eta + b M^-eta) C^-eta (Gadre et al. 2024, "Language models scale reliably with over-training
    and on downstream tasks", eq. 4), with C = 6 N D and M = D / N tokens for each parameter.

    It is the law of Hoffmann et al. with alpha = beta = 2 eta: models that are trained on more tokens than is optimal
    for their compute follow power laws of the same exponent.
    """

    resample = "residuals"

    @property
    def inputs(self) -> tuple[Column, ...]:
        return (PARAMS, TOKENS)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("E", 0.0), Parameter("a", log=True), Parameter("b", log=True), Parameter("eta", 0.0, 3.0))

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        E, a, b, eta = parts(parameters)
        log_c, log_m = self._logs(columns)
        return E + np.exp(np.log(a) + eta * (log_m - log_c)) + np.exp(np.log(b) - eta * (log_m + log_c))

    @staticmethod
    def _logs(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        log_n, log_d = np.log(columns["params"]), np.log(columns["tokens"])
        return np.log(6.0) + log_n + log_d, log_d - log_n

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        log_c, log_m = self._logs(columns)
        grid, middle = np.linspace(0.01, 1.0, 100)[:, None], log_c.mean()
        terms = [np.exp(grid * (sign * log_m - log_c + middle)) for sign in (1, -1)]
        basis = np.stack([np.ones_like(terms[0]), *terms], -1)
        found, points = separable_starts(basis, grid, observed, weights, self.residual == "log")
        eta = points[:, 0]
        a, b = (np.maximum(found[:, i], 1e-6 * observed.min()) * np.exp(eta * middle) for i in (1, 2))
        return np.stack([found[:, 0], a, b, eta], -1)

    def derived(self, parameters: np.ndarray) -> dict[str, np.ndarray]:
        """The best number of tokens for each parameter, (b / a)^(1 / (2 eta)), at any compute."""
        _, a, b, eta = (parameters[..., i] for i in range(4))
        with np.errstate(all="ignore"):
            return {"tokens_per_param": (b / a) ** (0.5 / eta)}

    def optimal(self, parameters: np.ndarray, flops: float, **given: float) -> dict[str, np.ndarray]:
        """Returns the size, the tokens and the loss of the best run of 6 N D = `flops`."""
        return best_split(self, parameters, flops)

    def example(self) -> Example:
        values = {"E": 1.84, "a": 230.0, "b": 460.0, "eta": 0.121}
        params, ratio = mesh(np.geomspace(1e7, 4e8, 6), np.geomspace(5, 640, 6)).T
        return Example(values, {"params": params, "tokens": ratio * params}, 0.005, {"params": 1.4e9, "tokens": 9e11})


@dataclasses.dataclass(frozen=True)
class DataConstrained(Law):
    """L = E + A / N_eff^alpha + B / D_eff^beta with repeated data (Muennighoff et al. 2023, eq. 5, 6 and 7).

    Of U_D unique tokens that are seen 1 + R_D times, D_eff = U_D + U_D Rd (1 - exp(-R_D / Rd)). Of N parameters,
    U_N = min(N, N_opt(U_D)) are as many as the unique tokens warrant by the law without repetition, and the excess
    R_N = N / U_N - 1 counts likewise: N_eff = U_N + U_N Rn (1 - exp(-R_N / Rn)). Published (not checked
    against the paper): E 1.87, A 521, B 1488, alpha = beta = 0.353, Rd 15.4, Rn 5.3.
    """

    tied: bool = setting(True, doc="one exponent for both terms, as in the paper")

    @property
    def published(self) -> dict[str, dict[str, float]]:
        values = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "Rd": 15.4, "Rn": 5.3}
        return {"Muennighoff et al. 2023, not checked": values}

    @property
    def inputs(self) -> tuple[Column, ...]:
        return (PARAMS, TOKENS, Column("unique_tokens", "different training tokens", distinct=2))

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        exponents = [Parameter("alpha", 1e-3, 5.0), *([] if self.tied else [Parameter("beta", 1e-3, 5.0)])]
        repeats = [Parameter("Rd", 1e-2, 1e4, log=True), Parameter("Rn", 1e-2, 1e4, log=True)]
        return (Parameter("E", 0.0), Parameter("A", log=True), Parameter("B", log=True), *exponents, *repeats)

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        E, A, B, alpha, *rest = parts(parameters)
        beta, r_data, r_size = rest if not self.tied else (alpha, *rest)
        unique = np.minimum(columns["unique_tokens"], columns["tokens"])
        size, data = columns["params"], columns["tokens"]
        # The best size for U_D unique tokens: N_opt = G (G U_D)^(beta / alpha), from eq. 4 of Hoffmann et al. 2022.
        log_g = (np.log(alpha) + np.log(A) - np.log(beta) - np.log(B)) / (alpha + beta)
        log_best = log_g + beta / alpha * (log_g + np.log(unique))
        enough = np.where((log_best - np.log(size)).real < 0, log_best, np.log(size) + 0 * log_best)
        excess = np.exp(np.log(size) - enough) - 1
        log_size = enough + np.log1p(r_size * -np.expm1(-excess / r_size))
        log_data = np.log(unique) + np.log1p(r_data * -np.expm1(-(data / unique - 1) / r_data))
        return E + np.exp(np.log(A) - alpha * log_size) + np.exp(np.log(B) - beta * log_data)

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        grid = np.linspace(0.05, 1.5, 30)[:, None]
        found = []
        for repeats in np.geomspace(0.5, 200, 12):
            unique = np.minimum(columns["unique_tokens"], columns["tokens"])
            data = unique * (1 - repeats * np.expm1(-(columns["tokens"] / unique - 1) / repeats))
            middle = [np.exp(np.log(values).mean()) for values in (columns["params"], data)]
            terms = [np.exp(-grid * np.log(v / m)) for v, m in zip((columns["params"], data), middle)]
            basis = np.stack([np.ones_like(terms[0]), *terms], -1)
            linear, points = separable_starts(basis, grid, observed, weights, self.residual == "log")
            alpha = points[:, 0]
            A, B = (np.maximum(linear[:, i + 1], 1e-4 * observed.min()) * middle[i] ** alpha for i in (0, 1))
            exponents = [alpha] if self.tied else [alpha, alpha]
            for r_size in (1.0, 5.0, 50.0):
                rest = [np.full_like(alpha, repeats), np.full_like(alpha, r_size)]
                found.append(np.stack([linear[:, 0], A, B, *exponents, *rest], -1))
        starts = np.concatenate(found)
        with np.errstate(all="ignore"):
            errors = (weights * np.log(observed / self.predict(starts, columns)) ** 2).sum(1)
        return starts[np.argsort(np.where(np.isfinite(errors), errors, np.inf))[:12]]

    def optimal(self, parameters: np.ndarray, flops: float, **given: float) -> dict[str, np.ndarray]:
        """Returns the best split of 6 N D = `flops` with `unique_tokens` different tokens (unlimited if not given)."""
        return best_split(self, parameters, flops, **({"unique_tokens": 1e30} | given))

    def example(self) -> Example:
        values = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353, "Rd": 15.4, "Rn": 5.3}
        chosen = {p.name: values[p.name] for p in self.parameters}
        params, tokens, unique = mesh(np.geomspace(2e7, 2e9, 5), np.geomspace(1e9, 1e11, 5), [1e8, 1e9, 1e10]).T
        keep = (unique <= tokens) & (tokens / unique < 200)
        design = {"params": params[keep], "tokens": tokens[keep], "unique_tokens": unique[keep]}
        at = {"params": 3e9, "tokens": 1e11, "unique_tokens": 2e10}
        return Example(chosen, design, 0.005, at)


@dataclasses.dataclass(frozen=True)
class InferenceAware(Chinchilla):
    """The law of Hoffmann et al. with an optimum that counts inference (Sardana et al. 2023, eq. 2 and 3).

    Training costs 6 N D and `inference_tokens` D_inf cost 2 N D_inf. `optimal(flops=C)` is the run of least loss with
    6 N D + 2 N D_inf = C, which is also the cheapest run of its loss. With many inference tokens it is a smaller model
    that is trained on more tokens.
    """

    inference_tokens: float = setting(0.0, ge=0, doc="tokens that the model will read and write after the training")

    def optimal(self, parameters: np.ndarray, flops: float, **given: float) -> dict[str, np.ndarray]:
        """Returns size, tokens and loss of the best run whose training and inference take `flops`."""
        inference = given.get("inference_tokens", self.inference_tokens)
        flat = parameters.reshape(-1, 5)

        def columns(log_params: np.ndarray) -> dict[str, np.ndarray]:
            params = np.exp(log_params)[:, None]
            return {"params": params, "tokens": np.maximum(flops / (6 * params) - inference / 3, 1e-30)}

        # The largest size leaves one token for the training.
        upper = np.full(len(flat), np.log(flops / (6 + 2 * inference)))
        at = golden(lambda log_params: self.predict(flat, columns(log_params))[:, 0], np.zeros(len(flat)), upper)
        values = {"params": np.exp(at), "tokens": columns(at)["tokens"][:, 0]}
        values["loss"] = self.predict(flat, columns(at))[:, 0]
        return {name: value.reshape(parameters.shape[:-1]) for name, value in values.items()}
