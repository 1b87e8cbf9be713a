"""The contract of a law: columns of a table, parameters, a prediction, and an estimator that takes weights of rows."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from ssljax.base.schema import setting
from ssljax.scaling.fitting import minimise

Columns = Mapping[str, np.ndarray]
"""{name: [n]}: the columns of a table that a law needs, in units (no millions, no billions)."""

LARGEST = 115.0  # logarithm of the largest coefficient; beyond, products of derivatives leave the range of numbers
STARTS = 6  # local searches, from the best points of the grid


@dataclasses.dataclass(frozen=True)
class Column:
    """A column that a law reads.

    Attributes:
        name: as in the table.
        unit: in words.
        distinct: the fewest different values with which the parameters can be told apart.
        lower, upper: bounds; the lower one is excluded if `open`.
    """

    name: str
    unit: str
    distinct: int = 2
    lower: float = 0.0
    upper: float = np.inf
    open: bool = True


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a law.

    Attributes:
        name: as in the results.
        lower, upper: bounds of the search, included.
        log: True: the search is over its logarithm.
    """

    name: str
    lower: float = -np.inf
    upper: float = np.inf
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Example:
    """A typical study, from which `benchmarks/coverage.py` simulates tables.

    Attributes:
        parameters: {name: true value}.
        columns: the design, {name: [n]}.
        noise: standard deviation of the observations, on the scale of the residuals.
        at: {column: value} of a prediction whose interval is tested.
    """

    parameters: Mapping[str, float]
    columns: Columns
    noise: float
    at: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Law:
    """A formula with parameters, and the way to estimate them.

    Subclasses are frozen dataclasses; their keys are the options of the law. Arrays of parameters are [..., P] in the
    order of `parameters`; predictions are [..., n], or [..., T n] for a law with T outputs, one output after another.
    """

    resample: ClassVar[str] = "cases"  # the bootstrap of the reported intervals: cases, clusters or residuals
    noisy: ClassVar[bool] = True  # a held-out value has the noise of an observation

    residual: Literal["log", "linear"] = setting("log", doc="residuals: differences of logarithms, or of values")
    delta: float | None = setting(
        None, gt=0, doc="threshold of Huber's loss, on the scale of the residuals; None: least squares"
    )

    # ---- what a law says of itself

    @property
    def inputs(self) -> tuple[Column, ...]:
        """Columns that the prediction needs."""
        raise NotImplementedError

    @property
    def outputs(self) -> tuple[Column, ...]:
        """Columns that the law predicts."""
        return (Column("loss", "mean loss of an example or token", distinct=2),)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Parameters, in the order of their arrays."""
        raise NotImplementedError

    def predict(self, parameters: np.ndarray, columns: Columns) -> np.ndarray:
        """Returns predictions [..., n] of parameters [..., P]. Complex parameters give complex predictions."""
        raise NotImplementedError

    def starts(self, columns: Columns, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Returns starts [S, P] of the search, for observations [n] with weights [n]."""
        raise NotImplementedError

    def example(self) -> Example:
        """Returns a typical study."""
        raise NotImplementedError

    @property
    def note(self) -> str:
        """A limit of the intervals, which every result states; {level} stands for their level."""
        return ""

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """Published values, {source: {parameter or derived quantity: value}}, which results show beside their own."""
        return {}

    @property
    def asked(self) -> tuple[str, ...]:
        """Columns that `predict` reads."""
        return tuple(column.name for column in self.inputs)

    def candidates(self, columns: Columns, budget: float, count: int) -> dict[str, np.ndarray]:
        """Returns runs of a budget from which the next one is chosen, {name: [K]}.

        For params and tokens: splits of 6 params tokens = budget, with ratios up to three times outside the table's.
        Else sizes from the smallest of the table to the budget.

        Raises:
            NotImplementedError: the law has no size that a budget limits.
        """
        if "params" not in self.asked or "tokens" not in self.asked:
            fixed = {name: np.full(count, np.median(columns[name])) for name in self.asked[1:]}
            low = min(columns[self.asked[0]].min(), budget / 10)
            return {self.asked[0]: np.geomspace(low, budget, count), **fixed}
        ratios = columns["tokens"] / columns["params"]
        params = np.sqrt(budget / 6 / np.geomspace(ratios.min() / 3, ratios.max() * 3, count))
        fixed = {n: np.full(count, np.median(columns[n])) for n in self.asked if n not in ("params", "tokens")}
        return {"params": params, "tokens": budget / 6 / params, **fixed}

    def derived(self, parameters: np.ndarray) -> dict[str, np.ndarray]:
        """Returns quantities [...] that follow from the parameters [..., P] alone, and are reported beside them."""
        return {}

    def optimal(self, parameters: np.ndarray, flops: float, **given: float) -> dict[str, np.ndarray]:
        """Returns the best allocation of a budget, {column: [...]}, with the predicted loss.

        Raises:
            NotImplementedError: the law has no budget.
        """
        raise NotImplementedError

    def refused(self, columns: Columns, observed: np.ndarray) -> tuple[int, str] | None:
        """Returns the index of a row that cannot be and the reason, one line; None if there is none."""
        return None

    def warnings(self, columns: Columns, observed: np.ndarray, parameters: np.ndarray) -> list[str]:
        """Returns doubts about a fit that only this law knows; of parameters [P]."""
        return []

    def size(self, columns: Columns) -> np.ndarray:
        """Returns the size [n] of each run, by which the past is told from the future: FLOPs where they are known."""
        if "params" in columns and "tokens" in columns:
            return 6.0 * columns["params"] * columns["tokens"]
        return columns[self.inputs[0].name]

    def count(self, columns: Columns) -> int:
        """The number of fitted numbers, which residual degrees of freedom subtract."""
        return len(self.parameters)

    def resampled_units(self, columns: Columns) -> int:
        """The number of independent observations."""
        return len(next(iter(columns.values()))) * len(self.outputs)

    def fitted(self, columns: Columns, observed: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Returns the values [T n] about which the residual bootstrap draws observations [T n]."""
        return self.predict(parameters, columns)

    def points(self, columns: Columns, observed: np.ndarray) -> tuple[Columns, np.ndarray]:
        """Returns what `predict` is compared with: its inputs and the values, of rows that were fitted or held out."""
        return columns, observed

    def residuals(self, observed: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        """Returns residuals [...] on the scale of the law."""
        return np.log(observed / fitted) if self.residual == "log" else observed - fitted

    def leverage(self, columns: Columns, parameters: np.ndarray) -> np.ndarray:
        """Returns the leverage [T n] of each observation at parameters [P], between 0 and 1."""
        values, derivatives = self.derivatives(parameters[None], columns)
        jacobian = derivatives[0] / values[0, :, None] if self.residual == "log" else derivatives[0]
        jacobian = jacobian / np.maximum(np.sqrt((jacobian**2).sum(0)), 1e-300)
        left, sizes, _ = np.linalg.svd(jacobian, full_matrices=False)
        left = left[:, sizes > 1e-12 * sizes[0]]
        return np.clip((left**2).sum(1), 0, 0.95)

    # ---- estimation

    def derivatives(self, parameters: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Returns predictions [R, n] of parameters [R, P] and their derivatives [R, n, P].

        By complex steps (Squire and Trapp 1998), which are exact to rounding.
        """
        values = self.predict(parameters, columns)
        steps = np.maximum(np.abs(parameters), 1e-8) * 1e-20
        out = np.empty((*values.shape, parameters.shape[-1]))
        for i in range(parameters.shape[-1]):
            shifted = parameters.astype(complex)
            shifted[..., i] += 1j * steps[..., i]
            out[..., i] = self.predict(shifted, columns).imag / steps[..., i, None]
        return values, out

    def estimate(
        self, columns: Columns, observed: np.ndarray, weights: np.ndarray, around: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns parameters [R, P] of R weighted tables, NaN where there is no estimate.

        Args:
            columns: {name: [n]}.
            observed: [R, T n] or [1, T n].
            weights: [R, n], how often each row counts.
            around: [P], an estimate near which these are; None: the whole space is searched.
        """
        weights = np.tile(weights, len(self.outputs))
        if around is not None:
            return self._search(columns, observed, weights, np.repeat(around[None], len(weights), 0))[0]
        found = []
        for y, w in zip(np.broadcast_to(observed, (len(weights), observed.shape[1])), weights):
            starts = self.starts(columns, y, w)
            ends, loss = self._search(columns, y[None], np.repeat(w[None], len(starts), 0), starts)
            found.append(ends[np.argmin(np.where(np.isfinite(loss), loss, np.inf))])
        return np.stack(found)

    def _search(
        self, columns: Columns, observed: np.ndarray, weights: np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns local minima [R, P] and their losses [R]."""
        logs = np.array([p.log for p in self.parameters])
        lower, upper = self.bounds()
        coordinates = np.where(logs, np.log(np.maximum(starts, 1e-300), where=logs, out=np.zeros_like(starts)), starts)
        target = np.log(observed) if self.residual == "log" else observed
        solution = minimise(self.model(columns), target, coordinates, weights, lower, upper, self.delta)
        return self.values(solution.coordinates), solution.loss

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds [P] of the coordinates of the search."""

        def coordinate(parameter: Parameter, value: float) -> float:
            return float(np.clip(np.log(max(value, 1e-300)), -LARGEST, LARGEST)) if parameter.log else value

        lower = [coordinate(p, p.lower) for p in self.parameters]
        return np.array(lower), np.array([coordinate(p, p.upper) for p in self.parameters])

    def values(self, coordinates: np.ndarray) -> np.ndarray:
        """Parameters [..., P] at coordinates of the search."""
        logs = np.array([p.log for p in self.parameters])
        return np.where(logs, np.exp(np.where(logs, coordinates, 0.0)), coordinates)

    def model(self, columns: Columns) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Returns the function of the coordinates that `fitting.minimise` needs."""
        logs = np.array([p.log for p in self.parameters])

        def evaluate(coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            parameters = self.values(coordinates)
            with np.errstate(all="ignore"):
                values, derivatives = self.derivatives(parameters, columns)
                derivatives = derivatives * np.where(logs, parameters, 1.0)[:, None]
                if self.residual == "log":
                    return np.log(values), derivatives / values[..., None]
            return values, derivatives

        return evaluate

    def simulate(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns a table of the example's design, with noise."""
        truth = np.array([example.parameters[p.name] for p in self.parameters])
        values = self.predict(truth, example.columns)
        noise = example.noise * rng.standard_normal(values.shape)
        observed = values * np.exp(noise) if self.residual == "log" else values + noise
        names = [column.name for column in self.outputs]
        return {**example.columns, **dict(zip(names, np.split(observed, len(names))))}


def parts(parameters: np.ndarray) -> list[np.ndarray]:
    """The parameters [..., P] as P arrays [..., 1]."""
    return [parameters[..., i, None] for i in range(parameters.shape[-1])]


def separable_starts(
    basis: np.ndarray, grid: np.ndarray, observed: np.ndarray, weights: np.ndarray, relative: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Variable projection (Golub and Pereyra 1973): at each point of a grid, the best coefficients of linear terms.

    Args:
        basis: [G, n, K], the linear terms at each point of the grid.
        grid: [G, Q], the values of the other parameters.
        observed: [n].
        weights: [n].
        relative: True: relative errors are squared, which stand for errors of the logarithm.

    Returns:
        coefficients [S, K], not negative, and points [S, Q]: the `STARTS` best.
    """
    coefficients, loss = non_negative(basis, observed, weights / observed**2 if relative else weights)
    best = np.argsort(np.where(np.isfinite(loss), loss, np.inf))[:STARTS]
    return coefficients[best], grid[best]


def non_negative(basis: np.ndarray, observed: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative least squares of G problems with few terms, by trying each set of terms that are not zero.

    Args:
        basis: [G, n, K].
        observed: [n].
        weights: [n].

    Returns:
        coefficients [G, K] and losses [G] (half the weighted sum of squares).
    """
    terms = basis.shape[-1]
    scale = np.sqrt(np.maximum(np.einsum("gnk,gnk,n->gk", basis, basis, weights), 1e-300))
    matrix = np.matmul(basis.swapaxes(1, 2) * weights, basis) / (scale[:, :, None] * scale[:, None])
    right = np.matmul(basis.swapaxes(1, 2), weights * observed) / scale
    total = (weights * observed**2).sum()
    best, best_loss = np.zeros(right.shape), np.full(len(basis), 0.5 * total)
    for bits in range(1, 2**terms):
        which = np.array([i for i in range(terms) if bits >> i & 1])
        part = matrix[:, which[:, None], which] + 1e-12 * np.eye(len(which))
        found = np.linalg.solve(part, right[:, which, None])[..., 0]
        # Of a solved system, the loss is (y'y - c'b) / 2.
        loss = 0.5 * (total - (found * right[:, which]).sum(1))
        better = (found >= 0).all(1) & (loss < best_loss)
        best[better] = 0.0
        best[np.ix_(better, which)] = found[better]
        best_loss[better] = loss[better]
    return best / scale, best_loss


def mesh(*axes: Any) -> np.ndarray:
    """All combinations of the values of some axes, [G, number of axes]."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], -1).astype(float)


def golden(function: Callable[[np.ndarray], np.ndarray], lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Returns the minima [R] of R functions with one minimum each between bounds [R] (golden-section search)."""
    ratio = (np.sqrt(5) - 1) / 2
    a, b = np.array(lower, float), np.array(upper, float)
    for _ in range(90):
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        left = function(c) < function(d)
        a, b = np.where(left, a, c), np.where(left, d, b)
    return (a + b) / 2


def best_split(law: Law, parameters: np.ndarray, flops: float, **given: float) -> dict[str, np.ndarray]:
    """Returns the size and the tokens with the lowest predicted loss at 6 params tokens = flops, by search."""
    flat = parameters.reshape(-1, parameters.shape[-1])

    def columns(log_params: np.ndarray) -> dict[str, np.ndarray]:
        params = np.exp(log_params)[:, None]
        fixed = {name: np.full_like(params, value) for name, value in given.items()}
        return {"params": params, "tokens": flops / (6 * params), **fixed}

    def loss(log_params: np.ndarray) -> np.ndarray:
        return law.predict(flat, columns(log_params))[:, 0]

    middle = np.full(len(flat), 0.5 * np.log(flops / 6))
    at = golden(loss, middle * 0.0, middle * 2.0)
    shape = parameters.shape[:-1]
    values = {"params": np.exp(at), "tokens": flops / 6 / np.exp(at), "loss": loss(at)}
    return {name: value.reshape(shape) for name, value in values.items()}
