"""Robust non-linear least squares for many problems at once.

R problems share a table of n observations and differ in the weights of the observations, in the start, or in both:
bootstrap refits, leave-one-out fits and searches from many starts are each one call. The loss of a problem is

    sum_i w_i rho(y_i - m_i(u)),    rho(r) = r^2 / 2 for |r| <= delta, else delta (|r| - delta / 2),

which is that of Huber (1964, eq. 1.3 and 2.4); without delta, least squares.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Coordinates [R, P] -> (values [R, n], derivatives [R, n, P])."""

BLOCK = 1_000_000  # numbers of a Jacobian that are computed at once, so that they stay in the processor's cache
DAMPING = (1e-7, 1e-2, 1e8)  # smallest, first and largest


@dataclasses.dataclass(frozen=True)
class Solution:
    """Minima of R problems.

    Attributes:
        coordinates: [R, P].
        loss: [R].
        converged: [R], False where the iterations ended first.
    """

    coordinates: np.ndarray
    loss: np.ndarray
    converged: np.ndarray


def huber(residuals: np.ndarray, delta: float | None) -> np.ndarray:
    """Huber's loss of each residual; half the square without `delta`."""
    size = np.abs(residuals)
    if delta is None:
        return 0.5 * residuals**2
    return np.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def minimise(
    model: Model,
    observed: np.ndarray,
    start: np.ndarray,
    weights: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    delta: float | None,
    iterations: int = 200,
) -> Solution:
    """Minimises R weighted Huber losses within bounds.

    Method: Newton steps with the Gauss-Newton matrix of the observations inside `delta`, damped by the matrix of
    iteratively reweighted least squares. With large damping a step is a short step of the latter, which cannot fail to
    descend; with small damping it is the step that solves a locally linear Huber problem exactly.

    Args:
        model: values and derivatives at coordinates.
        observed: [R, n] or [n].
        start: [R, P].
        weights: [R, n] or [1, n], not negative.
        lower, upper: [P], bounds of the coordinates.
        delta: Huber's threshold; None: least squares.
        iterations: the most steps of a problem.
    """
    start = np.clip(np.asarray(start, float), lower, upper)
    count = np.shape(observed)[-1]
    observed, weights = (np.broadcast_to(values, (len(start), count)) for values in (observed, weights))
    rows = max(1, BLOCK // (count * start.shape[1]))
    parts = [slice(i, i + rows) for i in range(0, len(start), rows)]
    blocks = [_minimise(model, observed[p], start[p], weights[p], lower, upper, delta, iterations) for p in parts]
    return Solution(
        *(np.concatenate([getattr(block, f.name) for block in blocks]) for f in dataclasses.fields(Solution))
    )


def _minimise(
    model: Model,
    observed: np.ndarray,
    start: np.ndarray,
    weights: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    delta: float | None,
    iterations: int,
) -> Solution:
    u = start.copy()
    parts = _Parts.at(model, observed, u, weights, delta)
    damping, calm = np.full(len(u), DAMPING[1]), np.zeros(len(u), int)
    active = np.arange(len(u))
    for _ in range(iterations):
        here = parts.rows(active)
        trial = np.clip(u[active] + here.step(u[active], damping[active], lower, upper), lower, upper)
        found = _Parts.at(model, observed[active], trial, weights[active], delta)
        better = found.loss < here.loss  # False for NaN
        gain = np.where(better, here.loss - found.loss, 0.0)
        u[active[better]] = trial[better]
        parts.put(active[better], found.rows(better))
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 5.0), DAMPING[0], DAMPING[2])
        # Two steps in a row that gain nothing, or no step at any length that descends.
        calm[active] = np.where(
            better & (gain <= 1e-13 * here.loss), calm[active] + 1, np.where(better, 0, calm[active])
        )
        stuck = ~better & (damping[active] >= DAMPING[2])
        still = ~better & (np.abs(trial - u[active]) <= 1e-13 * (1 + np.abs(u[active]))).all(1)
        done = (calm[active] >= 2) | stuck | still | (parts.loss[active] == 0)
        active = active[~done]
        if not len(active):
            break
    converged = np.ones(len(u), bool)
    converged[active] = False
    return Solution(u, parts.loss, converged)


@dataclasses.dataclass
class _Parts:
    """Losses [R], gradients [R, P] and the two matrices [R, P, P] at points [R, P]."""

    loss: np.ndarray
    gradient: np.ndarray
    newton: np.ndarray
    reweighted: np.ndarray

    @classmethod
    def at(
        cls, model: Model, observed: np.ndarray, u: np.ndarray, weights: np.ndarray, delta: float | None
    ) -> "_Parts":
        """Returns the parts at coordinates [R, P]; those of a point out of the range of numbers are not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            values, derivatives = model(u)
            residuals = observed - values
            size = np.abs(residuals)
            loss = (weights * huber(residuals, delta)).sum(1)
            transposed = derivatives.swapaxes(1, 2)
            if delta is None:
                influence = weights * residuals
                matrix = np.matmul(transposed * weights[:, None], derivatives)
                newton = matrix
            else:
                influence = weights * np.clip(residuals, -delta, delta)
                matrix = np.matmul(transposed * (weights * (delta / np.maximum(size, delta)))[:, None], derivatives)
                newton = np.matmul(transposed * (weights * (size <= delta))[:, None], derivatives)
            gradient = -np.matmul(transposed, influence[..., None])[..., 0]
        return cls(loss, gradient, newton, matrix)

    def rows(self, which: np.ndarray) -> "_Parts":
        """Returns the parts of some problems."""
        return _Parts(self.loss[which], self.gradient[which], self.newton[which], self.reweighted[which])

    def put(self, which: np.ndarray, parts: "_Parts") -> None:
        """Replaces the parts of some problems."""
        for field in dataclasses.fields(self):
            getattr(self, field.name)[which] = getattr(parts, field.name)

    def step(self, u: np.ndarray, damping: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Returns steps [R, P]; coordinates that a bound holds stay."""
        held = ((u <= lower) & (self.gradient > 0)) | ((u >= upper) & (self.gradient < 0))
        size = self.reweighted.shape[-1]
        diagonal = np.einsum("rii->ri", self.reweighted)
        scale = np.sqrt(np.maximum(diagonal, 1e-300))
        ridge = np.eye(size) * 1e-2
        matrix = self.newton / (scale[:, :, None] * scale[:, None])
        damper = self.reweighted / (scale[:, :, None] * scale[:, None]) + ridge
        matrix = matrix + damping[:, None, None] * damper + np.eye(size) * 1e-12
        free = (~held).astype(float)
        matrix = matrix * free[:, :, None] * free[:, None] + held[:, :, None] * np.eye(size)
        right = -self.gradient / scale * free
        bad = ~(np.isfinite(matrix).all((1, 2)) & np.isfinite(right).all(1))
        matrix[bad], right[bad] = np.eye(size), 0.0
        return np.linalg.solve(matrix, right[..., None])[..., 0] / scale
